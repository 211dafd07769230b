"""The table of a sweep: a row for each job, best first, kept up to date in `sweep.csv` as jobs end."""

import csv
import io
import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from gender_cls.evaluation.tables import table
from gender_cls.files import write_text
from gender_cls.inference.arguments import command
from gender_cls.inference.predictor import MODEL_NAME

ERROR_FILE = "error.txt"
SCORES = ("f1_macro", "f1_female", "f1_male", "accuracy")


class SweepTable(Callback):
    """Hydra's callback that reads what each job left in its folder, so that any launcher will do."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        """Bring `sweep.csv` up to date. In a single run there is nothing to do."""
        if config.hydra.mode.name == "MULTIRUN":
            write_csv(Path(config.hydra.sweep.dir))

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
        print(f"\n{table(list(rows[0]), [list(row.values()) for row in shown])}\n{sweep / 'sweep.csv'}")
        calibrating = config.calibration.prior is not None
        if not rows[0]["error"] and (calibrating or not (sweep / rows[0]["job"] / MODEL_NAME).exists()):
            single = " hydra.mode=RUN" if "hparams_search=" in rows[0]["overrides"] else ""
            print(f"the best job again, with its model and plots{', calibrated' if calibrating else ''}:")
            print(train_command(rows[0]["overrides"] + single))
        if any("val" in str(row["ranked by"]) for row in rows):
            print("note: ranked on val, the split that is reported: the best row flatters; data.holdout=0.1 avoids it")
        failed = sum(bool(row["error"]) for row in rows)
        if failed:
            sys.exit(f"{failed} of {len(rows)} jobs failed")


def train_command(overrides: str) -> str:
    """Return the command that trains with some overrides, and with the folder of a user's own configuration."""
    own = [first for first in zip(sys.argv, sys.argv[1:]) if first[0] in ("--config-dir", "-cd")]
    return " ".join([command("train"), *(shlex.join(pair) for pair in own), overrides])


def write_csv(sweep: Path) -> list[dict[str, Any]]:
    """Collect the rows of a sweep's folder, best first and failures last, into `sweep.csv`, and return them."""
    jobs = [path.parent.parent for path in sweep.glob("*/.hydra/overrides.yaml")]
    rows = [row for job in sorted(jobs, key=lambda job: (len(job.name), job.name)) if (row := _row(job))]
    rows.sort(key=lambda row: -row["score"] if isinstance(row["score"], float) else math.inf)
    if rows:  # else it was stopped in the first job
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        write_text(sweep / "sweep.csv", text.getvalue())
    return rows


def _row(job: Path) -> dict[str, Any] | None:
    """Row of a job; None if it has not ended."""
    overrides = shlex.join(OmegaConf.load(job / ".hydra" / "overrides.yaml"))
    row: dict[str, Any] = {"job": job.name, "overrides": overrides, "ranked by": "", "score": ""}
    row |= {f"val {name}": "" for name in SCORES} | {"error": ""}
    if (job / ERROR_FILE).exists():
        return row | {"error": (job / ERROR_FILE).read_text(encoding="utf-8").strip()}
    if not (job / "metrics.json").exists():
        return None
    metrics = json.loads((job / "metrics.json").read_text())
    row |= {"ranked by": metrics["objective"]["name"], "score": metrics["objective"]["value"]}
    return row | {f"val {name}": metrics["val"][name] for name in SCORES}
