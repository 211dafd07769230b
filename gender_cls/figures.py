"""The pictures of a report: curves, matrices, scores and contact sheets, by matplotlib, narrow enough for a phone."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc
from torchvision.utils import make_grid

from gender_cls import CLASSES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 6.4  # inches
COLOURS = {"female": "tab:purple", "male": "tab:green"}
LETTERS = 34  # of a file name above its picture
Numbers = Mapping[str, Any]  # of one set of answers, as `metrics.Evaluation` gives them


def confusion_figure(sets: Mapping[str, Numbers]) -> "Figure":
    """A matrix for each set: rows are the dataset's labels, columns the answers; shade is the share of the row."""
    columns = min(2, len(sets))
    rows = -(-len(sets) // columns)
    figure = _new(WIDTH if columns > 1 else 4.2, 3.0 * rows if columns > 1 else 3.8)
    for ax, (name, numbers) in zip(figure.subplots(rows, columns, squeeze=False).ravel(), sets.items()):
        counts = np.array(numbers["confusion"])
        shares = counts / counts.sum(1, keepdims=True).clip(1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for label, answer in np.ndindex(2, 2):
            text = f"{counts[label, answer]}\n{shares[label, answer]:.0%}"
            colour = "white" if shares[label, answer] > 0.5 else "black"
            ax.text(answer, label, text, ha="center", va="center", color=colour, fontsize=14)
        ax.set(xticks=(0, 1), xticklabels=CLASSES, xlabel="answer")
        ax.set(yticks=(0, 1), yticklabels=CLASSES, ylabel="label in the data set")
        ax.set_title(name, fontsize=11)
    return figure


def severity_figure(sets: Mapping[str, Sequence[Numbers]]) -> "Figure":
    """Macro-F1 with its interval and the F1 of each class by severity, from 0, for each degradation."""
    figure = _new(WIDTH, 9.6)
    axes = figure.subplots(4, 2, sharex=True, sharey=True).ravel()
    for ax, (name, points) in zip(axes, sets.items()):
        severity = range(len(points))
        low, high = np.array([point["f1_macro_ci95"] for point in points]).T
        ax.fill_between(severity, low, high, alpha=0.2, color="tab:blue", linewidth=0, label="95 % interval")
        ax.plot(severity, [point["f1_macro"] for point in points], "o-", color="tab:blue", label="macro")
        for class_name, colour in COLOURS.items():
            ax.plot(severity, [p[f"f1_{class_name}"] for p in points], "--", color=colour, label=class_name, lw=1)
        ax.set(title=name, ylim=(0, 1), xticks=severity)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8, loc="lower left")
    figure.supxlabel("severity (0: clean)")
    figure.supylabel("F1")
    return figure


def roc_figure(sets: Mapping[str, torch.Tensor], labels: torch.Tensor) -> "Figure":
    """Receiver operating characteristic of the probabilities of male (N) in each set."""
    figure = _new(WIDTH, 5)
    ax = figure.subplots()
    for name, probabilities in sets.items():
        wrong, right, _ = binary_roc(probabilities, labels)
        ax.plot(wrong, right, label=name, **_style(name))
    ax.plot((0, 1), (0, 1), ":", color="grey", label="chance")
    ax.set(xlabel="share of female pictures answered male", ylabel="share of male pictures answered male")
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9)
    return figure


def precision_recall_figure(sets: Mapping[str, torch.Tensor], labels: torch.Tensor) -> "Figure":
    """Precision against recall of female, the rarer class in most data, in each set."""
    figure = _new(WIDTH, 5)
    ax = figure.subplots()
    for name, probabilities in sets.items():
        precision, recall, _ = binary_precision_recall_curve(1 - probabilities, 1 - labels)
        ax.plot(recall, precision, label=name, **_style(name))
    ax.axhline(float((labels == 0).float().mean()), ls=":", color="grey", label="chance")
    ax.set(xlabel="recall of female (share of them found)", ylabel="precision of female (share of these answers right)")
    ax.set(ylim=(0, 1.03))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9, loc="lower left")
    return figure


def scores_figure(sets: Mapping[str, torch.Tensor], labels: torch.Tensor) -> "Figure":
    """How many pictures of each label got which probability of male, in each set."""
    figure = _new(WIDTH, 9.6)
    axes = figure.subplots(4, 2, sharex=True, sharey=True).ravel()
    for ax, (name, probabilities) in zip(axes, sets.items()):
        for label, class_name in enumerate(CLASSES):
            values = probabilities[labels == label].numpy()
            weights = np.full(len(values), 100 / max(1, len(values)))
            bins = np.linspace(0, 1, 21)
            ax.hist(values, bins, weights=weights, alpha=0.55, color=COLOURS[class_name], label=class_name)
        ax.axvline(0.5, color="black", lw=0.8)
        ax.set_title(name)
    axes[0].legend(fontsize=9, loc="upper center")
    figure.supxlabel("probability of male (above 0.5 the answer is male)")
    figure.supylabel("% of the pictures of a label")
    return figure


def reliability_figure(sets: Mapping[str, Sequence[Numbers]]) -> "Figure":
    """Share of men by p(male) in the bins of each set, where a perfect model's would lie, and the raw head's."""
    figure = _new(WIDTH, 9.6)
    axes = figure.subplots(4, 2, sharex=True, sharey=True).ravel()
    for ax, (name, bins) in zip(axes, sets.items()):
        ax.plot((0, 1), (0, 1), ":", color="grey")
        if "raw" in bins[0]:
            ax.plot(*_columns(bins, "raw", "share"), ".-", color="tab:orange", lw=0.8, label="raw head")
        said, share, low, high = _columns(bins, "p_male", "share", "low", "high")
        ax.vlines(said, low, high, color="grey", lw=4, alpha=0.4, label="a perfect model")
        ax.plot(said, share, "o", color="tab:blue", ms=4, label="calibrated" if "raw" in bins[0] else "as it is")
        ax.set(title=name, xlim=(0, 1), ylim=(-0.03, 1.03))
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    figure.supxlabel("p(male) that the model says")
    figure.supylabel("share of men")
    return figure


def coverage_figure(sets: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "Figure":
    """Accuracy by coverage, of the coverage and the share of wrong answers (N) in each set."""
    figure = _new(WIDTH, 5)
    ax = figure.subplots()
    for name, (covered, wrong) in sets.items():
        ax.plot(covered, 1 - wrong, label=name, **_style(name))
    ax.set(
        xlabel="coverage: share of the pictures that is answered, the surest first",
        ylabel="accuracy on them, classes weighted",
    )
    ax.set(xlim=(0, 1), ylim=(None, 1.003))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=9, loc="lower left")
    return figure


def sheet_figure(tiles: Sequence[tuple[Image.Image, str]]) -> "Figure":
    """Pictures, each with a line or two above, three in a row."""
    rows = max(1, -(-len(tiles) // 3))
    figure = _new(WIDTH, 2.5 * rows)
    axes = figure.subplots(rows, 3, squeeze=False).ravel()
    for ax in axes:
        ax.axis("off")
    for ax, (picture, lines) in zip(axes, tiles):
        ax.imshow(picture)
        text = lines.encode(errors="replace").decode()  # bytes that are no text can't be drawn
        cut = [line if len(line) <= LETTERS else line[: LETTERS - 3] + "..." for line in text.split("\n")]
        ax.set_title("\n".join(cut), fontsize=8, parse_math=False)
    return figure


def contact_sheet(views: torch.Tensor) -> torch.Tensor:
    """Views (N, 3, size, size) in 0..1 as one picture (3, H, W), eight in a row."""
    return make_grid(views, nrow=8, padding=4, pad_value=1.0)


def _new(width: float, height: float) -> "Figure":
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # half a second that most jobs of a sweep don't need
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)  # no window is ever opened
    return figure


def _columns(rows: Sequence[Numbers], *names: str) -> np.ndarray:
    return np.array([[row[name] for name in names] for row in rows]).T


def _style(name: str) -> dict[str, Any]:
    return {"color": "black", "lw": 2.2} if name == "clean" else {"lw": 1.2}
