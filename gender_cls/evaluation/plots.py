"""Plots of metrics and predictions by matplotlib, narrow enough for a phone."""

import warnings
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torchmetrics.functional.classification import binary_precision_recall_curve, binary_roc
from torchvision.utils import make_grid

from gender_cls.labels import CLASSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 6.4  # inches
COLORS = {"female": "tab:purple", "male": "tab:green"}
BIN_EDGES = np.linspace(0, 1, 21).tolist()


def plot_confusion(sets: Mapping[str, Mapping[str, Any]]) -> "Figure":
    """Plot the confusion matrix in the metrics of each set; the shade is the share of the row."""
    columns = min(2, len(sets))
    rows = -(-len(sets) // columns)
    figure = _new(WIDTH, 3.0 * rows) if columns > 1 else _new(4.2, 3.8)
    for ax, (name, metrics) in zip(_axes(figure, len(sets), columns), sets.items()):
        counts = np.array(metrics["confusion"])
        shares = counts / counts.sum(1, keepdims=True).clip(1)
        ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for label, prediction in np.ndindex(2, 2):
            text = f"{counts[label, prediction]}\n{shares[label, prediction]:.0%}"
            color = "white" if shares[label, prediction] > 0.5 else "black"
            ax.text(prediction, label, text, ha="center", va="center", color=color, fontsize=14)
        ax.set(xticks=(0, 1), xticklabels=CLASSES, xlabel="prediction")
        ax.set(yticks=(0, 1), yticklabels=CLASSES, ylabel="label")
        ax.set_title(name, fontsize=11)
    return figure


def plot_severity(sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """Plot macro-F1 with its interval and the F1 of each class by severity, from 0, for each corruption."""
    figure, axes = _panels(len(sets), "severity (0: clean)", "F1")
    for ax, (name, points) in zip(axes, sets.items()):
        severity = range(len(points))
        low, high = np.array([point["f1_macro_ci95"] for point in points]).T
        ax.fill_between(severity, low, high, alpha=0.2, color="tab:blue", linewidth=0, label="95 % interval")
        ax.plot(severity, [point["f1_macro"] for point in points], "o-", color="tab:blue", label="macro")
        for class_name, color in COLORS.items():
            ax.plot(severity, [p[f"f1_{class_name}"] for p in points], "--", color=color, label=class_name, lw=1)
        ax.set(title=name, ylim=(0, 1), xticks=severity)
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8, loc="lower left")
    return figure


def plot_framing(frames: Mapping[float, Mapping[str, Any]]) -> "Figure":
    """Plot macro-F1 with its interval, and the recall of each class, by frame."""
    figure = _new(WIDTH, 3.6)
    (ax,) = _axes(figure, 1, 1)
    low, high = np.array([row["f1_macro_ci95"] for row in frames.values()]).T
    ax.fill_between(list(frames), low, high, alpha=0.2, color="tab:blue", linewidth=0, label="95 % interval")
    ax.plot(list(frames), [row["f1_macro"] for row in frames.values()], "o-", color="tab:blue", label="macro-F1")
    for class_name, color in COLORS.items():
        recall = [row[f"recall_{class_name}"] for row in frames.values()]
        ax.plot(list(frames), recall, "--", color=color, label=f"recall {class_name}", lw=1)
    ax.set(xlabel="side of the frame, as a share of the image's", ylim=(0, 1), xticks=list(frames))
    ax.grid(alpha=0.3)
    ax.legend(fontsize=8, loc="lower left")
    return figure


def plot_roc(sets: Mapping[str, torch.Tensor], labels: torch.Tensor) -> "Figure":
    """Plot the ROC curve of the probabilities of male (N) in each set."""
    figure, ax = _curves({name: binary_roc(probabilities, labels) for name, probabilities in sets.items()})
    ax.plot((0, 1), (0, 1), ":", color="grey", label="chance")
    ax.set(xlabel="false positive rate (female images predicted male)")
    ax.set(ylabel="true positive rate (male images predicted male)")
    ax.legend(fontsize=9)
    return figure


def plot_precision_recall(sets: Mapping[str, torch.Tensor], labels: torch.Tensor) -> "Figure":
    """Plot precision against recall of female, the rarer class in most data, in each set."""
    curves = {name: binary_precision_recall_curve(1 - male, 1 - labels) for name, male in sets.items()}
    figure, ax = _curves({name: (recall, precision) for name, (precision, recall, _) in curves.items()})
    ax.axhline(float((labels == 0).float().mean()), ls=":", color="grey", label="chance")
    ax.set(xlabel="recall of female", ylabel="precision of female", ylim=(0, 1.03))
    ax.legend(fontsize=9, loc="lower left")
    return figure


def plot_scores(sets: Mapping[str, torch.Tensor], labels: torch.Tensor) -> "Figure":
    """Plot the histogram of the probabilities of male for each label, in each set."""
    figure, axes = _panels(len(sets), "p(male); above 0.5 the prediction is male", "% of the images of the label")
    for ax, (name, probabilities) in zip(axes, sets.items()):
        for label, class_name in enumerate(CLASSES):
            values = probabilities[labels == label].numpy()
            weights = np.full(len(values), 100 / max(1, len(values)))
            ax.hist(values, BIN_EDGES, weights=weights, alpha=0.55, color=COLORS[class_name], label=class_name)
        ax.axvline(0.5, color="black", lw=0.8)
        ax.set_title(name)
    axes[0].legend(fontsize=9, loc="upper center")
    return figure


def plot_reliability(sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> "Figure":
    """Plot the share of male images against p(male) in the bins of each set, also before calibration."""
    figure, axes = _panels(len(sets), "mean p(male) of the bin", "share of male images")
    for ax, (name, bins) in zip(axes, sets.items()):
        ax.plot((0, 1), (0, 1), ":", color="grey")
        calibrated = "uncalibrated" in bins[0]
        if calibrated:
            ax.plot(*_columns(bins, "uncalibrated", "share"), ".-", color="tab:orange", lw=0.8, label="uncalibrated")
        p_male, share, low, high = _columns(bins, "p_male", "share", "low", "high")
        ax.vlines(p_male, low, high, color="grey", lw=4, alpha=0.4, label="perfect calibration")
        ax.plot(p_male, share, "o", color="tab:blue", ms=4, label="calibrated" if calibrated else "uncalibrated")
        ax.set(title=name, xlim=(0, 1), ylim=(-0.03, 1.03))
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize=8)
    return figure


def plot_coverage(sets: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> "Figure":
    """Plot accuracy by coverage, from the coverage and error rate (N) of each set."""
    figure, ax = _curves({name: (covered, 1 - wrong) for name, (covered, wrong) in sets.items()})
    ax.set(xlabel="coverage: share of images kept, most confident first", ylabel="accuracy on them, classes weighted")
    ax.set(xlim=(0, 1), ylim=(None, 1.003))
    ax.legend(fontsize=9, loc="lower left")
    return figure


def to_image(figure: "Figure") -> Image.Image:
    """Render a figure at 120 dpi."""
    buffer = BytesIO()
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # glyphs that no font has
        figure.savefig(buffer, format="png", dpi=120)
    return Image.open(buffer).convert("RGB")


def image_grid(views: torch.Tensor) -> Image.Image:
    """Arrange views (N, 3, H, W), in 0..1, in a grid, eight in a row."""
    grid = make_grid(views, nrow=8, padding=4, pad_value=1.0)
    return Image.fromarray((255 * grid).round().byte().permute(1, 2, 0).numpy())


def _new(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure  # half a second that most jobs of a sweep don't need

    return Figure(figsize=(width, height), layout="constrained")


def _panels(number: int, x_label: str, y_label: str) -> "tuple[Figure, Sequence[Axes]]":
    figure = _new(WIDTH, 2.4 * -(-number // 2))
    figure.supxlabel(x_label)
    figure.supylabel(y_label)
    return figure, _axes(figure, number, 2, share=True)


def _axes(figure: "Figure", number: int, columns: int, share: bool = False) -> "Sequence[Axes]":
    rows = -(-number // columns)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=share, sharey=share).ravel().tolist()
    for spare in axes[number:]:
        spare.set_axis_off()
    return axes[:number]


def _curves(curves: Mapping[str, Sequence[Any]]) -> "tuple[Figure, Axes]":
    """Plot curves whose first two items are x and y, (N) each, by name."""
    figure = _new(WIDTH, 5)
    ax = figure.subplots()
    for name, (x, y, *_) in curves.items():
        style: dict[str, Any] = {"color": "black", "lw": 2.2} if name == "clean" else {"lw": 1.2}
        ax.plot(x, y, label=name, **style)
    ax.grid(alpha=0.3)
    return figure, ax


def _columns(rows: Sequence[Mapping[str, Any]], *names: str) -> np.ndarray:
    return np.array([[row[name] for name in names] for row in rows]).T
