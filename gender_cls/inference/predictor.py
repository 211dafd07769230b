"""Prediction for images of many kinds with a trained model."""

import json
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import fields
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gender_cls.errors import UserError, check_choice, check_integer, check_share, unreadable
from gender_cls.files import ONNX, file_kind, user_path
from gender_cls.inference.arguments import command
from gender_cls.inference.cutting import MIN_FACE, Cutter
from gender_cls.inference.prediction import Decode, Prediction, read, with_logits
from gender_cls.inference.runtimes import OnnxRuntime, Run, TorchRuntime, invalid_facts
from gender_cls.inference.values import as_read, is_one_image
from gender_cls.labels import CLASSES
from gender_cls.transforms.decode import MAX_PIXELS, Decoder
from gender_cls.transforms.faces import Face
from gender_cls.transforms.preprocessing import Preprocessing

if TYPE_CHECKING:
    from gender_cls.models.network import GenderNet

MODEL_NAME = "Binary_Classification_model.pth"
FEW = 64  # fewer images are predicted at once, in fp32
CHUNK = 16  # images that a thread decodes and predicts together
BATCH = 64  # faces of them that go through the network at once
ASKED = ("size", "interpolation", "mean", "std")  # of the preprocessing: what every model's JSON has


class Predictor:
    """A trained model with its preprocessing.

        predictor = Predictor("Binary_Classification_model.pth")
        for prediction in predictor.predict(["photo.jpg", image, array]):
            print(prediction.label, prediction.confidence, prediction.box)

    Args:
        model: A `Binary_Classification_model.pth`, whose preprocessing is read from the JSON beside it, or else assumed
            to be the recipe's; or a `.safetensors` or `.onnx` exported from one.
        prior: Share of male images to predict for, in (0, 1), instead of the one of the calibration.
        precision: auto or fp32. auto is fp32 for fewer than `FEW` images, and bf16 for more if the hardware computes
            with it (probabilities differ by less than 0.01, mostly by less than 0.004).
        truncated: refuse or keep: whether a file that ends too early gets an error, or a prediction with a note.
        max_pixels: Number of pixels above which an image gets an error, see `Decoder`.
        faces, cut, min_face, min_score: Which faces are predicted, and how they are cut, see `Cutter`.

    Attributes:
        cutter: What finds and cuts faces.
        preprocessing: Preprocessing of the model.
        assumed_preprocessing: Whether there is no JSON, so that `preprocessing` is an assumption.
        facts: Content of the JSON; empty without one.
        calibration: `prior`, and `slope` and `bias` of the logit of the uncalibrated head; None if not calibrated.
        note: Remark on preprocessing and calibration, to be shown after the name of the model.

    Raises:
        UserError: The model can't be used (a pickle is never executed), or not with these arguments.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        prior: float | None = None,
        precision: str = "auto",
        *,
        truncated: str = "refuse",
        max_pixels: int = MAX_PIXELS,
        faces: str | None = None,
        cut: str | None = None,
        min_face: int = MIN_FACE,
        min_score: float | None = None,
    ) -> None:
        if not isinstance(model, str | bytes | os.PathLike):
            raise UserError("bad-value", f"model={model!r}: give the path of a file")
        source, model = f"model={os.fsdecode(model)}", user_path(model)
        if os.path.isdir(model):
            raise UserError("bad-model", f"{source} is a folder; give the {MODEL_NAME} in it")
        if not os.path.isfile(model):
            raise UserError("not-found", f"{source}: no such file; run `{command('train')}`, or give another")
        check_choice("precision", precision, ("auto", "fp32"))
        self.source, self.precision, self.decoder = source, precision, Decoder(truncated, max_pixels)
        try:
            is_onnx = Path(model).suffix == ".onnx" or file_kind(model) == ONNX
        except OSError as error:
            raise unreadable(source, error) from error
        self.runtime = OnnxRuntime(model, source) if is_onnx else TorchRuntime(model, source)
        self.assumed_preprocessing = self.runtime.facts is None
        self.facts: dict[str, Any] = self.runtime.facts or {}
        self.preprocessing, self.calibration = _read_facts(self.runtime.facts, self.runtime.facts_source)
        self.cutter = Cutter(self.preprocessing, faces, cut, min_face, min_score, self.runtime.threads)
        self.shift = 0.0  # of the logit, from the prior of the calibration to another
        if prior is not None:
            check_share("prior", prior)
            if self.calibration is None:
                way_out = "train one with calibration=platt, not in a sweep"
                raise UserError("conflict", f"prior={prior} needs a calibrated model, unlike {source}; {way_out}")
            known = self.calibration["prior"]
            self.shift = math.log(prior / (1 - prior)) - math.log(known / (1 - known))
        if self.calibration:
            self.note = f", calibrated for a prior of {prior or self.calibration['prior']:.2g}"
        elif self.assumed_preprocessing:
            self.note = ", without its JSON: the preprocessing of the recipe is assumed"
        else:
            self.note = ", uncalibrated: its confidence is a score"

    @property
    def network(self) -> "GenderNet":
        """Network of a `.pth` or `.safetensors`; a `UserError` for an ONNX model."""
        if isinstance(self.runtime, TorchRuntime):
            return self.runtime.network
        raise UserError("bad-model", f"{self.source} holds no torch network; give the .pth that it was exported from")

    def find_faces(self, image: Any, channels: str = "rgb") -> list[Face]:
        """Return the faces in one image, given as for `predict`, left to right, whatever `faces` and `min_face` say.

        Raises:
            ImageError: It is not an image.
            UserError: The extra `faces` is not installed.
        """
        return self.cutter.detector.find_faces(self.decoder.convert(image, channels))

    def predict(self, images: Any, total: int = 0, channels: str = "rgb") -> Iterator[Prediction]:
        """Return an iterator of predictions in the order of the images, with an error for what is not an image.

        An image has one prediction or, where faces are looked for, one for each, left to right; one without a face has
        a prediction whose label is `no face`.

        Decoding and the network share the cores: with 64 images or more, torch computes with one thread per caller in
        the whole process. Of many images, 64 or about `CHUNK` for each core are held in memory. So an iterable is read
        64 images ahead of what is yielded; file objects, and what an iterator yields, are copied as they are read. An
        exception of the iterable is raised after the predictions for what came before.

        Args:
            images: One image or an iterable of them: paths; contents of image files, as bytes, other buffers or file
                objects; images of Pillow; arrays (H, W) or (H, W, C) or tensors (H, W) or (C, H, W), of uint8 or of
                floats from 0 to 1, where C is 1, 3 or 4. An array or tensor of four dimensions is a batch.
            total: Number of images of the whole run, if these continue an interrupted one.
            channels: Order of the channels of arrays and tensors: rgb or, as OpenCV reads, bgr.

        Raises:
            UserError: `total` or `channels` is no such value, or the extra `faces` is needed and not installed.
        """
        check_integer("total", total, 0)
        check_choice("channels", channels, ("rgb", "bgr"))
        self.cutter.check()
        return self._predict([images] if is_one_image(images) else images, total, channels)

    def _predict(self, images: Iterable[Any], total: int, channels: str) -> Iterator[Prediction]:
        decode = partial(self.decoder.convert, channels=channels)
        failures: list[Exception] = []
        remaining = as_read(images, failures)
        first = list(islice(remaining, FEW))
        count = max(total, len(images) if isinstance(images, Sequence) else len(first))
        if count < FEW:
            size = FEW if self.cutter.faces == "none" else 1  # photographs take long: each as it comes
            for at in range(0, len(first), size):
                some = first[at : at + size]
                yield from self._predict_chunk(self.runtime.few(self.preprocessing), decode, self.cutter, some)
        else:
            rest = chain(first, remaining)
            del first  # the images are not held longer than needed
            yield from self._predict_many(rest, decode, count)
        if failures:
            raise failures[0]

    def _predict_many(self, images: Iterator[Any], decode: Decode, count: int) -> Iterator[Prediction]:
        threads, many = self.runtime.threads, self.runtime.many(self.preprocessing, count, self.precision)
        cutter = self.cutter.with_threads(1)
        with many as run, ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[list[Prediction]]] = deque()
            try:
                while chunk := list(islice(images, CHUNK)):
                    waiting.append(pool.submit(self._predict_chunk, run, decode, cutter, chunk))
                    if len(waiting) > threads + 1:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:  # also if the caller stops early
                pool.shutdown(cancel_futures=True)

    def _predict_chunk(self, run: Run, decode: Decode, cutter: Cutter, images: Sequence[Any]) -> list[Prediction]:
        pixels: list[np.ndarray] = []
        logits: list[np.ndarray] = []
        predictions: list[Prediction] = []
        for image in images:
            some, cuts = read(image, decode, cutter)
            predictions += some
            pixels += cuts
            while len(pixels) >= BATCH:
                logits.append(run(np.stack(pixels[:BATCH])))
                del pixels[:BATCH]
        if pixels:
            logits.append(run(np.stack(pixels)))
        return with_logits(predictions, logits, self.shift)


def newest_model() -> str:
    """Return the model of the newest whole run below runs/, or raise a `UserError` if there is none."""
    models = sorted(Path("runs").glob(f"**/{MODEL_NAME}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for model in models:
        with suppress(OSError, ValueError):  # of a JSON that is missing or damaged, of which the model says more
            if json.loads(model.with_suffix(".json").read_text(encoding="utf-8-sig")).get("limited"):
                continue
        return str(model)
    found = f"only {MODEL_NAME} of runs on a part of the images" if models else f"no {MODEL_NAME}"
    raise UserError("not-found", f"{found} below runs/; run `{command('train')}`, or give model=FILE")


def _read_facts(facts: dict[str, Any] | None, source: str) -> tuple[Preprocessing, dict[str, float] | None]:
    if facts is None:
        return Preprocessing(), None
    try:
        usual = {field.name: field.default for field in fields(Preprocessing) if field.name not in ASKED}
        values = {**usual, **facts["preprocessing"]}  # older models have not all of them
        preprocessing = Preprocessing(**{field.name: values[field.name] for field in fields(Preprocessing)})
        if list(facts.get("classes", CLASSES)) != list(CLASSES):
            raise ValueError(f"classes {facts['classes']}")
        known = facts.get("calibration")  # older models have none
        calibration = {key: float(known[key]) for key in ("prior", "slope", "bias")} if known else None
        if calibration and not (0 < calibration["prior"] < 1 and calibration["slope"] > 0):
            raise ValueError(f"calibration {calibration}")
        return preprocessing, calibration
    except Exception as error:  # people edit these files
        raise invalid_facts(source) from error
