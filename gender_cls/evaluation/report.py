"""Report of a model on clean and corrupted images: metrics as tables, plots and one page.

  python -m gender_cls.evaluation.report data.root=DIR                    the newest model, on DIR/val
  python -m gender_cls.evaluation.report model=FILE data.root=DIR         DIR/val/{female,male}
  python -m gender_cls.evaluation.report model=FILE data.csv=FILE         a table with the columns path and label

Each image of val is predicted as it is and under seven corruptions of five severities, the same ones in every report.
The result is a folder: report.html (all in one file), the plots as PNG, metrics.json and predictions.csv.

keys:
  model=FILE              a Binary_Classification_model.pth; by default the newest one below runs/
  data.root=DIR           or data.csv=FILE: the images
  data.classes=MAP        names of the classes, such as '{female: [f], male: [m]}' (default: as in the run that trained
                          the model)
  data.group=COLUMN       of the table: metrics for each value, and the gap between best and worst (default: group)
  data.report_exclude=RE  also report metrics without the files whose name, less its suffix, matches this regular
                          expression (default: as in the run that trained the model; null for none)
  out=DIR                 output folder; default: report_<name of the data>/ beside the model
  features.dir=DIR        folder of the stored features (default: $XDG_CACHE_HOME/gender_cls or ~/.cache/gender_cls)

Metrics are too good on images or identities that the model was trained on. Identities, and val if the data bring no
split, are found as in the run that trained the model.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from gender_cls.data.sources import UNSPLIT
from gender_cls.errors import UserError, check_regex, printable, writing
from gender_cls.evaluation.inputs import Inputs, read_arguments
from gender_cls.evaluation.page import render
from gender_cls.evaluation.reliability import measure_calibration
from gender_cls.evaluation.report_plots import draw_all
from gender_cls.evaluation.robustness import Predictions, measure, predict_conditions
from gender_cls.evaluation.tables import corruption_report
from gender_cls.files import relative_paths, replacing
from gender_cls.inference.arguments import run_main
from gender_cls.models.zoo import describe_weights

PAGE = "report.html"
COMMAND = "python -m gender_cls.evaluation.report"
KEYS = ("model", "data.root", "data.csv", "data.classes", "data.group", "data.report_exclude", "out", "features.dir")


@dataclass
class Report:
    """Metrics and plots of one model on one set of faces.

    Attributes:
        model: Path of the model.
        about: Description that every caption repeats: how many images and identities of which data, and the weights.
        predictions: Predictions of the model.
        metrics: Result of `measure` and, under `calibration`, of `measure_calibration`.
        plots: Plots with their captions, by name.
    """

    model: str
    about: str
    predictions: Predictions
    metrics: dict[str, Any]
    plots: dict[str, tuple[Image.Image, str]]

    def save(self, folder: Path) -> None:
        """Write the files, each whole or not at all, over those of an earlier report."""
        images = [(_png(image), caption) for image, caption in self.plots.values()]
        page = render(relative_paths([self.model], ".")[0], self.about, self.metrics, images)
        contents = {
            PAGE: page.encode(errors="replace"),  # marks the folder
            "predictions.csv": self.predictions.to_csv().encode(errors="surrogateescape"),
            "metrics.json": json.dumps({"about": self.about, **self.metrics}, indent=2).encode(),
            **{f"{name}.png": png for name, (png, _) in zip(self.plots, images)},
        }
        make_folder(folder)
        with writing(str(folder), "give another folder"):
            for name, content in contents.items():
                with replacing(folder / name) as unfinished:
                    unfinished.write_bytes(content)


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def make_folder(folder: Path) -> None:
    """Create the folder of a report, or accept that of an earlier one; `UserError` if it holds something else."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).exists():
        raise UserError("conflict", f"out={folder} holds something else than a report; give a new folder")
    with writing(f"out={folder}", "give another folder"):
        folder.mkdir(parents=True, exist_ok=True)


def build(
    predictions: Predictions,
    model: str,
    source: str,
    exclude: str | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> Report:
    """Compute the metrics and draw the plots of a report.

    Args:
        predictions: Predictions of the model.
        model: Path of the model.
        source: Data and weights, for captions, see `describe_source`.
        exclude: Regular expression on file names that a slice leaves out.
        calibration: Calibration of the model, as in its JSON; None if it is not calibrated.
    """
    calibrated = measure_calibration(predictions.logits, predictions.labels, predictions.identities, calibration)
    metrics = measure(predictions, exclude) | {"calibration": calibrated}
    size = f"{metrics['clean']['images']} images of {metrics['clean']['identities']} identities"
    about = f"{size}; {source}"
    return Report(model, about, predictions, metrics, draw_all(predictions, metrics, about))


def describe_source(data: Path, weights: str | None) -> str:
    """Describe data and weights for captions."""
    return f"{data.resolve().name}, val; weights: {describe_weights(weights)}"


def main(arguments: list[str]) -> int:
    """Write the report that the arguments ask for and return the exit code."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    given = read_arguments(arguments, KEYS, COMMAND)
    inputs = Inputs(given)
    predictor, source = inputs.predictor, inputs.source
    exclude = given.get("data.report_exclude", inputs.options["report_exclude"])
    exclude = None if exclude == "null" else exclude
    check_regex("data.report_exclude", exclude)
    out = Path(given.get("out") or inputs.model.parent / f"report_{source.resolve().stem}")
    make_folder(out)
    if "data.group" in given and "data.root" in given:
        raise UserError("conflict", "data.group= names a column of a table; give data.csv=FILE")
    needed = ("train", "val") if (source / "train").is_dir() else ("val",)
    listed = inputs.list_faces(needed, given.get("data.group", inputs.options["group"]))
    if UNSPLIT in listed.splits:
        print("the data bring no split: this report is on the part that training holds out as val")
    network, val, workers = predictor.network, inputs.check(listed).splits["val"], os.cpu_count() or 1
    predictions = predict_conditions(network, predictor.preprocessing, val, inputs.extractor, workers, source)
    weights = predictor.facts.get("weights", {"name": "unknown"})["name"]
    report = build(predictions, str(inputs.model), describe_source(source, weights), exclude, predictor.calibration)
    report.save(out)
    print(f"\n{corruption_report(report.metrics)}\n{printable(str(out / PAGE))}")
    return 0


if __name__ == "__main__":
    run_main(main)
