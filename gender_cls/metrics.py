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
INTERVALS = ("f1_macro", "f1_female", "f1_male", "recall_female", "recall_male")


def collection() -> MetricCollection:
    """Precision, recall and F1 of each class and macro, and accuracy; to update with answers and labels (N), 0 or 1."""
    metrics: dict[str, Metric | MetricCollection] = {}
    for name, kind in (("precision", MulticlassPrecision), ("recall", MulticlassRecall), ("f1", MulticlassF1Score)):
        metrics[f"{name}_macro"] = kind(num_classes=2, average="macro")
        metrics[name] = ClasswiseWrapper(kind(num_classes=2, average=None), labels=list(CLASSES), prefix=f"{name}_")
    metrics["accuracy"] = MulticlassAccuracy(num_classes=2, average="micro")
    # torchmetrics 1.9 shares state between wrapped metrics, but after a reset updates only one of them
    return MetricCollection(metrics, compute_groups=False)


def auroc(probabilities: torch.Tensor, labels: torch.Tensor) -> float | None:
    """Area under the receiver operating characteristic; None where there is one label only."""
    return round(float(BinaryAUROC()(probabilities, labels.long())), 6) if 0 < labels.sum() < len(labels) else None


def confusion(answers: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Counts (2, 2): rows are labels, columns answers."""
    return np.bincount(2 * labels.astype(int) + answers.astype(int), minlength=4).reshape(2, 2)


def class_scores(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 = 2 TP / (2 TP + FP + FN) of each class and macro, and accuracy; 0 for 0 / 0.

    Args:
        counts: (..., 2, 2), rows are labels, columns answers.
    """
    hits = np.diagonal(counts, axis1=-2, axis2=-1)
    found = {
        "f1": _divide(2 * hits, counts.sum(-1) + counts.sum(-2)),
        "precision": _divide(hits, counts.sum(-2)),
        "recall": _divide(hits, counts.sum(-1)),
    }
    values = {"accuracy": _divide(hits.sum(-1), counts.sum((-2, -1)))}
    for name, of_classes in found.items():
        values[f"{name}_macro"] = of_classes.mean(-1)
        values |= {f"{name}_{label}": of_classes[..., at] for at, label in enumerate(CLASSES)}
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
    of_person = np.zeros((people, sets * 4), np.float32)  # whole numbers below 2**24, which a fast product keeps
    for number, row in enumerate(answers):
        np.add.at(of_person, (person, 4 * number + 2 * labels.astype(int) + row.astype(int)), 1)
    kinds, number_of = np.unique(of_person, axis=0, return_counts=True)  # people with equal counts are drawn as one
    generator = np.random.default_rng(0)
    drawn = [  # a few at a time: for many people the draws are large
        generator.multinomial(people, number_of / people, size=RESAMPLES // 100).astype(np.float32) @ kinds
        for _ in range(100)
    ]
    return np.concatenate(drawn).reshape(RESAMPLES, sets, 2, 2)


class Evaluation:
    """Figures of some sets of answers for the same pictures, such as clean and degraded ones.

    Args:
        probabilities: Of male, (S, N), in 0..1; male is answered above 0.5.
        labels: (N), 0 or 1.
        identities: (N), who it is.
    """

    def __init__(self, probabilities: torch.Tensor, labels: np.ndarray, identities: Sequence[str]) -> None:
        answers = (probabilities > 0.5).numpy()
        self.counts = np.stack([confusion(row, labels) for row in answers])
        self.values = class_scores(self.counts)
        self.drawn = class_scores(resample(answers, labels, identities))
        self.auroc = [auroc(row, torch.from_numpy(labels)) for row in probabilities]
        self.pictures, self.people = len(labels), len(set(identities))

    def figures(self, *sets: int) -> dict[str, Any]:
        """Means over sets, with 95 % intervals (`..._ci95`); of a single one also its confusion counts.

        Where a label has no picture, its figures and the macro ones are None.
        """
        chosen = list(sets)
        found: dict[str, Any] = {name: round(float(row[chosen].mean()), 6) for name, row in self.values.items()}
        for name in INTERVALS:
            ends = np.quantile(self.drawn[name][:, chosen].mean(1), [0.025, 0.975])
            found[f"{name}_ci95"] = [round(float(end), 6) for end in ends]
        absent = [name for name, number in zip(CLASSES, self.counts[0].sum(1)) if not number]
        for name in found:  # what no picture can show is no zero
            if absent and any(part in ("macro", *absent) for part in name.split("_")):
                found[name] = None
        areas = [area for place in chosen if (area := self.auroc[place]) is not None]
        found |= {"auroc": round(float(np.mean(areas)), 6) if areas else None}
        found |= {"pictures": self.pictures, "people": self.people}
        return found | ({"confusion": self.counts[chosen[0]].tolist()} if len(chosen) == 1 else {})
