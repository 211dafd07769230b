"""What is measured, and its interval. Class 0 is female, class 1 male; macro is their plain mean."""

from collections.abc import Sequence
from typing import Any

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
    """Precision, recall and F1 of each class and macro, and accuracy.

    Args:
        probabilities: Of male, (N), in 0..1; male is answered above 0.5.
        labels: (N), 0 or 1.
    """
    metrics = collection()
    metrics.update((probabilities > 0.5).long(), labels.long())
    return {name: float(value) for name, value in metrics.compute().items()}


def auroc(probabilities: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Area under the receiver operating characteristic; None where there is one label only."""
    return round(float(BinaryAUROC()(probabilities, labels.long())), 6) if 0 < labels.sum() < len(labels) else None


def confusion(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (2, 2): rows are labels, columns answers."""
    return np.bincount(2 * labels.astype(int) + answers.astype(int), minlength=4).reshape(2, 2)


def class_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """F1 = 2 TP / (2 TP + FP + FN) and recall of each class and macro-F1, 0 for 0 / 0, from counts (..., 2, 2)."""
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    f1 = _divide(2 * hits, counts.sum(-1) + counts.sum(-2))
    recall = _divide(hits, counts.sum(-1))
    values = {"f1_macro": f1.mean(-1)}
    for label, name in enumerate(CLASSES):
        values |= {f"f1_{name}": f1[..., label], f"recall_{name}": recall[..., label]}
    return values


def _divide(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.divide(one, other, out=np.zeros(one.shape), where=other > 0)


def resample(answers: np.ndarray, labels: np.ndarray, identities: Sequence[str]) -> np.ndarray:
    """Bootstrap that draws people, with all their pictures in all sets, not pictures.

    Pictures of one person are not independent, so drawing pictures would give too narrow an interval (Field and
    Welsh, 2007, "Bootstrapping clustered data"). The sets share the draws, so differences between them are paired.

    Args:
        answers: (S, N), 0 or 1, in each of S sets.
        labels: (N), 0 or 1.
        identities: (N), who it is.

    Returns:
        Confusion counts, (RESAMPLES, S, 2, 2).
    """
    _, person = np.unique(np.asarray(identities), return_inverse=True)
    people, sets = int(person.max()) + 1, len(answers)
    of_person = np.zeros((people, sets * 4), np.int32)
    for number, row in enumerate(answers):
        np.add.at(of_person, (person, 4 * number + 2 * labels.astype(int) + row.astype(int)), 1)
    kinds, number_of = np.unique(of_person, axis=0, return_counts=True)  # people with equal counts are drawn as one
    generator = np.random.default_rng(0)
    drawn = [  # a few at a time: for many people the draws are large
        generator.multinomial(people, number_of / people, size=RESAMPLES // 100) @ kinds for _ in range(100)
    ]
    return np.concatenate(drawn).reshape(RESAMPLES, sets, 2, 2)


def interval(values: np.ndarray) -> np.ndarray:
    """95 % percentile interval, (2, ...), of bootstrap values (RESAMPLES, ...)."""
    return np.quantile(values, [0.025, 0.975], axis=0)


def evaluate(probabilities: torch.Tensor, labels: np.ndarray, identities: Sequence[str]) -> list[dict[str, Any]]:
    """All figures of some sets of answers for the same pictures, with 95 % intervals (`..._ci95`) and counts.

    Args:
        probabilities: Of male, (S, N), in 0..1.
        labels: (N), 0 or 1.
        identities: (N), who it is.
    """
    answers = (probabilities > 0.5).numpy()
    ends = {name: interval(values) for name, values in class_scores(resample(answers, labels, identities)).items()}
    return [
        {
            **{name: round(value, 6) for name, value in scores(row, torch.from_numpy(labels)).items()},
            **{f"{name}_ci95": [round(float(end), 6) for end in both[:, at]] for name, both in ends.items()},
            "auroc": auroc(row, torch.from_numpy(labels)),
            "pictures": len(labels),
            "people": len(set(identities)),
            "confusion": confusion(answers[at], labels).tolist(),
        }
        for at, row in enumerate(probabilities)
    ]


def evaluate_mean(probabilities: torch.Tensor, labels: np.ndarray, identities: Sequence[str]) -> dict[str, Any]:
    """Means over the sets of F1, recall and AUROC, the former with 95 % intervals; arguments as for `evaluate`."""
    answers = (probabilities > 0.5).numpy()
    counts = np.stack([confusion(row, labels) for row in answers])
    values: dict[str, Any] = {name: round(float(value.mean()), 6) for name, value in class_scores(counts).items()}
    for name, drawn in class_scores(resample(answers, labels, identities)).items():
        values[f"{name}_ci95"] = [round(float(end), 6) for end in interval(drawn.mean(-1))]
    areas = [area for row in probabilities if (area := auroc(row, torch.from_numpy(labels))) is not None]
    return values | {"auroc": round(float(np.mean(areas)), 6) if areas else None}
