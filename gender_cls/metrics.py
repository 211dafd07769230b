"""What is measured, and its interval. Class 0 is female, class 1 male; macro is their plain mean."""

from collections.abc import Sequence

import numpy as np
import torch
from torchmetrics import ClasswiseWrapper, Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    MulticlassAccuracy,
    MulticlassF1Score,
    MulticlassPrecision,
    MulticlassRecall,
)

from gender_cls import CLASSES

RESAMPLES = 2000


def collection() -> MetricCollection:
    """Precision, recall and F1 of each class and macro, and accuracy; to update with answers and labels (N), 0 or 1."""
    metrics: dict[str, Metric | MetricCollection] = {}
    for name, kind in (("precision", MulticlassPrecision), ("recall", MulticlassRecall), ("f1", MulticlassF1Score)):
        metrics[f"{name}_macro"] = kind(num_classes=2, average="macro")
        metrics[name] = ClasswiseWrapper(kind(num_classes=2, average=None), labels=list(CLASSES), prefix=f"{name}_")
    metrics["accuracy"] = MulticlassAccuracy(num_classes=2, average="micro")
    # torchmetrics 1.9 shares state between wrapped metrics, but after a reset updates only one of them
    return MetricCollection(metrics, compute_groups=False)


def scores(probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """All figures of one set.

    Args:
        probabilities: Of male, (N), in 0..1; male is answered above 0.5.
        labels: (N), 0 or 1.
    """
    metrics = collection()
    metrics.update((probabilities > 0.5).long(), labels.long())
    values = {name: float(value) for name, value in metrics.compute().items()}
    return values | {"auroc": float(BinaryAUROC()(probabilities, labels.long()))}


def confusion(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (2, 2): rows are labels, columns answers."""
    return np.bincount(2 * labels.astype(int) + answers.astype(int), minlength=4).reshape(2, 2)


def f1_macro(counts: np.ndarray) -> np.ndarray:
    """Mean over both classes of F1 = 2 TP / (2 TP + FP + FN), from confusion counts (..., 2, 2); 0 for 0 / 0."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    total = counts.sum(-1) + counts.sum(-2)  # 2 TP + FP + FN, of each class
    return np.divide(2 * hits, total, out=np.zeros(hits.shape), where=total > 0).mean(-1)


def f1_macro_interval(answers: np.ndarray, labels: np.ndarray, identities: Sequence[str]) -> tuple[float, float]:
    """95 % percentile bootstrap of macro-F1 that draws people, with all their pictures, not pictures.

    Pictures of one person are not independent, so drawing pictures would give too narrow an interval (Field and
    Welsh, 2007, "Bootstrapping clustered data").

    Args:
        answers: (N), 0 or 1.
        labels: (N), 0 or 1.
        identities: (N), who it is.

    Returns:
        Its lower and upper end.
    """
    _, person = np.unique(np.asarray(identities), return_inverse=True)
    people = person.max() + 1
    cell = 4 * person + 2 * labels.astype(int) + answers.astype(int)
    of_person = np.bincount(cell, minlength=4 * people).reshape(people, 4)
    kinds, number = np.unique(of_person, axis=0, return_counts=True)  # people with equal counts are drawn as one kind
    drawn = np.random.default_rng(0).multinomial(people, number / people, size=RESAMPLES) @ kinds
    low, high = np.quantile(f1_macro(drawn.reshape(-1, 2, 2)), [0.025, 0.975])
    return float(low), float(high)
