"""The plots of a report as images, with their captions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image

from gender_cls.errors import ImageError
from gender_cls.evaluation import plots
from gender_cls.evaluation.calibration import coverage
from gender_cls.inference.draw import contact_sheet
from gender_cls.transforms.corruptions import MAX_SIDE
from gender_cls.transforms.views import CONDITIONS, MID_SEVERITY, REPORTED, in_condition

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gender_cls.evaluation.robustness import Predictions

WHERE = f"clean, and corrupted at severity {MID_SEVERITY}"


def draw_all(predictions: "Predictions", metrics: Mapping[str, Any], about: str) -> dict[str, tuple[Image.Image, str]]:
    """Draw all plots of a report, with their captions, by name; each repeats `about`, the images and weights."""
    drawn = {}
    for name, (figure, caption) in _figures(predictions, metrics).items():
        figure.suptitle(fill(about, 80), fontsize=8, color="dimgrey", parse_math=False)
        drawn[name] = plots.to_image(figure), f"{caption}. {about}."
    for name, which in (("mistakes", "clean"), ("mistakes_corrupted", f"corrupted (severity {MID_SEVERITY})")):
        caption = f"Mistakes on {which} images, most confident first, shown before any crop"
        drawn[name] = _sheet(predictions, metrics[name]), f"{caption}. {about}."
    return drawn


def _figures(predictions: "Predictions", metrics: Mapping[str, Any]) -> dict[str, tuple["Figure", str]]:
    clean, by_name, calibration = metrics["clean"], metrics["corrupted"], metrics["calibration"]
    reported = {"clean": clean} | {name: rows[MID_SEVERITY] for name, rows in by_name.items()}
    every = {**by_name, "mean over corruptions": metrics["mean_over_corruptions"]}
    by_severity = {name: [clean, *rows.values()] for name, rows in every.items()}
    probabilities = {name: predictions.probabilities[number] for name, number in REPORTED.items()}
    labels = torch.from_numpy(predictions.labels)
    figures = {}
    both = clean["f1_macro"] is not None  # labels
    if both:
        figures["severity"] = plots.plot_severity(by_severity), "F1 by severity of the corruption"
        caption = "Macro-F1 and the recall of each class by the frame around the face, as a share of the image's sides"
        figures["framing"] = plots.plot_framing(metrics["framing"]), caption
    caption = f"Confusion matrices (counts, and % of the label), {WHERE}"
    figures["confusion"] = plots.plot_confusion(reported), caption
    if both:
        figures["roc"] = plots.plot_roc(probabilities, labels), f"ROC curves, {WHERE}"
        caption = f"Precision and recall, {WHERE}"
        figures["precision_recall"] = plots.plot_precision_recall(probabilities, labels), caption
    figures["scores"] = plots.plot_scores(probabilities, labels), f"Probabilities of male by label, {WHERE}"
    if calibration:
        prior, logits = calibration["prior"], predictions.logits
        curves = {name: coverage(logits[number], predictions.labels, prior)[:2] for name, number in REPORTED.items()}
        weighted = f"classes weighted to a prior of {prior:.2g}"
        caption = f"Reliability, {WHERE}: share of male images by p(male) in bins of equal mass, {weighted}; "
        caption += "the gray bars hold 95 % of the shares of a perfectly calibrated model"
        figures["reliability"] = plots.plot_reliability(calibration["bins"]), caption
        caption = f"Accuracy on the most confident images, {WHERE}, {weighted}"
        figures["coverage"] = plots.plot_coverage(curves), caption
    return figures


def _sheet(predictions: "Predictions", mistakes: Sequence[Mapping[str, Any]]) -> Image.Image:
    tiles = []
    for row in mistakes:
        face = predictions.faces[row["row"]]
        number = CONDITIONS.index((row["condition"], MID_SEVERITY if row["condition"] != "clean" else 0))
        try:
            image = in_condition(predictions.decoder.load(face.path), face.digest, number)
        except ImageError:  # it was deleted in the meantime
            image = Image.new("RGB", (8, 8), "white")
        image.thumbnail((MAX_SIDE, MAX_SIDE))
        confidence = row["p_male"] if row["prediction"] == "male" else 1 - row["p_male"]
        what = f"{row['condition']}: {row['prediction']} {confidence:.1%}, label {row['label']}"
        tiles.append((image, f"{Path(face.path).name}\n{what}"))
    return contact_sheet(tiles)
