"""Calibration of a logit: the map to a probability, its folding into the head, and the calibration metrics.

A probability holds for one share of male images (`prior`), so the classes are weighted to it here: a male image weighs
prior / n_male, a female one (1 - prior) / n_female.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

BINS = 15
DRAWS = 200  # draws of labels for the noise floor
MIN_SLOPE = 0.01  # above 0, so that a fit never reverses the ranking


def log_odds(share: float) -> float:
    """Return log(share / (1 - share)) of a share in (0, 1)."""
    return math.log(share / (1 - share))


def fit(logits: torch.Tensor, labels: np.ndarray, smoothing: float | None = None) -> tuple[float, float]:
    """Fit a slope and bias so that sigmoid(slope * logit + bias) is the probability of male at a prior of 0.5.

    Logistic regression on the logit with equal weight for both classes. The targets are 1 - smoothing and smoothing
    instead of 1 and 0, so that the fit ends even if the classes are separable. The default 1 / (N + 2) follows Platt,
    1999, "Probabilistic outputs for support vector machines", but is the same for both classes, so that it does not
    move the bias.

    Args:
        logits: Logits (C, N) of N images in C conditions.
        labels: Labels (N), 0 or 1; both must occur.
        smoothing: Label smoothing, in [0, 0.5); None for the default.
    """
    smoothing = 1 / (len(labels) + 2) if smoothing is None else smoothing
    targets = torch.from_numpy(labels).double().clamp(smoothing, 1 - smoothing)
    weights = torch.from_numpy(class_weights(labels, 0.5))
    scale = float(logits.std()) or 1.0
    inputs = logits.double() / scale
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        outputs = (MIN_SLOPE * scale + parameters[0].exp()) * inputs + parameters[1]
        losses = binary_cross_entropy_with_logits(outputs, targets.expand_as(outputs), reduction="none")
        value = (losses.mean(0) * weights).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    log_slope, bias = parameters.tolist()
    return MIN_SLOPE + math.exp(log_slope) / scale, bias


def is_blind(calibration: Mapping[str, Any]) -> bool:
    """Return whether the fit found nothing in the logits; `calibration` is the entry of a model's JSON."""
    return bool(calibration["slope"] < 2 * MIN_SLOPE)


def fold(head: nn.Linear, slope: float, bias: float) -> None:
    """Change a head in place so that its logit becomes `slope * logit + bias`."""
    with torch.no_grad():
        head.weight *= slope
        head.bias.mul_(slope).add_(bias)


def class_weights(labels: np.ndarray, prior: float) -> np.ndarray:
    """Return weights (N) that sum to `prior`, in (0, 1), over male images and to 1 - prior over female ones."""
    n_male = labels.sum()
    return np.where(labels == 1, prior / max(1, n_male), (1 - prior) / max(1, len(labels) - n_male))


def expected_calibration_error(p_male: np.ndarray, labels: np.ndarray, prior: float) -> float:
    """Compute the expected calibration error (ECE) of p(male) in `BINS` bins of equal mass.

    It is the sum over bins of the bin's mass times |weighted share of male images - weighted mean of p_male|, in 0..1,
    with the classes of the images (N) weighted to `prior`. Binning p(male) instead of the confidence also shows a bias
    towards one class.
    """
    return float(_error(p_male, labels, class_weights(labels, prior)))


def _error(p_male: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    starts, order = _groups(p_male)
    weights = weights[..., order]
    cells = _equal_mass(np.add.reduceat(weights, starts, axis=-1))
    gaps = np.add.reduceat(weights * (labels - p_male)[..., order], starts, axis=-1)
    rows = np.arange(gaps[..., 0].size).reshape(*gaps.shape[:-1], 1)
    sums = np.bincount((BINS * rows + cells).ravel(), gaps.ravel(), minlength=BINS * rows.size)
    return np.abs(sums).reshape(*gaps.shape[:-1], BINS).sum(-1)


def bins(logits: np.ndarray, labels: np.ndarray, prior: float) -> np.ndarray:
    """Return the bin of each image (N), 0 to `BINS` - 1, as `expected_calibration_error` uses them."""
    starts, order = _groups(logits)
    weights = class_weights(labels, prior)[order]
    found = np.empty(len(order), dtype=int)
    found[order] = _equal_mass(np.add.reduceat(weights, starts)).repeat(np.diff(starts, append=len(order)))
    return found


def _groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where groups of equal values start in the sorted values (N), and the order that sorts them."""
    order = np.argsort(values, kind="stable")
    return np.flatnonzero(np.diff(values[order], prepend=-np.inf)), order


def _equal_mass(weights: np.ndarray) -> np.ndarray:
    """Return the bin of each group of equal probabilities, from sorted weights (..., G): where its middle falls."""
    middle = weights.cumsum(-1) - weights / 2
    return (BINS * middle).astype(int).clip(0, BINS - 1)


def draw_labels(
    logits: np.ndarray, labels: np.ndarray, prior: float, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Draw labels from the model's own probabilities, as if it were perfectly calibrated, with their weights.

    They are drawn at the class mixture of the data: the log-odds of the prior are replaced by those of the data. A
    label keeps the weight of its class in the data; weights from the drawn counts would hide a bias towards one class.
    The logits (N) are those at the prior, `uniform` random numbers (draws, N) in 0..1; both labels (N) must occur.

    Returns:
        Labels (draws, N), 0 or 1, and weights (draws, N) that sum to 1 in each draw.
    """
    share = labels.mean()
    drawn = uniform < _sigmoid(logits - log_odds(prior) + log_odds(share))
    weights = np.where(drawn, prior / share, (1 - prior) / (1 - share))
    return drawn.astype(float), weights / weights.sum(-1, keepdims=True)


def calibration_metrics(logits: torch.Tensor, labels: np.ndarray, prior: float) -> dict[str, float | None]:
    """Compute the calibration metrics of a set of images.

    Args:
        logits: Logits (N) at the prior.
        labels: Labels (N), 0 or 1; both must occur.
        prior: Share of male images, in (0, 1), that the classes are weighted to.

    Returns:
        ece: See `expected_calibration_error`. ece_debiased: ECE minus the noise floor, which is its mean over draws of
        labels as if the model were perfectly calibrated and each image an identity of its own; it may be negative.
        slope, intercept: Those of `fit` without smoothing on these images; 1 and 0 if nothing is left to correct, a
        slope below 1 if the model is overconfident, an intercept above 0 if it predicts female too often, None if the
        classes are separable. brier, nll: Mean squared error and negative log-likelihood.
    """
    values = logits.double().numpy()
    weights, p_male = class_weights(labels, prior), _sigmoid(values)
    ece = expected_calibration_error(p_male, labels, prior)
    uniform = np.random.default_rng(0).random((DRAWS, len(values)))
    floor = float(_error(p_male, *draw_labels(values, labels, prior, uniform)).mean())
    losses = np.logaddexp(0, np.where(labels == 1, -values, values))
    found: dict[str, float | None] = {"ece": ece, "ece_debiased": ece - floor, "slope": None, "intercept": None}
    if values[labels == 1].min() < values[labels == 0].max():
        found["slope"], found["intercept"] = fit((logits.double() - log_odds(prior))[None], labels, smoothing=0)
    found |= {"brier": float(weights @ (p_male - labels) ** 2), "nll": float(weights @ losses)}
    return {name: value if value is None else round(value, 6) for name, value in found.items()}


def coverage(logits: torch.Tensor, labels: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Compute coverage and error rate by falling confidence, from logits (N), with the classes weighted to `prior`.

    Returns:
        For each confidence, over the images of at least that confidence: their share of all images (coverage), the
        share of wrong predictions among them, and the confidence itself, in 0.5..1.
    """
    values = logits.double().numpy()
    starts, order = _groups(-np.abs(values))
    weights = class_weights(labels, prior)[order]
    wrong = ((values > 0) != (labels == 1))[order]
    ends = np.append(starts[1:], len(order)) - 1
    covered = weights.cumsum()[ends]
    return covered, (weights * wrong).cumsum()[ends] / covered, _sigmoid(np.abs(values[order][ends]))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
