"""What runs a model on pixels: torch with a `.pth` or `.safetensors`, or ONNX Runtime without torch."""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from gender_cls.errors import UserError
from gender_cls.transforms import Preprocessing

Run = Callable[[np.ndarray], np.ndarray]  # pixels, uint8 (N, 3, size, size), to logits, float32 (N)
UNCLEAR = "{} does not say the model's preprocessing and calibration; mend it, or delete it to assume the recipe's"
OPENVINO_FROM = 5000  # pictures; for fewer its compilation takes longer than what it saves
_lock, _users, _before = threading.Lock(), list[int](), list[int]()  # of `_one_thread_each`


class Runtime(Protocol):
    """A model that was read.

    Attributes:
        facts: What its JSON or the file itself says of it; None where nothing does.
        told_by: Which of them.
        threads: That may call `many` at once.
    """

    facts: dict[str, Any] | None
    told_by: str
    threads: int

    def few(self, preprocessing: Preprocessing) -> Run:
        """For a handful of pictures: ready at once, fp32."""
        ...

    def many(self, preprocessing: Preprocessing, pictures: int, precision: str) -> AbstractContextManager[Run]:
        """For many pictures, to be called in `threads` threads at once; `precision` is auto or fp32."""
        ...


class TorchRuntime:
    """A state dict of torchvision's resnet18 with `fc = Linear(512, 1)`, or of the network that its JSON names.

    See `Runtime`.

    Attributes:
        network: That holds it.
    """

    def __init__(self, model: str | os.PathLike[str], source: str) -> None:
        import torch

        from gender_cls.network import GenderNet
        from gender_cls.weights import read_state_dict

        state = read_state_dict(model, source)
        self.told_by = source
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.threads = cores()
        said = None
        if Path(model).suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(model, "pt") as whole:
                self.told_by, said = source, (whole.metadata() or {}).get("facts")
        for path in (Path(model), Path(model).resolve()):  # a link may lie apart
            file = path.with_suffix(".json")
            if said is None and file.exists():
                self.told_by, said = str(file), file.read_text(encoding="utf-8", errors="replace")
        self.facts = None if said is None else read_json(said, self.told_by)
        self.network: GenderNet = GenderNet(None, str((self.facts or {}).get("backbone", "resnet18")))
        self.network.load_plain_state(state, source)
        self.network.eval()

    def few(self, preprocessing: Preprocessing) -> Run:
        """See `Runtime`."""
        import torch

        def run(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return self.network(preprocessing.normalize(torch.from_numpy(pixels))).numpy()

        return run

    @contextmanager
    def many(self, preprocessing: Preprocessing, pictures: int, precision: str) -> Iterator[Run]:
        """See `Runtime`: in bf16 where the hardware has it, on the GPU if there is one, by OpenVINO if that pays."""
        import torch

        from gender_cls.backbones import best_precision, openvino_backbone, torch_backbone

        chosen = best_precision(self.device) if precision == "auto" else precision
        if self.device.type == "cpu" and pictures >= OPENVINO_FROM and find_spec("openvino"):
            backbone = openvino_backbone(self.network, preprocessing, chosen, streams=self.threads)
        else:
            backbone = torch_backbone(self.network, preprocessing, chosen, self.device)

        def run(pixels: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return self.network.head(backbone(torch.from_numpy(pixels))).squeeze(1).numpy()

        with _one_thread_each():
            yield run


class OnnxRuntime:
    """What `python -m gender_cls.export` made; see `Runtime`."""

    def __init__(self, model: str | os.PathLike[str], source: str) -> None:
        if not find_spec("onnxruntime"):
            raise UserError(f'{source} needs the extra `onnx`: pip install -e ".[onnx]"')
        self.model = os.fspath(model)
        self.threads = cores()
        try:
            self.session = self._session(self.threads)
            said = self.session.get_modelmeta().custom_metadata_map["facts"]
            (image,) = self.session.get_inputs()
            side = json.loads(said)["preprocessing"]["size"]
            if (image.name, image.type, image.shape[1:]) != ("image", "tensor(float)", [3, side, side]):
                raise ValueError(f"{image}")
            if isinstance(image.shape[0], int) or {"p_male", "logit"} - {
                each.name for each in self.session.get_outputs()
            }:
                raise ValueError("another batch or output")
        except Exception as error:  # of its own kinds
            raise UserError(f"{source} is no model that python -m gender_cls.export made") from error
        self.told_by, self.facts = source, read_json(said, source)

    def few(self, preprocessing: Preprocessing) -> Run:
        """See `Runtime`."""
        return partial(self._run, self.session)

    @contextmanager
    def many(self, preprocessing: Preprocessing, pictures: int, precision: str) -> Iterator[Run]:
        """See `Runtime`; fp32."""
        yield partial(self._run, self._session(1))

    def _session(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        return onnxruntime.InferenceSession(self.model, options, providers=["CPUExecutionProvider"])

    @staticmethod
    def _run(session: Any, pixels: np.ndarray) -> np.ndarray:
        return session.run(["logit"], {"image": pixels.astype(np.float32) / 255})[0]


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """One thread of torch for each caller, since there are as many as cores; runs may overlap."""
    import torch

    with _lock:
        if not _before:
            _before.append(torch.get_num_threads())
            torch.set_num_threads(1)
        _users.append(1)
    try:
        yield
    finally:
        with _lock:
            _users.pop()
            if not _users:
                torch.set_num_threads(_before.pop())


def read_json(text: str | None, source: str) -> dict[str, Any]:
    """What a model says of itself.

    Raises:
        UserError: it is damaged.
    """
    try:
        return dict(json.loads(text or ""))
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(UNCLEAR.format(source)) from error
