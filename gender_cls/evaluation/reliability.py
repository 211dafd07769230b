"""Calibration of a model's probabilities on clean and corrupted images."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from gender_cls.evaluation.calibration import bins, calibration_metrics, class_weights, coverage, draw_labels, log_odds
from gender_cls.transforms.views import IN_FRAME, REPORTED

ERROR_RATES = (0.01, 0.02, 0.05)  # whose coverage is reported
DRAWS = 1000  # draws of labels for the intervals of the bins


def measure_calibration(
    logits: torch.Tensor, labels: np.ndarray, identities: Sequence[str], calibration: Mapping[str, Any] | None
) -> dict[str, Any] | None:
    """Measure the calibration in each condition of `REPORTED`, of the model and, if calibrated, of its head before.

    Args:
        logits: Logits of the model (len(CONDITIONS), N).
        labels: Labels (N), 0 or 1.
        identities: Identities of the images (N).
        calibration: The model's `prior`, `slope` and `bias`; None if it is not calibrated, for a prior of 0.5.

    Returns:
        `prior`; `model` and `uncalibrated` (None for a model that is not calibrated): the calibration metrics of each
        condition and, except for slope and intercept, their means over corruptions. The uncalibrated logit is moved by
        the prior's log-odds. `framing`: those of the model in each frame. `bins` and `coverage` of each condition. None
        if only one label is present.
    """
    if len(set(labels.tolist())) < 2:
        return None
    prior = float(calibration["prior"]) if calibration else 0.5
    frames = {s: calibration_metrics(logits[number], labels, prior) for s, number in IN_FRAME.items()}
    logits = logits[list(REPORTED.values())].double()
    before = (logits - calibration["bias"]) / calibration["slope"] + log_odds(prior) if calibration else None
    rows, coverages = {}, {}
    for at, (name, row) in enumerate(zip(REPORTED, logits)):
        rows[name] = _bins(row, None if before is None else before[at], labels, identities, prior)
        curve = coverage(row, labels, prior)
        coverages[name] = [coverage_at(*curve, rate) for rate in ERROR_RATES]
    return {
        "prior": prior,
        "model": _metrics(logits, labels, prior),
        "uncalibrated": None if before is None else _metrics(before, labels, prior),
        "framing": frames,
        "bins": rows,
        "coverage": coverages,
    }


def coverage_at(covered: np.ndarray, wrong: np.ndarray, confidence: np.ndarray, error: float) -> dict[str, Any]:
    """Find the largest coverage with an error rate below `error`, in 0..1, on the curve that `coverage` returns.

    The result has the `error`, the `coverage` and the lowest `confidence` that is covered, None if the coverage is 0.
    """
    under = np.flatnonzero(wrong < error)
    if not len(under):
        return {"error": error, "coverage": 0.0, "confidence": None}
    last = under[-1]
    return {"error": error, "coverage": round(float(covered[last]), 6), "confidence": float(confidence[last])}


def _metrics(logits: torch.Tensor, labels: np.ndarray, prior: float) -> dict[str, Any]:
    found = {name: calibration_metrics(row, labels, prior) for name, row in zip(REPORTED, logits)}
    corrupted = [values for name, values in found.items() if name != "clean"]
    signed = ("slope", "intercept")  # values that are off to both sides would average to a good one
    mean = {k: None if k in signed else round(float(np.mean([v[k] for v in corrupted])), 6) for k in corrupted[0]}
    return {**found, "mean_over_corruptions": mean}


def _bins(
    logits: torch.Tensor, before: torch.Tensor | None, labels: np.ndarray, identities: Sequence[str], prior: float
) -> list[dict[str, Any]]:
    """Return the mean p(male), also before calibration, and the share of male images of each bin of the ECE.

    `low` and `high` enclose 95 % of the shares of a perfectly calibrated model (Bröcker and Smith, 2007, "Increasing
    the reliability of reliability diagrams"); all images of an identity share one random number. Intervals around the
    observed share would be empty where all predictions are right.
    """
    index = bins(logits.numpy(), labels, prior)
    cells = np.eye(index.max() + 1)[index]
    _, owner = np.unique(np.asarray(identities), return_inverse=True)
    uniform = np.random.default_rng(0).random((DRAWS, int(owner.max()) + 1))[:, owner]
    drawn, weight = draw_labels(logits.numpy(), labels, prior, uniform)
    weights = class_weights(labels, prior)
    mass = weights @ cells
    filled = mass > 0
    shares = ((weight * drawn) @ cells / (weight @ cells).clip(1e-12))[:, filled]
    low, high = np.quantile(shares, [0.025, 0.975], axis=0)
    sums = {"p_male": logits.sigmoid().numpy(), "share": labels}
    if before is not None:
        sums["uncalibrated"] = before.sigmoid().numpy()
    columns = {name: ((weights * values) @ cells / mass.clip(1e-12))[filled] for name, values in sums.items()}
    columns |= {"low": low, "high": high}
    return [{name: round(float(values[at]), 6) for name, values in columns.items()} for at in range(filled.sum())]
