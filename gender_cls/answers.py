"""What a model answers on clean and degraded pictures, and how right that is."""

import csv
import io
import re
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gender_cls import CLASSES
from gender_cls.degrade import DEGRADATIONS, SEVERITIES
from gender_cls.errors import UserError
from gender_cls.features import Extractor
from gender_cls.journal import safe_cell
from gender_cls.metrics import Evaluation
from gender_cls.network import GenderNet
from gender_cls.people import some_people
from gender_cls.sources import Face
from gender_cls.store import Store
from gender_cls.transforms import Preprocessing
from gender_cls.views import CLEAN, CONDITIONS, MIDDLE, EvaluationViews

MOST_PICTURES = 5000  # of val that are asked in every condition: 180,000 passes, half an hour on two cores
LEAST_PEOPLE = 10
MISTAKES = 12  # listed and shown, clean and degraded
BATCH = 4096  # features whose answers are computed at once
Numbers = dict[str, Any]


@dataclass
class Answers:
    """What a model says of the same pictures in all conditions.

    Attributes:
        faces: N of them.
        logits: (len(CONDITIONS), N).
    """

    faces: list[Face]
    logits: torch.Tensor

    def __post_init__(self) -> None:
        self.probabilities = self.logits.sigmoid()
        self.labels = np.array([face.label for face in self.faces])
        self.people = [face.identity for face in self.faces]

    def of(self, chosen: np.ndarray) -> "Answers":
        """Those of some of the pictures (N, bool)."""
        return Answers([face for face, it in zip(self.faces, chosen) if it], self.logits[:, chosen])

    def at(self, severity: int) -> torch.Tensor:
        """Probabilities under each degradation, (7, N)."""
        return self.probabilities[[CONDITIONS.index((name, severity)) for name in DEGRADATIONS]]

    def to_csv(self) -> str:
        """A row for each face, with a column for each condition."""
        text = io.StringIO()
        rows = csv.writer(text)
        conditions = [f"{name}_{severity}" if severity else name for name, severity in CONDITIONS]
        rows.writerow(("path", "label", "identity", "group", *conditions))
        for face, p_male in zip(self.faces, self.probabilities.T.tolist()):
            known = (safe_cell(face.path), CLASSES[face.label], safe_cell(face.identity), safe_cell(face.group))
            rows.writerow((*known, *(f"{p:.6f}" for p in p_male)))
        return text.getvalue()


def ask(
    network: GenderNet, preprocessing: Preprocessing, faces: Sequence[Face], extractor: Extractor, num_workers: int
) -> Answers:
    """Ask a model about faces in every condition; of more than `MOST_PICTURES`, about that many, by whole people.

    Raises:
        UserError: not one of the pictures can be read any more.
    """
    faces = some_people(faces, MOST_PICTURES, "report")
    pictures = {face.digest.encode(): face.path for face in faces}
    wanted = dict.fromkeys(pictures, tuple(range(len(CONDITIONS))))
    store = extractor.compute(EvaluationViews(preprocessing), pictures, wanted, num_workers)
    digests = np.array([face.digest.encode() for face in faces])
    places = np.stack([store.find(digests, column) for column in range(len(CONDITIONS))])
    there = np.all(places >= 0, axis=0)
    if not there.any():
        raise UserError("not one picture of val can be read any more; are the files still there?")
    head = deepcopy(network.head).cpu()
    logits = torch.stack([logits_of(head, store, row) for row in places[:, there]])
    return Answers([face for face, it in zip(faces, there) if it], logits)


def logits_of(head: nn.Linear, store: Store, places: np.ndarray) -> torch.Tensor:
    """Logits (N) of features that are stored at these places (N), by a head on the CPU."""
    batches = [places[at : at + BATCH] for at in range(0, len(places), BATCH)]
    with torch.inference_mode():
        return torch.cat([head(store.read(some)).squeeze(1) for some in batches] or [torch.empty(0)])


def check_pattern(without: str | None) -> None:
    """Refuse a pattern of file names that is none.

    Raises:
        UserError: it is no regular expression.
    """
    try:
        re.compile(without or "")
    except (re.error, TypeError) as error:
        raise UserError(f"data.without={without} is no regular expression ({error})") from error


def measure(answers: Answers, without: str | None = None) -> Numbers:
    """All numbers of a report.

    Args:
        answers: Of one model.
        without: Pattern of file names, without their endings, that are left out in a slice.
    """
    all_sets = Evaluation(answers.probabilities, answers.labels, answers.people)
    places = {s: [CONDITIONS.index((name, s)) for name in DEGRADATIONS] for s in SEVERITIES}
    numbers: Numbers = {"clean": all_sets.figures(CLEAN), "degraded": {}}
    for at, name in enumerate(DEGRADATIONS):
        numbers["degraded"][name] = {s: all_sets.figures(places[s][at]) for s in SEVERITIES}
    numbers["mean_of_seven"] = {s: all_sets.figures(*places[s]) for s in SEVERITIES}
    numbers["mistakes"] = mistakes(answers, [CLEAN])
    numbers["mistakes_degraded"] = mistakes(answers, places[MIDDLE])
    names = [face.group or "no value" for face in answers.faces]
    groups = sorted(set(names))
    of_groups = [part(answers, group, [name == group for name in names]) for group in groups]
    numbers["slices"] = of_groups if len(groups) > 1 else []
    numbers["gap"] = gap(of_groups)
    if without is not None:
        kept = [not re.search(without, Path(face.path).stem) for face in answers.faces]
        if any(kept) and not all(kept):
            numbers["slices"].append(part(answers, f"without {without}", kept))
    return numbers


def part(answers: Answers, name: str, chosen: Sequence[bool]) -> Numbers:
    """Numbers of some of the pictures (N), clean and as the mean of the seven."""
    some = answers.of(np.array(chosen))
    sets = Evaluation(torch.cat([some.probabilities[[CLEAN]], some.at(MIDDLE)]), some.labels, some.people)
    return {"slice": name, "clean": sets.figures(0), "mean_of_seven": sets.figures(*range(1, 8))}


def mistakes(answers: Answers, conditions: Sequence[int]) -> list[Numbers]:
    """The surest wrong answers, at most `MISTAKES`, each picture in the condition where it is the most wrong."""
    worst, which = (answers.probabilities[list(conditions)] - torch.from_numpy(answers.labels)).abs().max(0)
    rows = []
    for index in worst.argsort(descending=True)[:MISTAKES].tolist():
        condition, face = conditions[int(which[index])], answers.faces[index]
        p_male = float(answers.probabilities[condition, index])
        if (p_male > 0.5) != face.label:
            found = {"path": face.path, "label": CLASSES[face.label], "answer": CLASSES[p_male > 0.5]}
            rows.append({**found, "p_male": round(p_male, 6), "condition": CONDITIONS[condition][0]})
    return rows


def gap(groups: Sequence[Numbers]) -> Numbers | None:
    """Best and worst group by macro-F1 on clean pictures; None if there are not two.

    Counted are those that have both labels and at least `LEAST_PEOPLE` people: in fewer, luck decides.
    """
    cleans = [row for row in groups if row["clean"]["people"] >= LEAST_PEOPLE]
    both = [row for row in cleans if all(map(sum, row["clean"]["confusion"]))]
    if len(both) < 2:
        return None
    worst, *_, best = sorted(both, key=lambda row: row["clean"]["f1_macro"])
    return {
        "best": best["slice"],
        "worst": worst["slice"],
        "f1_macro": round(best["clean"]["f1_macro"] - worst["clean"]["f1_macro"], 6),
    }
