"""The table of a sweep: a row for each job, best first, kept up to date in `sweep.csv` as jobs end."""

import csv
import io
import json
import math
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from gender_cls.errors import printable
from gender_cls.evaluation.tables import table
from gender_cls.files import relative_paths, write_text
from gender_cls.inference.predictor import MODEL_NAME
from gender_cls.training.overrides import literal, train_command

ERROR_FILE = "error.txt"
ROWS = ".rows"  # folder of a sweep with a file for each job that has ended
SCORES = ("f1_macro", "f1_female", "f1_male", "accuracy")


class SweepTable(Callback):
    """Hydra's callback that keeps a row of each job in the sweep's folder: any launcher and subfolder will do."""

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Forget the rows of an earlier sweep in the same folder."""
        shutil.rmtree(Path(config.hydra.sweep.dir, ROWS), ignore_errors=True)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Keep the row of the job, and bring `sweep.csv` up to date. In a single run there is nothing to do."""
        if config.hydra.mode.name == "MULTIRUN":
            sweep, job = Path(config.hydra.sweep.dir), Path(config.hydra.runtime.output_dir)
            if row := _row(job, relative_paths([str(job)], sweep)[0], [*map(literal, config.hydra.overrides.task)]):
                (sweep / ROWS).mkdir(parents=True, exist_ok=True)
                write_text(sweep / ROWS / f"{config.hydra.job.num}.json", json.dumps(row))
            write_csv(sweep)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the whole table, with the overrides that differ between jobs; the exit code is 1 if a job failed."""
        sweep = Path(config.hydra.sweep.dir)
        rows = write_csv(sweep)
        if not rows:
            return
        overrides = [shlex.split(row["overrides"]) for row in rows]
        same = set.intersection(*map(set, overrides)) if len(rows) > 1 else set()
        shown = [
            row | {"overrides": shlex.join(override for override in of_job if override not in same)}
            for row, of_job in zip(rows, overrides)
        ]
        lines = table(list(rows[0]), [list(row.values()) for row in shown]).splitlines()
        print("", *map(printable, lines), printable(str(sweep / "sweep.csv")), sep="\n")
        calibrating = config.calibration.prior is not None
        if not rows[0]["error"] and (calibrating or not (sweep / rows[0]["job"] / MODEL_NAME).exists()):
            print(f"the best job again, with its model and plots{', calibrated' if calibrating else ''}:")
            print(train_command(overrides[0]))
        if any("val" in str(row["ranked by"]) for row in rows):
            print("note: ranked on val, the split that is reported: the best row flatters; data.holdout=0.1 avoids it")
        if len({row["job"] for row in rows}) < len(rows):
            print(
                "note: jobs share a folder, so each wrote over the one before; give hydra.sweep.subdir a value of each"
            )
        failed = sum(bool(row["error"]) for row in rows)
        if failed:
            sys.exit(f"{failed} of {len(rows)} jobs failed")


def write_csv(sweep: Path) -> list[dict[str, Any]]:
    """Collect the rows of a sweep's folder, best first and failures last, into `sweep.csv`, and return them."""
    files = sorted((sweep / ROWS).glob("[0-9]*.json"), key=lambda file: int(file.stem))
    rows: list[dict[str, Any]] = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    rows.sort(key=lambda row: -row["score"] if isinstance(row["score"], float) else math.inf)
    if rows:  # else it was stopped in the first job
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_text(sweep / "sweep.csv", text.getvalue())
    return rows


def _row(job: Path, name: str, overrides: list[str]) -> dict[str, Any] | None:
    """Row of a job; None if it was stopped."""
    row: dict[str, Any] = {"job": name, "overrides": shlex.join(overrides), "ranked by": "", "score": ""}
    row |= {f"val {name}": "" for name in SCORES} | {"error": ""}
    if (job / ERROR_FILE).exists():
        return row | {"error": (job / ERROR_FILE).read_text(encoding="utf-8").strip()}
    if not (job / "metrics.json").exists():
        return None
    metrics = json.loads((job / "metrics.json").read_text())
    row |= {"ranked by": metrics["objective"]["name"], "score": metrics["objective"]["value"]}
    row |= {f"val {name}": metrics["val"][name] for name in SCORES}
    return {name: "" if value is None else value for name, value in row.items()}
