"""What an experiment gives: a training with its full report, for three seeds, and rows of figures of the means.

    python benchmarks/results.py data/facecom experiment=finetune model.weights=resnet18.pth

Further words go to train.py as they are. Minutes are those of whole processes, report included; features that are
stored already make them fewer. Intervals are 95 % and draw people; corrupted is the mean over corruptions at severity 3. The
rows prior=train are what calibration.prior=train gives.
"""

import argparse
import csv
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from gender_cls.labels import CLASSES

from gender_cls.evaluation import calibration
from gender_cls.transforms.corruptions import CORRUPTIONS
from gender_cls.evaluation.metrics import Evaluation
from gender_cls.evaluation.tables import table
from gender_cls.transforms.views import MID_SEVERITY

PROJECT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
PRIOR = 0.5  # that calibration errors are weighted to
COLUMNS = ("clean", *(f"{name}_{MID_SEVERITY}" for name in CORRUPTIONS))


def train(arguments: list[str], where: Path) -> float:
    """Run train.py; returns its minutes."""
    command = [sys.executable, str(PROJECT / "train.py"), *arguments, "report=full", f"hydra.run.dir={where}"]
    started = time.perf_counter()
    subprocess.run([*command, "trainer.enable_progress_bar=false"], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) / 60


def main() -> None:
    """Train, read the reports and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/ and val/")
    parser.add_argument("words", nargs="*", help="of train.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="(0 1 2)")
    arguments = parser.parse_args()
    minutes, probabilities = [], []
    with tempfile.TemporaryDirectory() as runs:
        for seed in arguments.seeds:
            where = Path(runs, str(seed))
            arguments = [f"data.root='{arguments.root.resolve()}'", *arguments.arguments, f"seed={seed}"]
            minutes.append(train(arguments, where))
            with open(where / "report" / "predictions.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            probabilities.append([[float(row[column]) for row in rows] for column in COLUMNS])
            print(f"seed {seed}: {minutes[-1]:.1f} minutes", file=sys.stderr)
        facts = json.loads((where / "metrics.json").read_text())
    logits = torch.logit(torch.tensor(probabilities).double(), eps=1e-6)  # (seeds, 8, N), written with six digits
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    identities = [row["identity"] for row in rows]
    table_rows = rows_of(logits, labels, identities, "")
    if facts["calibration"]:
        counts = {row["class"]: row["images"] for row in facts["data"]["counts"] if row["split"] == "train"}
        shift = math.log(counts["male"] / counts["female"]) - calibration.log_odds(facts["calibration"]["prior"])
        table_rows += rows_of(logits + shift, labels, identities, ", prior=train")
    header = ("", "macro-F1", "low", "high", "of each seed", "F1 female", "F1 male", "accuracy", "AUROC", "cal. error")
    print(f"{' '.join(arguments.arguments)}: {', '.join(f'{m:.1f}' for m in minutes)} minutes")
    print(f"{len(labels)} images of {len(set(identities))} people; calibration error: debiased, prior {PRIOR}")
    print(table(header, table_rows))


def rows_of(logits: torch.Tensor, labels: np.ndarray, identities: list[str], suffix: str) -> list[list[object]]:
    """A row of clean, and one of the mean over corruptions, of logits (seeds, 8, N)."""
    evaluation = Evaluation(logits.sigmoid().flatten(0, 1), labels, identities)
    errors = np.array([[calibration.figures(row, labels, PRIOR)["ece_debiased"] for row in seed] for seed in logits])
    table_rows: list[list[object]] = []
    for name, chosen in {"clean": [0], "corrupted": list(range(1, len(COLUMNS)))}.items():
        sets = [[len(COLUMNS) * seed + column for column in chosen] for seed in range(len(logits))]
        found = evaluation.figures(*(each for some in sets for each in some))
        each = " ".join(f"{evaluation.figures(*some)['f1_macro']:.3f}" for some in sets)
        others = [found[key] for key in ("f1_female", "f1_male", "accuracy", "auroc")]
        error = "" if suffix else float(errors[:, chosen].mean())
        table_rows.append([name + suffix, found["f1_macro"], *found["f1_macro_ci95"], each, *others, error])
    return table_rows


if __name__ == "__main__":
    main()
