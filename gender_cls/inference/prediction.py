"""What is predicted of an image or of a face in it."""

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from gender_cls.errors import ImageError, UserError, reason
from gender_cls.inference.cutting import Cut, Cutter
from gender_cls.labels import CLASSES

CUT_OFF = "the file is cut off or damaged; what is there was decoded"
Decode = Callable[[Any], Image.Image]


@dataclass(frozen=True, slots=True)
class Prediction:
    """Prediction for an image, or for one face in it.

    Attributes:
        path: Path as it was given; empty for an image given as an object.
        p_male: Probability of male, 0 to 1; None if there is no prediction.
        error: Reason why the image could not be read or predicted; empty otherwise.
        note: Remark on a prediction of which not the whole image is the base; usually empty.
        instead: no face or too small, if that is why there is no prediction; empty otherwise.
        face: Number of the face in the image, from 1, left to right; 0 if the whole image is predicted, or has no face.
        faces: Number of faces of the image that have a prediction or a reason; 0 if none was found or looked for.
        box: Left, top, width and height of the face in pixels of the upright image; None without a face.
        score: How sure the detector is of the face, in 0..1; None without a face.
    """

    path: str
    p_male: float | None = None
    error: str = ""
    note: str = ""
    instead: str = ""
    face: int = 0
    faces: int = 0
    box: tuple[float, float, float, float] | None = None
    score: float | None = None

    @property
    def label(self) -> str:
        """Label, `male` if p_male > 0.5, else `female`; `instead` without a prediction; empty after an error."""
        return self.instead if self.p_male is None else CLASSES[self.p_male > 0.5]

    @property
    def confidence(self) -> float | None:
        """Probability of the label in %, 50 to 100; None without a prediction."""
        return None if self.p_male is None else 100 * max(self.p_male, 1 - self.p_male)


def read(image: Any, decode: Decode, cutter: Cutter) -> tuple[list[Prediction], list[np.ndarray]]:
    """Return the predictions for an image, still without probabilities, and the inputs of the network for them."""
    path = ""
    try:
        path = os.fsdecode(image) if isinstance(image, str | os.PathLike) else ""
        decoded = decode(image)
    except ImageError as error:
        return [Prediction(path, error=str(error))], []
    except Exception as error:  # of the path that an object gives
        return [Prediction(path, error=f"not an image: {type(image).__name__} ({reason(error)})")], []
    try:
        cuts = list(cutter.cut(decoded))
    except UserError:  # the detector can't be loaded
        raise
    except MemoryError:
        return [Prediction(path, error="too large for this machine's memory")], []
    except Exception as error:  # ONNX Runtime has exceptions of its own
        return [Prediction(path, error=f"can't be predicted: {reason(error)}")], []
    note = CUT_OFF if decoded.info.get("truncated") else ""
    return [_of_cut(cut, path, note) for cut in cuts], [cut.pixels for cut in cuts if cut.pixels is not None]


def with_logits(predictions: Sequence[Prediction], logits: Sequence[np.ndarray], shift: float) -> list[Prediction]:
    """Return predictions with the probabilities of batches of logits, moved by `shift`; errors and others stay."""
    with np.errstate(over="ignore"):
        found = iter([p for some in logits for p in (1 / (1 + np.exp(-some.astype(float) - shift))).tolist()])
    return [each if each.error or each.instead else _with_p_male(each, next(found)) for each in predictions]


def _with_p_male(prediction: Prediction, p_male: float) -> Prediction:
    error = "the output of the model is not a number"
    return replace(prediction, error=error) if math.isnan(p_male) else replace(prediction, p_male=p_male)


def _of_cut(cut: Cut, path: str, note: str) -> Prediction:
    face = cut.face
    place = (None, None) if face is None else (face.box, face.score)
    return Prediction(path, None, "", note, cut.instead, cut.number, cut.count, *place)
