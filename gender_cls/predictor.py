"""Predictor: pictures in, labels and probabilities out."""

import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gender_cls import CLASSES
from gender_cls.errors import UserError
from gender_cls.images import Picture, PictureError, as_rgb
from gender_cls.runtimes import UNCLEAR, OnnxRuntime, Run, TorchRuntime
from gender_cls.transforms import Preprocessing

if TYPE_CHECKING:
    from gender_cls.network import GenderNet

MODEL_NAME = "Binary_Classification_model.pth"
FEW = 64  # fewer pictures are answered in fp32, at once
CHUNK = 16  # pictures that a thread decodes and asks about at once


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one file.

    Attributes:
        path: As it was given; empty for a picture that was given itself.
        p_male: The model's probability of male in 0..1; None where there was an error.
        error: Why there is no answer; empty where there is one.
    """

    path: str
    p_male: float | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """`male` where p_male > 0.5, else `female`; empty where there was an error."""
        if self.p_male is None:
            return ""
        return CLASSES[self.p_male > 0.5]

    @property
    def confidence(self) -> float | None:
        """Probability of the label in %, 50..100; None where there was an error."""
        return None if self.p_male is None else 100 * max(self.p_male, 1 - self.p_male)


class Predictor:
    """A trained model with its preprocessing.

        predictor = Predictor("Binary_Classification_model.pth")
        for answer in predictor.predict(["photo.jpg", picture, array]):
            print(answer.label, answer.confidence)

    Args:
        model: A `Binary_Classification_model.pth`, or a `.safetensors` or `.onnx` made of one. The preprocessing of a
            `.pth` is read from the JSON of the same name beside it; without one, the recipe's is assumed and
            `assumed_preprocessing` is true.
        prior: Share of men, in (0, 1), to answer for in the place of the one that the model is calibrated to.
        precision: auto, which is fp32 for fewer than `FEW` pictures and bf16 for more where the hardware computes with
            it (probabilities differ by less than 0.01, mostly by less than 0.004), or fp32.

    Attributes:
        preprocessing: Of the model.
        facts: What its JSON says; empty where there is none.
        note: What to beware of, to be said after the model's name.
        calibration: The model's `prior`, and `slope` and `bias` of its raw head's logit; None if it is not calibrated.

    Raises:
        UserError: the model is missing, damaged, another network's or a pickle (which is never executed); or a prior is
            given, and it is no share or the model not calibrated.
    """

    def __init__(self, model: str | os.PathLike[str], prior: float | None = None, precision: str = "auto") -> None:
        source = f"model={os.fspath(model)}"
        if not os.path.isfile(model):
            raise UserError(f"{source}: no such file; train one with `python train.py`, or give another")
        if precision not in ("auto", "fp32"):
            raise UserError(f"precision={precision}: give auto or fp32")
        self.source, self.precision = source, precision
        self.runtime = OnnxRuntime(model, source) if Path(model).suffix == ".onnx" else TorchRuntime(model, source)
        self.assumed_preprocessing = self.runtime.facts is None
        self.facts: dict[str, Any] = self.runtime.facts or {}
        self.preprocessing, self.calibration = _understood(self.runtime.facts, self.runtime.told_by)
        self.shift = 0.0
        if prior is not None:
            if not 0 < prior < 1:
                raise UserError(f"prior={prior}: give a share of men above 0 and below 1, such as 0.8")
            if self.calibration is None:
                raise UserError(
                    f"prior={prior} needs a calibrated model, and {source} is none; train one, not in a sweep"
                )
            known = self.calibration["prior"]
            self.shift = math.log(prior / (1 - prior)) - math.log(known / (1 - known))
        self.note = (
            ", without its JSON beside it: the recipe's preprocessing is assumed" if self.assumed_preprocessing else ""
        )
        if self.calibration:
            self.note += f", calibrated for a share of men of {prior or self.calibration['prior']:.2g}"
        elif not self.assumed_preprocessing:
            self.note += ", not calibrated: its confidence is a score"

    @property
    def network(self) -> "GenderNet":
        """The network of a `.pth` or `.safetensors`.

        Raises:
            UserError: the model is ONNX.
        """
        if isinstance(self.runtime, TorchRuntime):
            return self.runtime.network
        raise UserError(f"{self.source} has no network of torch; give the .pth that it was made of")

    def predict(self, pictures: Picture | Iterable[Picture], total: int = 0) -> Iterator[Prediction]:
        """Answer for each picture in order; what is no picture gets its error.

        Decoding and the network share the cores, which are torch's own meanwhile; of many pictures 64 are held at a
        time, or 16 for each core and some.

        Args:
            pictures: One or many: paths; pictures of Pillow; RGB arrays (H, W), (H, W, 3) or (H, W, 4), or tensors
                (3, H, W), of uint8 or of floats in 0..1.
            total: Pictures of which these are the last, where others were answered before.
        """
        if isinstance(pictures, str | os.PathLike | Image.Image) or 2 <= getattr(pictures, "ndim", 0) <= 3:
            pictures = [pictures]
        remaining = iter(pictures)
        first = list(islice(remaining, FEW))
        number = max(total, len(pictures) if isinstance(pictures, Sequence) else len(first))
        if number < FEW:
            yield from self._answer(self.runtime.few(self.preprocessing), first)
            return
        many = self.runtime.many(self.preprocessing, number, self.precision)
        with many as run, ThreadPoolExecutor(self.runtime.threads) as pool:
            waiting: deque[Future[list[Prediction]]] = deque()
            everything = chain(first, remaining)
            del first
            try:
                while chunk := list(islice(everything, CHUNK)):
                    waiting.append(pool.submit(self._answer, run, chunk))
                    if len(waiting) > self.runtime.threads + 1:
                        yield from waiting.popleft().result()
                while waiting:
                    yield from waiting.popleft().result()
            finally:  # also where nobody wants the rest
                pool.shutdown(cancel_futures=True)

    def _answer(self, run: Run, pictures: Sequence[Picture]) -> list[Prediction]:
        pixels, answers = [], []
        for picture in pictures:
            path = os.fspath(picture) if isinstance(picture, str | os.PathLike) else ""
            try:
                pixels.append(self.preprocessing.pixels(as_rgb(picture)))
                answers.append(Prediction(path))
            except PictureError as error:
                answers.append(Prediction(path, error=str(error)))
            except MemoryError:
                answers.append(Prediction(path, error="too large for this machine's memory"))
        if pixels:
            logits = run(np.stack(pixels)).astype(float) + self.shift
            with np.errstate(over="ignore"):
                probabilities = iter((1 / (1 + np.exp(-logits))).tolist())
            answers = [answer if answer.error else _with(answer, next(probabilities)) for answer in answers]
        return answers


def newest_model() -> str:
    """The model of the newest run below runs/.

    Raises:
        UserError: there is none.
    """
    models = sorted(Path("runs").glob(f"**/{MODEL_NAME}"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise UserError(f"no {MODEL_NAME} below runs/; train one with `python train.py`, or give model=FILE")
    return str(models[-1])


def _with(answer: Prediction, p_male: float) -> Prediction:
    if math.isnan(p_male):
        return replace(answer, error="the model's answer is not a number")
    return replace(answer, p_male=p_male)


def _understood(facts: dict[str, Any] | None, source: str) -> tuple[Preprocessing, dict[str, float] | None]:
    """Preprocessing and calibration that a model's JSON names."""
    if facts is None:
        return Preprocessing(), None
    try:
        values = facts["preprocessing"]
        size, interpolation, mean, std = (values[key] for key in ("size", "interpolation", "mean", "std"))
        crop, median = values.get("crop", 1.0), values.get("median", False)  # older models have none
        red, green, blue = map(float, mean)
        scales = tuple(float(value) for value in std)
        preprocessing = Preprocessing(size, crop, median, interpolation, (red, green, blue), scales)  # type: ignore[arg-type]
        finite = all(map(math.isfinite, (red, green, blue, *scales)))
        if preprocessing.pixels(Image.new("RGB", (2, 2))).shape != (3, size, size):
            raise ValueError(f"{values}")
        if not finite or len(scales) != 3 or min(scales) <= 0 or list(facts.get("classes", CLASSES)) != list(CLASSES):
            raise ValueError(f"{facts}")
        known = facts.get("calibration")  # older models have none
        calibration = {key: float(known[key]) for key in ("prior", "slope", "bias")} if known else None
        if calibration and not (0 < calibration["prior"] < 1 and calibration["slope"] > 0):
            raise ValueError(f"calibration {calibration}")
        return preprocessing, calibration
    except Exception as error:  # whatever somebody wrote there
        raise UserError(UNCLEAR.format(source)) from error
