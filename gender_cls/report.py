"""Where a model breaks: its figures on clean and degraded pictures, as tables, pictures and one page.

  python -m gender_cls.report data.root=DIR                    the newest model, on DIR/val
  python -m gender_cls.report model=FILE data.root=DIR         DIR/val/{female,male}
  python -m gender_cls.report model=FILE data.csv=FILE         a CSV with the columns path and label

Each picture of val is asked as it is and under seven degradations of five severities, always the same ones. That
goes to a folder: report.html (all in one file), the figures as PNG, metrics.json and predictions.csv.

keys:
  model=FILE         a Binary_Classification_model.pth; by default the newest one below runs/
  data.root=DIR      or data.csv=FILE: the pictures
  data.group=COLUMN  of the CSV: figures for each of its values, and the gap between best and worst (default: group)
  data.without=RE    figures once more without the files whose name, less its ending, this regular expression matches
                     (default: as the run that made the model; null for none)
  out=DIR            where to; default: report_<name of the data>/ beside the model
  features.dir=DIR   where features are stored (default: as the run that made the model)

On pictures or people that the model was trained on the figures flatter. Who is who, and who is val where the data bring
no split, is decided as in the run that made the model.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gender_cls import cache_folder
from gender_cls.answers import Answers, Numbers, ask, check_pattern, measure
from gender_cls.checks import check
from gender_cls.errors import UserError
from gender_cls.features import Extractor
from gender_cls.gallery import draw_all
from gender_cls.page import render, to_png
from gender_cls.people import IDENTITY
from gender_cls.predictor import Predictor, newest_model
from gender_cls.reliability import measure_calibration
from gender_cls.sources import UNSPLIT, folder, manifest
from gender_cls.tables import degraded_report, describe_data
from gender_cls.weights import shown_name
from gender_cls.words import read_words, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
COMMAND = "python -m gender_cls.report"
KEYS = ("model", "data.root", "data.csv", "data.group", "data.without", "out", "features.dir")
USUAL = {"identity": IDENTITY, "val_share": 0.2, "split_seed": 0, "group": "group", "without": None}  # keys of data


@dataclass
class Report:
    """Numbers and pictures of one model on one set of faces.

    Attributes:
        model: What is reported on.
        about: What every caption says: how many pictures and people of which data, and which weights.
        answers: Of the model.
        numbers: As `measure` and, under calibration, `measure_calibration` give them.
        figures: With their captions, by name.
    """

    model: str
    about: str
    answers: Answers
    numbers: Numbers
    figures: dict[str, tuple["Figure", str]]

    def save(self, folder: Path) -> None:
        """Write the files, each whole or not at all; those of an earlier report are replaced.

        Raises:
            UserError: the folder can't be written.
        """
        pngs = {name: to_png(figure) for name, (figure, _) in self.figures.items()}
        pictures = [(pngs[name], caption) for name, (_, caption) in self.figures.items()]
        numbers = {"about": self.about, **self.numbers}
        contents = {
            PAGE: render(self.model, self.about, self.numbers, pictures).encode(errors="replace"),  # marks the folder
            "predictions.csv": self.answers.to_csv().encode(errors="surrogateescape"),
            "metrics.json": json.dumps(numbers, indent=2).encode(),
            **{f"{name}.png": png for name, png in pngs.items()},
        }
        make_folder(folder)
        try:
            for name, content in contents.items():
                unfinished = folder / f"{name}.part"
                unfinished.write_bytes(content)
                os.replace(unfinished, folder / name)
        except OSError as error:
            raise UserError(f"{folder}: {(error.strerror or str(error)).lower()}; give another folder") from error


def make_folder(folder: Path) -> None:
    """Make a folder for a report, or take that of an earlier one.

    Raises:
        UserError: it can't be made, or holds something else.
    """
    if folder.is_dir() and any(folder.iterdir()) and not (folder / PAGE).exists():
        raise UserError(f"out={folder} holds something else than a report; give a new folder")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"out={folder}: {(error.strerror or str(error)).lower()}; give another folder") from error


def build(
    answers: Answers,
    model: str,
    data: str,
    weights: str | None,
    without: str | None = None,
    calibrated: Mapping[str, Any] | None = None,
) -> Report:
    """Measure and draw.

    Args:
        answers: Of the model, in every condition.
        model: What is reported on, for the page.
        data: Name of the data, for captions.
        weights: Name or path of the backbone's weights, for captions; None for random ones.
        without: Pattern of file names that are left out in a slice.
        calibrated: What the model's JSON says of its calibration; None for a raw head.
    """
    numbers = measure(answers, without) | {"calibration": measure_calibration(answers, calibrated)}
    clean = numbers["clean"]
    about = f"{clean['pictures']} pictures of {clean['people']} people ({data}, val); weights: {shown_name(weights)}"
    return Report(model, about, answers, numbers, draw_all(answers, numbers, about))


def main(words: list[str]) -> int:
    """Report on what `words` name; returns the exit code."""
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    given = {key: values[0] for key, values in read_words(words, KEYS, (), COMMAND).items() if values}
    if ("data.root" in given) == ("data.csv" in given):
        raise UserError(f"give either data.root=DIR or data.csv=FILE; see {COMMAND} --help")
    model = Path(given.get("model") or newest_model())
    predictor = Predictor(model)
    print(f"model: {model}{predictor.note}")
    how = {**USUAL, **predictor.facts.get("report", {})}
    without = given.get("data.without", how["without"])
    without = None if without == "null" else without
    check_pattern(without)
    source = Path(given.get("data.root") or given["data.csv"])
    out = Path(given.get("out") or model.parent / f"report_{source.resolve().stem}")
    make_folder(out)
    if "data.csv" in given:
        splits = manifest(source, given.get("data.group", how["group"]), needed=("val",))
    elif "data.group" in given:
        raise UserError("data.group= names a column of a CSV; give data.csv=FILE")
    else:
        splits = folder(source, needed=("train", "val") if (source / "train").is_dir() else ("val",))
    if UNSPLIT in splits:
        print("the CSV has no column split: this is on the part that training holds out as val")
    faces = check(splits, how["identity"], how["val_share"], split_seed=how["split_seed"])
    print(describe_data(faces))
    extractor = _extractor(predictor, given)
    val = faces.splits["val"]
    answers = ask(predictor.network, predictor.preprocessing, val, extractor, os.cpu_count() or 1)
    weights = predictor.facts.get("weights", {"name": "unknown"})["name"]
    report = build(answers, str(model), source.resolve().name, weights, without, predictor.calibration)
    report.save(out)
    print(f"\n{degraded_report(report.numbers)}\n{out / PAGE}")
    return 0


def _extractor(predictor: Predictor, given: Mapping[str, str]) -> Extractor:
    """One that computes as the run of the model did."""
    how = {"precision": "auto", "dtype": "float16", "engine": "torch", **predictor.facts.get("features", {})}
    where = given.get("features.dir") or how.get("dir") or cache_folder()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Extractor(predictor.network, where, how["precision"], how["dtype"], how["engine"], device)


if __name__ == "__main__":
    run_command(main)
