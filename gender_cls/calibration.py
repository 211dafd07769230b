"""What makes a logit mean something: the map to a probability, its folding into the head, and how far off it is.

A probability is for a share of men among the pictures (`prior`), so classes are weighted to it here: a picture weighs
prior / n_male or (1 - prior) / n_female.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

BINS = 15
DRAWS = 200  # of labels, for the noise floor
LEAST_SLOPE = 0.01  # above 0, so that a fit never turns the ranking round


def log_odds(share: float) -> float:
    """log(share / (1 - share)) of a share in (0, 1)."""
    return math.log(share / (1 - share))


def fit(logits: torch.Tensor, labels: np.ndarray, smoothing: float | None = None) -> tuple[float, float]:
    """Slope and bias, so that sigmoid(slope * logit + bias) is the probability of male among as many women as men.

    Logistic regression on the logit, each class weighing a half, with targets 1 - smoothing and smoothing in the place
    of 1 and 0, so that it ends also where the classes are apart: by default 1 / (N + 2), as of Platt, 1999,
    "Probabilistic outputs for support vector machines", but the same for both classes, which leaves the bias alone.

    Args:
        logits: (C, N), of N pictures in C conditions.
        labels: (N), 0 or 1, both of them there.
        smoothing: In [0, 0.5).
    """
    least = 1 / (len(labels) + 2) if smoothing is None else smoothing
    targets = torch.from_numpy(labels).double().clamp(least, 1 - least)
    weights = torch.from_numpy(class_weights(labels, 0.5))
    scale = float(logits.std()) or 1.0
    inputs = logits.double() / scale
    parameters = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        outputs = (LEAST_SLOPE * scale + parameters[0].exp()) * inputs + parameters[1]
        losses = binary_cross_entropy_with_logits(outputs, targets.expand_as(outputs), reduction="none")
        value = (losses.mean(0) * weights).sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    log_slope, bias = parameters.tolist()
    return LEAST_SLOPE + math.exp(log_slope) / scale, bias


def is_blind(calibration: Mapping[str, Any]) -> bool:
    """Whether the fit found nothing in the logits; `calibration` is that entry of a model's JSON."""
    return bool(calibration["slope"] < 2 * LEAST_SLOPE)


def fold(head: nn.Linear, slope: float, bias: float) -> None:
    """Change a head, so that its logit is `slope * logit + bias` of what it was."""
    with torch.no_grad():
        head.weight *= slope
        head.bias.mul_(slope).add_(bias)


def class_weights(labels: np.ndarray, prior: float) -> np.ndarray:
    """Weights of pictures, of labels (N): those of men sum to `prior`, in (0, 1), those of women to the rest."""
    n_male = labels.sum()
    return np.where(labels == 1, prior / max(1, n_male), (1 - prior) / max(1, len(labels) - n_male))


def calibration_error(p_male: np.ndarray, labels: np.ndarray, prior: float) -> float:
    """Expected calibration error of p(male) in `BINS` bins of equal mass.

    The sum over bins of |weighted share of men - weighted mean of p_male| times the bin's mass. Bins of p(male), not
    of the confidence, see a bias too.

    Args:
        p_male: (N), in 0..1.
        labels: (N), 0 or 1.
        prior: Share of men that the classes are weighted to.

    Returns:
        In 0..1.
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
    """The bin, 0 to `BINS` - 1, of each picture (N), as `calibration_error` takes them."""
    starts, order = _groups(logits)
    weights = class_weights(labels, prior)[order]
    found = np.empty(len(order), dtype=int)
    found[order] = _equal_mass(np.add.reduceat(weights, starts)).repeat(np.diff(starts, append=len(order)))
    return found


def _groups(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where groups of equal values start in the sorted values (N), and the order that sorts them."""
    order = np.argsort(values, kind="stable")
    return np.flatnonzero(np.diff(values[order], prepend=-np.inf)), order


def _equal_mass(weights: np.ndarray) -> np.ndarray:
    """The bin of each group of equal probabilities, of their weights (..., G) in order: where its middle falls."""
    middle = weights.cumsum(-1) - weights / 2
    return (BINS * middle).astype(int).clip(0, BINS - 1)


def draw_labels(
    logits: np.ndarray, labels: np.ndarray, prior: float, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What the labels could be if the model were perfect, drawn with its own probabilities, and their weights.

    They are drawn at the mixture of the data, where log-odds are those at the prior, less the prior's, plus the data's.
    A label weighs what it does in the data: classes weighted by what is drawn would hide that a model favours one.

    Args:
        logits: (N), at the prior.
        labels: (N), for the mixture, both of them there.
        prior: In (0, 1).
        uniform: (draws, N), random numbers in 0..1.

    Returns:
        (draws, N) each: 0 or 1; weights that sum to 1.
    """
    share = labels.mean()
    drawn = uniform < _sigmoid(logits - log_odds(prior) + log_odds(share))
    weights = np.where(drawn, prior / share, (1 - prior) / (1 - share))
    return drawn.astype(float), weights / weights.sum(-1, keepdims=True)


def noise_floor(logits: np.ndarray, labels: np.ndarray, prior: float) -> float:
    """The mean calibration error of a perfect model on so many pictures, as if each were another person."""
    uniform = np.random.default_rng(0).random((DRAWS, len(logits)))
    return float(_error(_sigmoid(logits), *draw_labels(logits, labels, prior, uniform)).mean())


def figures(logits: torch.Tensor, labels: np.ndarray, prior: float) -> dict[str, float | None]:
    """How far off the probabilities of a set of pictures are.

    Args:
        logits: (N), which answer for a share of men of `prior`.
        labels: (N), 0 or 1, both of them there.
        prior: In (0, 1); classes are weighted to it.

    Returns:
        error: See `calibration_error`. error_corrected: less the noise floor; a perfect model has 0 on average, so it
        may be negative. slope, intercept: of `fit` without smoothing on these pictures; 1 and 0 where nothing is left
        to correct, a slope below 1 where the model is too sure of itself, an intercept above 0 where it says female too
        often, None where the classes are apart. brier, nll: mean squared error and negative log-likelihood.
    """
    values = logits.double().numpy()
    weights, p_male = class_weights(labels, prior), _sigmoid(values)
    error, floor = calibration_error(p_male, labels, prior), noise_floor(values, labels, prior)
    losses = np.logaddexp(0, np.where(labels == 1, -values, values))
    found: dict[str, float | None] = {
        "error": error,
        "error_corrected": error - floor,
        "slope": None,
        "intercept": None,
    }
    if values[labels == 1].min() < values[labels == 0].max():
        found["slope"], found["intercept"] = fit((logits.double() - log_odds(prior))[None], labels, smoothing=0)
    found |= {"brier": float(weights @ (p_male - labels) ** 2), "nll": float(weights @ losses)}
    return {name: value if value is None else round(value, 6) for name, value in found.items()}


def coverage(logits: torch.Tensor, labels: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What answering only the surest pictures gives, of logits (N), classes weighted to `prior`.

    Returns:
        By falling confidence, of all pictures of at least that confidence: the share that they are of all, the share of
        wrong answers among them, and the confidence, in 0.5..1.
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
