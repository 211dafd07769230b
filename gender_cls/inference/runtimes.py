"""Engines that run a model on pixels: torch for a `.pth` or `.safetensors`, ONNX Runtime without torch.

Both have `facts`, from the model's JSON or from the file itself, None if there are none; `facts_source`, the file or
argument that the facts come from, for errors; and `threads`, how many threads may call what `many` yields at once.
"""

import json
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from gender_cls.errors import UserError, check_extra
from gender_cls.files import ONNX, SAFETENSORS, file_kind
from gender_cls.transforms.preprocessing import Preprocessing

Run = Callable[[np.ndarray], np.ndarray]  # pixels, uint8 (N, 3, size, size), to logits, float32 (N)
OPENVINO_FROM = 5000  # images; for fewer, compiling takes longer than it saves


class TorchRuntime:
    """A state dict of resnet18 with `fc = Linear(512, 1)`, or of the network its JSON names, run by torch."""

    def __init__(self, model: str | os.PathLike[str], source: str) -> None:
        import torch

        from gender_cls.models.network import GenderNet
        from gender_cls.models.weights import read_state_dict

        state = read_state_dict(model, source)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.facts_source, self.threads = source, cores()
        text = None
        if file_kind(model) == SAFETENSORS:
            from safetensors import safe_open

            with safe_open(model, "pt") as tensors:
                text = (tensors.metadata() or {}).get("facts")
        for path in (Path(model), Path(model).resolve()):  # the JSON may lie beside a link or beside its target
            file = path.with_suffix(".json")
            if text is None and file.exists():
                self.facts_source, text = str(file), file.read_text(encoding="utf-8-sig", errors="replace")
        self.facts = None if text is None else _parse_facts(text, self.facts_source)
        self.network: GenderNet = GenderNet(None, str((self.facts or {}).get("backbone", "resnet18")))
        self.network.load_plain_state(state, source)
        self.network.eval()

    def few(self, preprocessing: Preprocessing) -> Run:
        """Return the model for a few images: fp32, ready at once."""
        import torch

        @torch.inference_mode()
        def run(pixels: np.ndarray) -> np.ndarray:
            return self.network(preprocessing.normalize(torch.from_numpy(pixels))).numpy()

        return run

    @contextmanager
    def many(self, preprocessing: Preprocessing, count: int, precision: str) -> Iterator[Run]:
        """Yield the model for `count` images: in bf16 if the hardware has it, on a GPU, by OpenVINO where that pays."""
        import torch

        from gender_cls.models.backbones import best_precision, openvino_backbone, torch_backbone

        chosen = best_precision(self.device) if precision == "auto" else precision
        if self.device.type == "cpu" and count >= OPENVINO_FROM and find_spec("openvino"):
            backbone = openvino_backbone(self.network.backbone, preprocessing, chosen, streams=self.threads)
        else:
            backbone = torch_backbone(self.network.backbone, preprocessing, chosen, self.device)

        @torch.inference_mode()
        def run(pixels: np.ndarray) -> np.ndarray:
            return self.network.head(backbone(torch.from_numpy(pixels))).squeeze(1).numpy()

        with one_torch_thread():
            yield run


class OnnxRuntime:
    """A file made by `python -m gender_cls.inference.export`, run by ONNX Runtime."""

    def __init__(self, model: str | os.PathLike[str], source: str) -> None:
        check_extra(source, "onnx", "onnxruntime")
        self.model, self.threads = os.fspath(model), cores()
        try:
            self.session = self._session(self.threads)
            text = self.session.get_modelmeta().custom_metadata_map["facts"]
            (image,) = self.session.get_inputs()
            size = json.loads(text)["preprocessing"]["size"]
            outputs = {output.name for output in self.session.get_outputs()}
            known = (image.name, image.type, image.shape[1:]) == ("image", "tensor(float)", [3, size, size])
            if not known or isinstance(image.shape[0], int) or not {"p_male", "logit"} <= outputs:
                raise ValueError(f"{image} to {outputs}")
        except Exception as error:  # ONNX Runtime has exceptions of its own
            kind = file_kind(model)
            what = f"{kind}, and" if kind not in ("", ONNX) else ""
            message = f"{source} is {what} not from gender_cls.inference.export; export again".replace("  ", " ")
            raise UserError("bad-model", message) from error
        self.facts_source, self.facts = source, _parse_facts(text, source)

    def few(self, preprocessing: Preprocessing) -> Run:
        """Return the model for a few images, with a thread for each core."""
        return partial(self._run, self.session)

    @contextmanager
    def many(self, preprocessing: Preprocessing, count: int, precision: str) -> Iterator[Run]:
        """Yield the model to be called by `threads` threads, always in fp32."""
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
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def invalid_facts(source: str) -> UserError:
    """Return the error for a JSON that prediction can't use."""
    message = f"{source} holds no valid preprocessing and calibration; mend it, or delete it to assume the recipe's"
    return UserError("bad-model", message)


def _parse_facts(text: str, source: str) -> dict[str, Any]:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError, RecursionError) as error:
        raise invalid_facts(source) from error


_lock = threading.Lock()
_threads_before: list[int] = []  # one entry for each `one_torch_thread` in force; the first is restored by the last


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Let torch compute with one thread per caller, since there is a caller for each core; may overlap with others."""
    import torch

    with _lock:
        _threads_before.append(torch.get_num_threads())
        if len(_threads_before) == 1:
            torch.set_num_threads(1)
    try:
        yield
    finally:
        with _lock:
            before = _threads_before.pop()
            if not _threads_before:
                torch.set_num_threads(before)
