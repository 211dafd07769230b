"""What a person looks at: tables in the terminal, pictures in TensorBoard, the figures of a run."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.utils import make_grid

from gender_cls import CLASSES
from gender_cls.checks import FaceSet
from gender_cls.metrics import RESAMPLES, confusion, f1_macro_interval, scores
from gender_cls.sources import Face

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 20  # skipped pictures that are listed one by one


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns as wide as they need; numbers to the right, floats with three digits."""
    cells = [list(header)] + [[f"{c:.3f}" if isinstance(c, float) else str(c) for c in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells)]
    right = [any(isinstance(row[i], int | float) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(cell.rjust(w) if r else cell.ljust(w) for cell, w, r in zip(line, widths, right)).rstrip()
        for line in cells
    )


def describe_data(faces: FaceSet) -> str:
    """The table of a start: what there is, what was left out and what to beware of."""
    counts = faces.counts()
    lines = [table(list(counts[0]), [list(row.values()) for row in counts])]
    lines.append(f"female = 0, male = 1; skipped {len(faces.skipped)}; data fingerprint {faces.fingerprint}")
    lines += [f"skipped {path}: {reason}" for path, reason in faces.skipped[:SHOWN]]
    if len(faces.skipped) > SHOWN:
        lines.append(f"... and {len(faces.skipped) - SHOWN} more, all listed in metrics.json")
    return "\n".join(lines + [f"note: {note}" for note in faces.notes])


def evaluate(probabilities: torch.Tensor, faces: Sequence[Face]) -> dict[str, Any]:
    """All figures of one split, with their interval and counts.

    Args:
        probabilities: Of male (N), for each of the faces.
        faces: Of the split.
    """
    labels = torch.tensor([face.label for face in faces])
    answers = (probabilities > 0.5).long()
    people = [face.identity for face in faces]
    return {
        **{name: round(value, 6) for name, value in scores(probabilities, labels).items()},
        "f1_macro_ci95": [round(end, 6) for end in f1_macro_interval(answers.numpy(), labels.numpy(), people)],
        "pictures": len(faces),
        "people": len(set(people)),
        "confusion": confusion(answers.numpy(), labels.numpy()).tolist(),
    }


def classification_report(split: str, figures: Mapping[str, Any]) -> str:
    """A table in the manner of scikit-learn's."""
    names = ("precision", "recall", "f1")
    counts = np.array(figures["confusion"])
    rows: list[list[object]] = []
    for label, name in enumerate(CLASSES):
        rows.append([name, *(figures[f"{what}_{name}"] for what in names), int(counts[label].sum())])
    rows.append(["macro", *(figures[f"{what}_macro"] for what in names), figures["pictures"]])
    rows.append(["accuracy", "", "", figures["accuracy"], figures["pictures"]])
    low, high = figures["f1_macro_ci95"]
    return (
        table((split, *names, "pictures"), rows)
        + f"\nmacro-F1 {figures['f1_macro']:.3f}, 95 % interval {low:.3f} to {high:.3f} "
        + f"({RESAMPLES} bootstrap draws of {figures['people']} people)"
    )


def confusion_figure(split: str, figures: Mapping[str, Any]) -> "Figure":
    """Rows are the dataset's labels, columns the answers; shade is the share of the row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second that most jobs of a sweep don't need
    from matplotlib.figure import Figure

    counts = np.array(figures["confusion"])
    figure = Figure(figsize=(4.2, 3.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    shares = counts / counts.sum(1, keepdims=True).clip(1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for label, answer in np.ndindex(2, 2):
        axes.text(
            answer,
            label,
            f"{counts[label, answer]}\n{shares[label, answer]:.0%}",
            ha="center",
            va="center",
            color="white" if shares[label, answer] > 0.5 else "black",
            fontsize=14,
        )
    axes.set(xticks=(0, 1), xticklabels=CLASSES, xlabel="answer")
    axes.set(yticks=(0, 1), yticklabels=CLASSES, ylabel="label in the data set")
    axes.set_title(f"{split}: {figures['pictures']} pictures of {figures['people']} people", fontsize=11)
    return figure


def contact_sheet(views: torch.Tensor) -> torch.Tensor:
    """Views (N, 3, size, size) in 0..1 as one picture (3, H, W), eight in a row."""
    return make_grid(views, nrow=8, padding=4, pad_value=1.0)
