"""Classification metrics and their bootstrap intervals. Class 0 is female, class 1 male; macro is their plain mean."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torchmetrics import ClasswiseWrapper, Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score, MulticlassPrecision, MulticlassRecall
from torchmetrics.functional.classification import binary_auroc

from gender_cls.labels import CLASSES

RESAMPLES = 2000
INTERVALS = ("f1_macro", "f1_female", "f1_male", "recall_female", "recall_male")


def metric_collection() -> MetricCollection:
    """Return precision, recall and F1 (per class and macro) and accuracy, to update with predictions and labels (N)."""
    metrics: dict[str, Metric | MetricCollection] = {}
    for name, kind in (("precision", MulticlassPrecision), ("recall", MulticlassRecall), ("f1", MulticlassF1Score)):
        metrics[f"{name}_macro"] = kind(num_classes=2, average="macro")
        metrics[name] = ClasswiseWrapper(kind(num_classes=2, average=None), labels=list(CLASSES), prefix=f"{name}_")
    metrics["accuracy"] = MulticlassAccuracy(num_classes=2, average="micro")
    # torchmetrics 1.9 shares state between wrapped metrics, but after a reset updates only one of them
    return MetricCollection(metrics, compute_groups=False)


def auroc(probabilities: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Return the area under the ROC curve, or None if only one label is present."""
    return round(float(binary_auroc(probabilities, labels.long())), 6) if 0 < labels.sum() < len(labels) else None


def confusion(predictions: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Count predictions (N) and labels (N) in a (2, 2) matrix whose rows are labels and columns predictions."""
    return np.bincount(2 * labels.astype(int) + predictions.astype(int), minlength=4).reshape(2, 2)


def class_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Compute precision, recall and F1 = 2 TP / (2 TP + FP + FN), per class and macro, and accuracy; 0 / 0 is 0.

    Args:
        counts: Confusion counts (..., 2, 2); rows are labels, columns predictions.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    scores = {
        "f1": _divide(2 * hits, counts.sum(-1) + counts.sum(-2)),
        "precision": _divide(hits, counts.sum(-2)),
        "recall": _divide(hits, counts.sum(-1)),
    }
    values = {"accuracy": _divide(hits.sum(-1), counts.sum((-2, -1)))}
    for name, per_class in scores.items():
        values[f"{name}_macro"] = per_class.mean(-1)
        values |= {f"{name}_{label}": per_class[..., at] for at, label in enumerate(CLASSES)}
    return values


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)


def resample(predictions: np.ndarray, labels: np.ndarray, identities: Sequence[str]) -> np.ndarray:
    """Draw bootstrap samples of identities, each with all its images in all sets.

    Images of one identity are not independent, so drawing images would give too narrow an interval (Field and
    Welsh, 2007, "Bootstrapping clustered data"). The sets share the draws, so differences between them are paired.

    Args:
        predictions: Predicted classes (S, N) in S sets, 0 or 1.
        labels: Labels (N), 0 or 1.
        identities: Identities of the images (N).

    Returns:
        Confusion counts (RESAMPLES, S, 2, 2).
    """
    _, owner = np.unique(np.asarray(identities), return_inverse=True)
    number, sets = int(owner.max()) + 1, len(predictions)
    counts = np.zeros((number, sets * 4), np.float32)  # whole numbers below 2**24, which a fast product keeps exact
    for at, row in enumerate(predictions):
        np.add.at(counts, (owner, 4 * at + 2 * labels.astype(int) + row.astype(int)), 1)
    kinds, frequency = np.unique(counts, axis=0, return_counts=True)  # identities with equal counts are drawn as one
    generator = np.random.default_rng(0)
    draws = [  # a few at a time: for many identities the draws are large
        generator.multinomial(number, frequency / number, size=RESAMPLES // 100).astype(np.float32) @ kinds
        for _ in range(100)
    ]
    return np.concatenate(draws).reshape(RESAMPLES, sets, 2, 2)


class Evaluation:
    """Metrics of several sets of predictions for the same images, such as clean and corrupted ones.

    Args:
        probabilities: Probabilities of male (S, N), in 0..1; male is predicted above 0.5.
        labels: Labels (N), 0 or 1.
        identities: Identities of the images (N).
    """

    def __init__(self, probabilities: torch.Tensor, labels: np.ndarray, identities: Sequence[str]) -> None:
        predictions = (probabilities > 0.5).numpy()
        self.counts = np.stack([confusion(row, labels) for row in predictions])
        self.values = class_scores(self.counts)
        self.resampled = class_scores(resample(predictions, labels, identities))
        self.auroc = [auroc(row, torch.from_numpy(labels)) for row in probabilities]
        self.images, self.identities = len(labels), len(set(identities))

    def metrics(self, *sets: int) -> dict[str, Any]:
        """Average metrics over sets, with 95 % intervals (`..._ci95`); a single set also has its confusion counts.

        If a label has no image, its metrics and the macro ones are None.
        """
        chosen = list(sets)
        found: dict[str, Any] = {name: round(float(row[chosen].mean()), 6) for name, row in self.values.items()}
        for name in INTERVALS:
            ends = np.quantile(self.resampled[name][:, chosen].mean(1), [0.025, 0.975])
            found[f"{name}_ci95"] = [round(float(end), 6) for end in ends]
        absent = [name for name, number in zip(CLASSES, self.counts[0].sum(1)) if not number]
        for name in found:  # a metric that no image can show is not zero
            if absent and any(part in ("macro", *absent) for part in name.split("_")):
                found[name] = None
        areas = [area for at in chosen if (area := self.auroc[at]) is not None]
        found["auroc"] = round(float(np.mean(areas)), 6) if areas else None
        found |= {"images": self.images, "identities": self.identities}
        return found | ({"confusion": self.counts[chosen[0]].tolist()} if len(chosen) == 1 else {})
