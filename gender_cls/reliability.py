"""How far a model's probabilities can be believed, on clean and degraded pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gender_cls.answers import Answers
from gender_cls.calibration import BINS, bins, class_weights, coverage, figures
from gender_cls.metrics import resample
from gender_cls.views import ASKED

ERRORS = (0.01, 0.02, 0.05)  # under which the coverage is told
Numbers = dict[str, Any]


def measure_calibration(answers: Answers, calibrated: Mapping[str, Any] | None) -> Numbers | None:
    """Calibration of each of `ASKED`, as the model answers and, if it is calibrated, as its raw head did.

    Args:
        answers: Of the model.
        calibrated: Its `prior`, `slope` and `bias`; None for a raw head, which is taken at a prior of 0.5.

    Returns:
        `prior`; `model` and `raw`, the figures of each set with its bins and their means over the degradations;
        `coverage`, of the model. None where there is one label only.
    """
    if len(set(answers.labels.tolist())) < 2:
        return None
    prior = float(calibrated["prior"]) if calibrated else 0.5
    logits = answers.logits[list(ASKED.values())]
    numbers: Numbers = {"prior": prior, "model": _figures(logits, answers, prior), "raw": None}
    if calibrated:
        raw = (logits.double() - calibrated["bias"]) / calibrated["slope"]
        numbers["raw"] = _figures(raw, answers, prior)
    numbers["coverage"] = {
        name: [coverage_at(row, answers.labels, prior, error) for error in ERRORS] for name, row in zip(ASKED, logits)
    }
    return numbers


def coverage_at(logits: torch.Tensor, labels: np.ndarray, prior: float, error: float) -> Numbers:
    """The largest share of pictures, the surest ones, of which less than `error` are answered wrong.

    Args:
        logits: (N).
        labels: (N), 0 or 1, both of them there.
        prior: Share of men that the classes are weighted to.
        error: In 0..1.

    Returns:
        `error`; `coverage`, in 0..1; `confidence` of the least sure of them, in 0..1, or None if there are none.
    """
    covered, wrong, confidence = coverage(logits, labels, prior)
    under = np.flatnonzero(wrong < error)
    if not len(under):
        return {"error": error, "coverage": 0.0, "confidence": None}
    last = under[-1]
    return {"error": error, "coverage": round(float(covered[last]), 6), "confidence": round(float(confidence[last]), 6)}


def _figures(logits: torch.Tensor, answers: Answers, prior: float) -> Numbers:
    found = {name: figures(row, answers.labels, prior) for name, row in zip(ASKED, logits)}
    degraded = [values for name, values in found.items() if name != "clean"]
    mean = {name: round(float(np.mean([values[name] for values in degraded])), 6) for name in degraded[0]}
    of_bins = _bins(logits, answers.labels, answers.people, prior)
    sets: Numbers = {name: {**values, "bins": rows} for (name, values), rows in zip(found.items(), of_bins)}
    return {**sets, "mean of the seven": mean}


def _bins(logits: torch.Tensor, labels: np.ndarray, people: Sequence[str], prior: float) -> list[list[Numbers]]:
    """Mean p(male) and the share of men with its 95 % interval in each bin of each set, bins without pictures left out.

    The bins are those of the calibration error, and stay as they are when people are drawn.
    """
    cells = np.stack([bins(row.numpy(), labels, prior) for row in logits])
    drawn = _shares(resample(cells, labels, people, BINS), prior)  # (draws, S, BINS)
    with np.errstate(invalid="ignore"):
        low, high = np.nanquantile(drawn, [0.025, 0.975], axis=0)
    weights = class_weights(labels, prior)
    found = []
    for number, (row, cell) in enumerate(zip(logits.sigmoid().numpy(), cells)):
        mass = np.bincount(cell, weights, BINS)
        means = np.bincount(cell, weights * row, BINS) / mass.clip(1e-12)
        shares = np.bincount(cell, weights * labels, BINS) / mass.clip(1e-12)
        columns = {"p_male": means, "share": shares, "low": low[number], "high": high[number]}
        found.append([{k: round(float(v[b]), 6) for k, v in columns.items()} for b in range(BINS) if mass[b]])
    return found


def _shares(counts: np.ndarray, prior: float) -> np.ndarray:
    """Share of men in each bin at the prior, of counts (..., 2, BINS); not a number in an empty one."""
    female, male = np.moveaxis(counts / counts.sum(-1, keepdims=True).clip(1), -2, 0)
    with np.errstate(invalid="ignore"):
        return prior * male / (prior * male + (1 - prior) * female)
