"""Where a model breaks: its figures on clean and degraded pictures, as tables, pictures and one page.

  python -m gender_cls.report data.root=DIR                    the newest model, on DIR/val
  python -m gender_cls.report model=FILE data.root=DIR         DIR/{train,val}/{female,male}, as for training
  python -m gender_cls.report model=FILE data.csv=FILE         a CSV with the columns path and label

Each picture of val is asked as it is and under seven degradations of five severities, always the same ones. That
goes to a folder: report.html (all in one file), the figures as PNG, metrics.json and predictions.csv.

keys:
  model=FILE         a Binary_Classification_model.pth; by default the newest one below runs/
  data.root=DIR      or data.csv=FILE: the pictures
  data.group=COLUMN  of the CSV: figures for each of its values, and the gap between best and worst (default: group)
  data.without=RE    figures once more without the files whose name, less its ending, this regular expression matches
  out=DIR            where to; default: report/ beside the model
  features.dir=DIR   where features are stored (default: $XDG_CACHE_HOME/gender_cls or ~/.cache/gender_cls)

Who is who, and who is val where the data bring no split, is decided as in the run that made the model.
"""

import csv
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image

from gender_cls import CLASSES, cache_folder
from gender_cls import figures as draw
from gender_cls.answers import MIDDLE, Answers, Numbers, ask, measure
from gender_cls.checks import check
from gender_cls.degrade import DEGRADATIONS, LARGEST, SEVERITIES
from gender_cls.errors import UserError
from gender_cls.export import write_json
from gender_cls.features import Extractor
from gender_cls.images import PictureError, load_rgb
from gender_cls.page import render, to_png
from gender_cls.predictor import Predictor, newest_model
from gender_cls.sources import folder, manifest
from gender_cls.tables import table, with_interval
from gender_cls.views import CLEAN, CONDITIONS, degraded
from gender_cls.words import read_words, run_command

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE = "report.html"
COMMAND = "python -m gender_cls.report"
KEYS = ("model", "data.root", "data.csv", "data.group", "data.without", "out", "features.dir")
DEFAULTS = {"identity": r"^(.+)_\d{4}$", "val_share": 0.2, "split_seed": 0, "group": "group", "without": None}


@dataclass
class Report:
    """Numbers and pictures of one model on one set of faces.

    Attributes:
        about: What every caption says: how many pictures and people of which data, and which weights.
        answers: Of the model.
        numbers: As `measure` gives them.
        figures: With their captions, by name.
    """

    about: str
    answers: Answers
    numbers: Numbers
    figures: dict[str, tuple["Figure", str]]

    def text(self) -> str:
        """The table of the terminal: macro-F1 under each degradation."""
        header = ("macro-F1 at severity", *map(str, SEVERITIES))
        rows = [*self.numbers["degraded"].items(), ("mean of the seven", self.numbers["mean_of_seven"])]
        body = table(header, [[name, *(row[severity]["f1_macro"] for severity in SEVERITIES)] for name, row in rows])
        mean = self.numbers["mean_of_seven"][MIDDLE]
        return (
            f"{body}\nmacro-F1 clean {with_interval(self.numbers['clean'])}, "
            f"mean of the seven at severity {MIDDLE} {with_interval(mean)}"
        )

    def save(self, where: Path) -> None:
        """Write the folder: whole, in the place of an earlier report.

        Raises:
            UserError: it can't be written, or is something else's.
        """
        check_folder(where)
        unfinished = where.with_name(f"{where.name}.part-{os.getpid()}")
        try:
            unfinished.mkdir(parents=True)
            pngs = {name: to_png(figure) for name, (figure, _) in self.figures.items()}
            for name, png in pngs.items():
                (unfinished / f"{name}.png").write_bytes(png)
            write_json(unfinished / "metrics.json", {"about": self.about, **self.numbers})
            self._write_predictions(unfinished / "predictions.csv")
            pictures = [(pngs[name], caption) for name, (_, caption) in self.figures.items()]
            (unfinished / PAGE).write_text(render(self.about, self.numbers, pictures), "utf-8", "replace")
            if where.exists():
                shutil.rmtree(where)
            unfinished.rename(where)
        except OSError as error:
            raise UserError(f"out={where}: {(error.strerror or str(error)).lower()}; give another folder") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def _write_predictions(self, path: Path) -> None:
        with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            rows = csv.writer(file)
            conditions = [f"{name}_{severity}" if severity else name for name, severity in CONDITIONS]
            rows.writerow(("path", "label", "identity", "group", *conditions))
            for face, p_male in zip(self.answers.faces, self.answers.probabilities.T.tolist()):
                known = (face.path, CLASSES[face.label], face.identity, face.group)
                rows.writerow((*known, *(f"{p:.6f}" for p in p_male)))


def check_folder(where: Path) -> None:
    """Refuse to write over what is no report.

    Raises:
        UserError: there is something else.
    """
    if where.exists() and not (where / PAGE).is_file():
        raise UserError(f"out={where} exists and is no report; give a new folder or delete it")


def build(answers: Answers, data: str, weights: str, without: str | None = None) -> Report:
    """Measure and draw.

    Args:
        answers: Of the model, in every condition.
        data: Name of the data, for captions.
        weights: Name of the backbone's weights, for captions.
        without: Pattern of file names that are left out in a slice.
    """
    numbers = measure(answers, without)
    clean, by_name = numbers["clean"], numbers["degraded"]
    about = f"{clean['pictures']} pictures of {clean['people']} people ({data}, val); backbone: {weights}"
    names = {"clean": CLEAN, **{name: CONDITIONS.index((name, MIDDLE)) for name in DEGRADATIONS}}
    probabilities = {name: answers.probabilities[number] for name, number in names.items()}
    middle = {"clean": clean} | {name: by_name[name][MIDDLE] for name in DEGRADATIONS}
    means = numbers["mean_of_seven"]
    by_severity = {name: [clean, *rows.values()] for name, rows in {**by_name, "mean of the seven": means}.items()}
    labels = torch.from_numpy(answers.labels)
    at = f"clean, and degraded at severity {MIDDLE}"
    drawn = {
        "severity": (draw.severity_figure(by_severity), "F1 by severity of the degradation"),
        "confusion": (draw.confusion_figure(middle), f"Labels and answers, {at}: pictures, and share of the label's"),
        "roc": (draw.roc_figure(probabilities, labels), f"Receiver operating characteristic, {at}"),
        "precision_recall": (draw.precision_recall_figure(probabilities, labels), f"Precision and recall, {at}"),
        "scores": (draw.scores_figure(probabilities, labels), f"Probabilities of male by label, {at}"),
        "mistakes": (_sheet(answers, numbers["mistakes"]), "Clean pictures answered wrong, the surest first"),
        "mistakes_degraded": (
            _sheet(answers, numbers["mistakes_degraded"]),
            f"Degraded pictures (severity {MIDDLE}) answered wrong, the surest first, each picture once",
        ),
    }
    captioned = {name: (figure, f"{caption}. {about}.") for name, (figure, caption) in drawn.items()}
    return Report(about, answers, numbers, captioned)


def _sheet(answers: Answers, mistakes: Sequence[Numbers]) -> "Figure":
    tiles = []
    for row in mistakes:
        face = answers.faces[row["index"]]
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


def main(words: list[str]) -> int:
    """Report on what `words` name; returns the exit code."""
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    given = {key: values[0] for key, values in read_words(words, KEYS, (), COMMAND).items() if values}
    if ("data.root" in given) == ("data.csv" in given):
        raise UserError(f"give either data.root=DIR or data.csv=FILE; see {COMMAND} --help")
    model = Path(given.get("model") or newest_model())
    out = Path(given.get("out") or model.parent / "report").absolute()
    check_folder(out)
    predictor = Predictor(model)
    how = {**DEFAULTS, **predictor.facts.get("report", {})}
    if "data.csv" in given:
        splits = manifest(given["data.csv"], given.get("data.group", how["group"]))
    else:
        splits = folder(given["data.root"])
    faces = check(splits, how["identity"], how["val_share"], split_seed=how["split_seed"])
    extractor = Extractor(predictor.network, given.get("features.dir") or cache_folder())
    answers = ask(predictor.network, predictor.preprocessing, faces.splits["val"], extractor, os.cpu_count() or 1)
    data = Path(given.get("data.root") or given["data.csv"]).name
    weights = Path(str(predictor.facts.get("weights", {}).get("name", "unknown"))).name
    report = build(answers, data, weights, given.get("data.without", how["without"]))
    report.save(out)
    print(f"\n{report.text()}\n{os.path.relpath(out / PAGE)}")
    return 0


if __name__ == "__main__":
    run_command(main)
