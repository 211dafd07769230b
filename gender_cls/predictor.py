"""Predictor: picture files in, labels and probabilities out."""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from gender_cls import CLASSES
from gender_cls.calibration import fold, log_odds
from gender_cls.errors import UserError
from gender_cls.export import MODEL_NAME
from gender_cls.images import PictureError, load_rgb
from gender_cls.network import GenderNet, read_state_dict
from gender_cls.transforms import Preprocessing

BATCH = 32
ASSUMED = ", without its JSON: the recipe's preprocessing is assumed"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer for one file.

    Attributes:
        path: As it was given.
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

    Args:
        model: A `Binary_Classification_model.pth`. Its preprocessing is read from the JSON of the same name beside it;
            without one, the recipe's is assumed and `assumed_preprocessing` is true.
        prior: Share of men, in (0, 1), to answer for in the place of the one that the model is calibrated to.

    Attributes:
        note: What to beware of, to be said after the model's name.
        calibration: The model's `prior`, and `slope` and `bias` of its raw head's logit; None if it is not calibrated.

    Raises:
        UserError: the model is missing, damaged, another network's or a pickle (which is never executed); or a prior is
            given, and it is no share or the model not calibrated.
    """

    def __init__(self, model: str | os.PathLike[str], prior: float | None = None) -> None:
        source = f"model={os.fspath(model)}"
        if not os.path.isfile(model):
            raise UserError(f"{source}: no such file; train one with `python train.py`, or give another")
        state = read_state_dict(model, source)
        self.network = GenderNet(weights=None)
        self.network.load_resnet18_state(state, source)
        self.network.eval()
        file = Path(model).with_suffix(".json")
        self.assumed_preprocessing = not file.exists()
        self.facts: dict[str, Any] = {}
        self.preprocessing = Preprocessing()
        self.calibration: dict[str, float] | None = None
        if not self.assumed_preprocessing:
            self.facts, self.preprocessing, self.calibration = _read_facts(file)
        if prior is not None:
            if not 0 < prior < 1:
                raise UserError(f"prior={prior}: give a share of men above 0 and below 1, such as 0.8")
            if self.calibration is None:
                raise UserError(
                    f"prior={prior} needs a calibrated model, and {source} is none; train one, not in a sweep"
                )
            fold(self.network.head, 1.0, log_odds(prior) - log_odds(self.calibration["prior"]))
        self.note = ASSUMED if self.assumed_preprocessing else ""
        if self.calibration:
            self.note += f", calibrated for a share of men of {prior or self.calibration['prior']:.2g}"
        else:
            self.note += ", not calibrated: its confidence is a score"

    def predict(self, paths: Iterable[str]) -> Iterator[Prediction]:
        """Answer for each file in order; one that is no picture gets its error."""
        remaining = iter(paths)
        while batch := list(islice(remaining, BATCH)):
            yield from self._answer(batch)

    def _answer(self, paths: list[str]) -> Iterator[Prediction]:
        views, errors = [], {}
        for place, path in enumerate(paths):
            try:
                views.append(self.preprocessing.resize(load_rgb(path)))
            except PictureError as error:
                errors[place] = str(error)
        probabilities: Iterator[float] = iter(())
        if views:
            with torch.inference_mode():
                probabilities = iter(self.network(self.preprocessing.normalize(torch.stack(views))).sigmoid().tolist())
        for place, path in enumerate(paths):
            if place in errors:
                yield Prediction(path, error=errors[place])
            else:
                yield Prediction(path, p_male=next(probabilities))


def newest_model() -> str:
    """The model of the newest run below runs/.

    Raises:
        UserError: there is none.
    """
    models = sorted(Path("runs").glob(f"**/{MODEL_NAME}"), key=lambda path: path.stat().st_mtime)
    if not models:
        raise UserError(f"no {MODEL_NAME} below runs/; train one with `python train.py`, or give model=FILE")
    return str(models[-1])


def _read_facts(file: Path) -> tuple[dict[str, Any], Preprocessing, dict[str, float] | None]:
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        values = facts["preprocessing"]
        size, interpolation, mean, std = (values[key] for key in ("size", "interpolation", "mean", "std"))
        crop, median = values.get("crop", 1.0), values.get("median", False)  # older models have none
        preprocessing = Preprocessing(size, crop, median, interpolation, tuple(mean), tuple(std))
        if preprocessing.normalize(preprocessing.resize(Image.new("RGB", (2, 2)))).shape == (3, size, size):
            known = facts.get("calibration")  # older models have none
            calibration = {key: float(known[key]) for key in ("prior", "slope", "bias")} if known else None
            if calibration and not (0 < calibration["prior"] < 1 and calibration["slope"] > 0):
                raise ValueError(f"calibration {calibration}")
            return facts, preprocessing, calibration
        raise ValueError(f"size {size}")
    except Exception as error:  # whatever somebody wrote there
        raise UserError(
            f"{file} does not say the model's preprocessing and calibration; mend it, or delete it to assume the "
            "recipe's preprocessing"
        ) from error
