"""What a model answers on clean and degraded pictures, and how right that is."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gender_cls import CLASSES
from gender_cls.degrade import DEGRADATIONS, SEVERITIES
from gender_cls.errors import UserError
from gender_cls.features import Extractor
from gender_cls.metrics import evaluate, evaluate_mean
from gender_cls.network import GenderNet
from gender_cls.sources import Face
from gender_cls.transforms import Preprocessing
from gender_cls.views import CLEAN, CONDITIONS, EvaluationViews

MIDDLE = 3  # the severity that stands for a degradation
MISTAKES = 12  # listed and shown, clean and degraded
BATCH = 4096  # features whose answers are computed at once
Numbers = dict[str, Any]


@dataclass
class Answers:
    """What a model says of the same pictures in all conditions.

    Attributes:
        faces: N of them.
        probabilities: Of male, (len(CONDITIONS), N).
    """

    faces: list[Face]
    probabilities: torch.Tensor

    def __post_init__(self) -> None:
        self.labels = np.array([face.label for face in self.faces])
        self.people = [face.identity for face in self.faces]

    def of(self, chosen: np.ndarray) -> "Answers":
        """Those of some of the pictures (N, bool)."""
        return Answers([face for face, it in zip(self.faces, chosen) if it], self.probabilities[:, chosen])

    def at(self, severity: int) -> torch.Tensor:
        """Probabilities under each degradation, (7, N)."""
        return self.probabilities[[CONDITIONS.index((name, severity)) for name in DEGRADATIONS]]


def ask(
    network: GenderNet, preprocessing: Preprocessing, faces: Sequence[Face], extractor: Extractor, num_workers: int
) -> Answers:
    """Ask a model about faces in every condition.

    Raises:
        UserError: not one of the pictures can be read any more.
    """
    pictures = {face.digest.encode(): face.path for face in faces}
    columns = tuple(range(len(CONDITIONS)))
    store = extractor.compute(EvaluationViews(preprocessing), pictures, columns, num_workers)
    digests = np.array([face.digest.encode() for face in faces])
    places = np.stack([store.find(digests, column) for column in columns])
    there = np.all(places >= 0, axis=0)
    if not there.any():
        raise UserError("not one picture of val can be read any more; are the files still there?")
    head = network.head.cpu().eval()
    with torch.inference_mode():
        probabilities = [
            torch.cat([head(store.read(row[at : at + BATCH])).squeeze(1).sigmoid() for at in range(0, len(row), BATCH)])
            for row in places[:, there]
        ]
    return Answers([face for face, it in zip(faces, there) if it], torch.stack(probabilities))


def measure(answers: Answers, without: str | None = None) -> Numbers:
    """All numbers of a report.

    Args:
        answers: Of one model.
        without: Pattern of file names, without their endings, that are left out in a slice.

    Raises:
        UserError: `without` is no regular expression.
    """
    every = evaluate(answers.probabilities, answers.labels, answers.people)
    numbers: Numbers = {"clean": every[CLEAN], "degraded": {}}
    for name in DEGRADATIONS:
        numbers["degraded"][name] = {s: every[CONDITIONS.index((name, s))] for s in SEVERITIES}
    numbers["mean_of_seven"] = {s: evaluate_mean(answers.at(s), answers.labels, answers.people) for s in SEVERITIES}
    numbers["mistakes"] = mistakes(answers, [CLEAN])
    numbers["mistakes_degraded"] = mistakes(answers, [CONDITIONS.index((name, MIDDLE)) for name in DEGRADATIONS])
    groups: list[str] = sorted({face.group for face in answers.faces} - {""})
    of_groups = [part(answers, group, [face.group == group for face in answers.faces]) for group in groups]
    numbers["slices"] = of_groups if len(groups) > 1 else []
    numbers["gap"] = gap(of_groups)
    if without is not None:
        try:
            kept = [not re.search(without, Path(face.path).stem) for face in answers.faces]
        except re.error as error:
            raise UserError(f"data.without={without} is no regular expression ({error})") from error
        if any(kept) and not all(kept):
            numbers["slices"].append(part(answers, f"without {without}", kept))
    return numbers


def part(answers: Answers, name: str, chosen: Sequence[bool]) -> Numbers:
    """Numbers of some of the pictures (N), clean and as the mean of the seven."""
    some = answers.of(np.array(chosen))
    (clean,) = evaluate(some.probabilities[[CLEAN]], some.labels, some.people)
    return {"slice": name, "clean": clean, "mean_of_seven": evaluate_mean(some.at(MIDDLE), some.labels, some.people)}


def mistakes(answers: Answers, conditions: Sequence[int]) -> list[Numbers]:
    """The surest wrong answers, at most `MISTAKES`, each picture in the condition where it is the most wrong."""
    worst, which = (answers.probabilities[list(conditions)] - torch.from_numpy(answers.labels)).abs().max(0)
    rows = []
    for index in worst.argsort(descending=True)[:MISTAKES].tolist():
        condition, face = conditions[int(which[index])], answers.faces[index]
        p_male = float(answers.probabilities[condition, index])
        if (p_male > 0.5) != face.label:
            found = {"path": face.path, "label": CLASSES[face.label], "answer": CLASSES[p_male > 0.5]}
            rows.append({**found, "p_male": round(p_male, 6), "condition": CONDITIONS[condition][0], "index": index})
    return rows


def gap(groups: Sequence[Numbers]) -> Numbers | None:
    """Best and worst group by macro-F1 on clean pictures, of those that have both labels; None if there are not two."""
    both = [row for row in groups if all(map(sum, row["clean"]["confusion"]))]
    if len(both) < 2:
        return None
    worst, *_, best = sorted(both, key=lambda row: row["clean"]["f1_macro"])
    return {
        "best": best["slice"],
        "worst": worst["slice"],
        "f1_macro": round(best["clean"]["f1_macro"] - worst["clean"]["f1_macro"], 6),
    }
