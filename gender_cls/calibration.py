"""What makes a logit mean something: the map to a probability, its folding into the head, and how far off it is.

A probability is for a share of men among the pictures (`prior`), so classes are weighted to it here: a picture weighs
prior / n_male or (1 - prior) / n_female.
"""

import math
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


def fit(logits: torch.Tensor, labels: np.ndarray) -> tuple[float, float]:
    """Slope and bias, so that sigmoid(slope * logit + bias) is the probability of male among as many women as men.

    Logistic regression on the logit, with targets (n_male + 1) / (n_male + 2) and 1 / (n_female + 2) in the place of 1
    and 0, so that it ends also where the classes are apart (Platt, 1999, "Probabilistic outputs for support vector
    machines"); each class weighs a half.

    Args:
        logits: (C, N), of N pictures in C conditions.
        labels: (N), 0 or 1, both of them there.
    """
    n_female, n_male = np.bincount(labels, minlength=2).tolist()
    targets = torch.where(torch.from_numpy(labels) == 1, (n_male + 1) / (n_male + 2), 1 / (n_female + 2)).double()
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


def fold(head: nn.Linear, slope: float, bias: float) -> None:
    """Change a head, so that its logit is `slope * logit + bias` of what it was."""
    with torch.no_grad():
        head.weight *= slope
        head.bias.mul_(slope).add_(bias)


def compare(logits: torch.Tensor, labels: np.ndarray, slope: float, bias: float, prior: float) -> dict[str, Any]:
    """The `figures` of a raw head's logits (N), and of what the map makes of them."""
    return {"raw": figures(logits, labels, prior), "calibrated": figures(slope * logits + bias, labels, prior)}


def class_weights(labels: np.ndarray, prior: float) -> np.ndarray:
    """Weights of pictures; those of a row sum to 1, those of its men to `prior`.

    Args:
        labels: (..., N), 0 or 1, or false or true.
        prior: Share of men, in (0, 1).
    """
    n_male = labels.sum(-1, keepdims=True)
    n_female = labels.shape[-1] - n_male
    return np.where(labels == 1, prior / n_male.clip(1), (1 - prior) / n_female.clip(1))


def calibration_error(p_male: np.ndarray, labels: np.ndarray, prior: float) -> np.ndarray:
    """Expected calibration error of p(male) in `BINS` bins of equal mass.

    The sum over bins of |weighted share of men - weighted mean of p_male| times the bin's mass. Bins of p(male), not
    of the confidence, see a bias too.

    Args:
        p_male: (N), in 0..1.
        labels: (..., N), 0 or 1; rows are alternatives.
        prior: Share of men that the classes are weighted to.

    Returns:
        (...), in 0..1.
    """
    order = np.argsort(p_male, kind="stable")
    p_male, labels = p_male[order], labels[..., order]
    weights = class_weights(labels, prior)
    rows = np.arange(weights[..., 0].size).reshape(*labels.shape[:-1], 1)
    cells = (BINS * rows + _equal_mass(weights)).ravel()
    sums = np.bincount(cells, (weights * (labels - p_male)).ravel(), minlength=BINS * rows.size)
    return np.abs(sums).reshape(*labels.shape[:-1], BINS).sum(-1)


def bins(logits: np.ndarray, labels: np.ndarray, prior: float) -> np.ndarray:
    """The bin of each picture (N), as `calibration_error` takes them."""
    order = np.argsort(logits, kind="stable")
    found = np.empty(len(order), dtype=int)
    found[order] = _equal_mass(class_weights(labels, prior)[order])
    return found


def _equal_mass(weights: np.ndarray) -> np.ndarray:
    """The bin, 0 to `BINS` - 1, of each picture, of weights (..., N) in the order of the probabilities."""
    middle = weights.cumsum(-1) - weights / 2
    return (BINS * middle).astype(int).clip(0, BINS - 1)


def noise_floor(logits: np.ndarray, labels: np.ndarray, prior: float) -> float:
    """The mean calibration error of a perfect model on so many pictures: of labels drawn from its own probabilities.

    They are drawn at the mixture of the data, where log-odds are those at the prior, less the prior's, plus the data's.
    """
    share = (labels.sum() + 0.5) / (len(labels) + 1)
    here = _sigmoid(logits - log_odds(prior) + log_odds(share))
    drawn = np.random.default_rng(0).random((DRAWS, len(logits))) < here
    return float(calibration_error(_sigmoid(logits), drawn, prior).mean())


def figures(logits: torch.Tensor, labels: np.ndarray, prior: float) -> dict[str, float]:
    """How far off the probabilities of a set of pictures are.

    Args:
        logits: (N), which answer for a share of men of `prior`.
        labels: (N), 0 or 1, both of them there.
        prior: In (0, 1); classes are weighted to it.

    Returns:
        error: See `calibration_error`. error_corrected: less the noise floor; a perfect model has 0 on average, so it
        may be negative. slope, intercept: of `fit` on these pictures; 1 and 0 where nothing is left to correct, a slope
        below 1 where the model is too sure of itself, an intercept above 0 where it says female too often. brier, nll:
        mean squared error and negative log-likelihood.
    """
    values = logits.double().numpy()
    weights, p_male = class_weights(labels, prior), _sigmoid(values)
    error, floor = float(calibration_error(p_male, labels, prior)), noise_floor(values, labels, prior)
    slope, intercept = fit((logits.double() - log_odds(prior))[None], labels)
    losses = np.logaddexp(0, np.where(labels == 1, -values, values))
    found = {"error": error, "error_corrected": error - floor, "slope": slope, "intercept": intercept}
    found |= {"brier": float(weights @ (p_male - labels) ** 2), "nll": float(weights @ losses)}
    return {name: round(value, 6) for name, value in found.items()}


def coverage(logits: torch.Tensor, labels: np.ndarray, prior: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What answering only the surest pictures gives, of logits (N), classes weighted to `prior`.

    Returns:
        (N) each, by falling confidence, of a picture and all surer ones: the share that they are of all, the share of
        wrong answers among them, and its confidence, in 0.5..1.
    """
    values = logits.double().numpy()
    order = np.argsort(-np.abs(values), kind="stable")
    weights = class_weights(labels, prior)[order]
    wrong = ((values > 0) != (labels == 1))[order]
    covered = weights.cumsum()
    return covered, (weights * wrong).cumsum() / covered, _sigmoid(np.abs(values[order]))


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))
