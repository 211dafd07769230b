"""The pictures of a report, with their captions."""

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING

import torch
from PIL import Image

from gender_cls import figures as draw
from gender_cls.answers import Answers, Numbers
from gender_cls.calibration import coverage
from gender_cls.degrade import LARGEST
from gender_cls.images import PictureError, load_rgb
from gender_cls.views import ASKED, CONDITIONS, MIDDLE, degraded

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WHOLE = "shown whole, before any crop"
AT = f"clean, and degraded at severity {MIDDLE}"
Pictures = dict[str, tuple["Figure", str]]


def draw_all(answers: Answers, numbers: Numbers, about: str) -> Pictures:
    """Figures with their captions, by name.

    Args:
        answers: Of the model.
        numbers: Of the report.
        about: Which pictures, which every figure and caption says wherever it goes.
    """
    drawn = {**_answers(answers, numbers), **_probabilities(answers, numbers), **_mistakes(answers, numbers)}
    for figure, _ in drawn.values():
        figure.suptitle(fill(about, 80), fontsize=8, color="dimgrey", parse_math=False)
    return {name: (figure, f"{caption}. {about}.") for name, (figure, caption) in drawn.items()}


def _answers(answers: Answers, numbers: Numbers) -> Pictures:
    clean, by_name = numbers["clean"], numbers["degraded"]
    middle = {"clean": clean} | {name: rows[MIDDLE] for name, rows in by_name.items()}
    every = {**by_name, "mean of the seven": numbers["mean_of_seven"]}
    by_severity = {name: [clean, *rows.values()] for name, rows in every.items()}
    probabilities = {name: answers.probabilities[number] for name, number in ASKED.items()}
    labels = torch.from_numpy(answers.labels)
    return {
        "severity": (draw.severity_figure(by_severity), "F1 by severity of the degradation"),
        "confusion": (draw.confusion_figure(middle), f"Labels and answers, {AT}: pictures, and share of the label's"),
        "roc": (draw.roc_figure(probabilities, labels), f"Receiver operating characteristic, {AT}"),
        "precision_recall": (draw.precision_recall_figure(probabilities, labels), f"Precision and recall, {AT}"),
        "scores": (draw.scores_figure(probabilities, labels), f"Probabilities of male by label, {AT}"),
    }


def _probabilities(answers: Answers, numbers: Numbers) -> Pictures:
    calibration = numbers["calibration"]
    if not calibration:
        return {}
    prior = calibration["prior"]
    curves = {name: coverage(answers.logits[number], answers.labels, prior)[:2] for name, number in ASKED.items()}
    weighted = f"classes weighted to a share of men of {prior:.2g}"
    return {
        "reliability": (
            draw.reliability_figure(calibration["bins"]),
            f"What the model says and what is so, {AT}: share of men among pictures of about the same p(male), in bins "
            f"of equal mass, {weighted}; in the grey bars lie 95 % of the shares of a perfect model",
        ),
        "coverage": (draw.coverage_figure(curves), f"Accuracy where only the surest are answered, {AT}, {weighted}"),
    }


def _mistakes(answers: Answers, numbers: Numbers) -> Pictures:
    surest = "answered wrong, the surest first"
    return {
        "mistakes": (_sheet(answers, numbers["mistakes"]), f"Clean pictures {surest}; {WHOLE}"),
        "mistakes_degraded": (
            _sheet(answers, numbers["mistakes_degraded"]),
            f"Degraded pictures (severity {MIDDLE}) {surest}, each once; {WHOLE}",
        ),
    }


def _sheet(answers: Answers, mistakes: Sequence[Numbers]) -> "Figure":
    faces = {face.path: face for face in answers.faces}
    tiles = []
    for row in mistakes:
        face = faces[row["path"]]
        number = CONDITIONS.index((row["condition"], MIDDLE if row["condition"] != "clean" else 0))
        try:
            picture = degraded(load_rgb(face.path), face.digest, number)
        except PictureError:  # it has just disappeared
            picture = Image.new("RGB", (8, 8), "white")
        picture.thumbnail((LARGEST, LARGEST))
        share = row["p_male"] if row["answer"] == "male" else 1 - row["p_male"]
        what = f"{row['condition']}: {row['answer']} {share:.1%}, filed {row['label']}"
        tiles.append((picture, f"{Path(face.path).name}\n{what}"))
    return draw.sheet_figure(tiles)
