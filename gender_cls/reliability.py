"""How far a model's probabilities can be believed, on clean and degraded pictures."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gender_cls.answers import Answers
from gender_cls.calibration import BINS, bins, class_weights, coverage, draw_labels, figures, log_odds
from gender_cls.views import ASKED

ERRORS = (0.01, 0.02, 0.05)  # under which the coverage is told
DRAWS = 1000  # of labels, for the intervals of the bins
Numbers = dict[str, Any]


def measure_calibration(answers: Answers, calibrated: Mapping[str, Any] | None) -> Numbers | None:
    """Calibration of each of `ASKED`, as the model answers and, if it is calibrated, as its raw head did.

    Args:
        answers: Of the model.
        calibrated: Its `prior`, `slope` and `bias`; None for a raw head, which is taken at a prior of 0.5.

    Returns:
        `prior`; `model` and `raw`, the figures of each set and, but for slope and intercept, their means over the
        degradations, of the raw head's logit moved by the prior's log-odds; `bins` and `coverage` of each set. None
        where there is one label only.
    """
    if len(set(answers.labels.tolist())) < 2:
        return None
    prior = float(calibrated["prior"]) if calibrated else 0.5
    logits = answers.logits[list(ASKED.values())].double()
    raw = (logits - calibrated["bias"]) / calibrated["slope"] + log_odds(prior) if calibrated else None
    curves = [coverage(row, answers.labels, prior) for row in logits]
    return {
        "prior": prior,
        "model": _figures(logits, answers.labels, prior),
        "raw": None if raw is None else _figures(raw, answers.labels, prior),
        "bins": {
            name: _bins(row, None if raw is None else raw[number], answers.labels, answers.people, prior)
            for number, (name, row) in enumerate(zip(ASKED, logits))
        },
        "coverage": {name: [coverage_at(*curve, error) for error in ERRORS] for name, curve in zip(ASKED, curves)},
    }


def coverage_at(covered: np.ndarray, wrong: np.ndarray, confidence: np.ndarray, error: float) -> Numbers:
    """The largest share of pictures, the surest ones, of which less than `error`, in 0..1, are answered wrong.

    Args:
        covered: As `coverage` gives it, like the next two.
        wrong: Share of wrong answers.
        confidence: Of the least sure.
        error: In 0..1.

    Returns:
        `error`; `coverage`, in 0..1; `confidence` of the least sure of them, in 0..1, or None if there are none.
    """
    under = np.flatnonzero(wrong < error)
    if not len(under):
        return {"error": error, "coverage": 0.0, "confidence": None}
    last = under[-1]
    return {"error": error, "coverage": round(float(covered[last]), 6), "confidence": float(confidence[last])}


def _figures(logits: torch.Tensor, labels: np.ndarray, prior: float) -> Numbers:
    found = {name: figures(row, labels, prior) for name, row in zip(ASKED, logits)}
    degraded = [values for name, values in found.items() if name != "clean"]
    signed = ("slope", "intercept")  # a mean of these would be good where they are off to both sides
    mean = {k: None if k in signed else round(float(np.mean([v[k] for v in degraded])), 6) for k in degraded[0]}
    return {**found, "mean_of_seven": mean}


def _bins(
    logits: torch.Tensor, raw: torch.Tensor | None, labels: np.ndarray, people: Sequence[str], prior: float
) -> list[Numbers]:
    """Of each bin of the calibration error mean p(male), also the raw head's, and share of men.

    `low` and `high` say where 95 % of the shares lie if the model is perfect (Bröcker and Smith, 2007, "Increasing the
    reliability of reliability diagrams"); all pictures of a person are lucky together. Intervals around the share would
    be empty where all answers are right.
    """
    cells = np.eye(BINS)[bins(logits.numpy(), labels, prior)]  # (N, BINS)
    _, person = np.unique(np.asarray(people), return_inverse=True)
    uniform = np.random.default_rng(0).random((DRAWS, int(person.max()) + 1))[:, person]
    drawn, weight = draw_labels(logits.numpy(), labels, prior, uniform)
    weights = class_weights(labels, prior)
    mass = weights @ cells
    filled = mass > 0
    shares = ((weight * drawn) @ cells / (weight @ cells).clip(1e-12))[:, filled]
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    sums = {"p_male": logits.sigmoid().numpy(), "share": labels}
    if raw is not None:
        sums["raw"] = raw.sigmoid().numpy()
    columns = {name: ((weights * values) @ cells / mass.clip(1e-12))[filled] for name, values in sums.items()}
    columns |= {"low": low, "high": high}
    return [{name: round(float(values[at]), 6) for name, values in columns.items()} for at in range(filled.sum())]
