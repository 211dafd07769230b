"""Results of an experiment: runs with a full report for three seeds, and the means of their metrics.

    python benchmarks/results.py data/facecom experiment=finetune model.weights=resnet18.pth

Further arguments are overrides of train.py. Minutes are those of whole processes, with the report; stored features make
them fewer. Intervals are 95 % and resample identities; corrupted is the mean over corruptions at severity 3. The rows
prior=train are what calibration.prior=train gives.
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

from gender_cls.evaluation.calibration import calibration_metrics, log_odds
from gender_cls.evaluation.metrics import Evaluation
from gender_cls.evaluation.tables import table
from gender_cls.labels import CLASSES
from gender_cls.transforms.corruptions import CORRUPTIONS
from gender_cls.transforms.views import MID_SEVERITY

PROJECT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
PRIOR = 0.5  # that the ECE is weighted to
COLUMNS = ("clean", *(f"{name}_{MID_SEVERITY}" for name in CORRUPTIONS))
HEADER = ("", "macro-F1", "low", "high", "each seed", "F1 female", "F1 male", "accuracy", "AUROC", "debiased ECE")


def train(overrides: list[str], folder: Path) -> float:
    """Run train.py in a process of its own and return its minutes."""
    command = [sys.executable, str(PROJECT / "train.py"), *overrides, "report=full", f"hydra.run.dir={folder}"]
    started = time.perf_counter()
    subprocess.run([*command, "trainer.enable_progress_bar=false"], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - started) / 60


def main() -> None:
    """Train, read the reports and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/ and val/")
    parser.add_argument("overrides", nargs="*", help="overrides of train.py")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="(0 1 2)")
    given = parser.parse_args()
    minutes, probabilities = [], []
    with tempfile.TemporaryDirectory() as runs:
        for seed in given.seeds:
            folder = Path(runs, str(seed))
            minutes.append(train([f"data.root='{given.root.resolve()}'", *given.overrides, f"seed={seed}"], folder))
            with open(folder / "report" / "predictions.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            probabilities.append([[float(row[column]) for row in rows] for column in COLUMNS])
            print(f"seed {seed}: {minutes[-1]:.1f} minutes", file=sys.stderr)
        facts = json.loads((folder / "metrics.json").read_text())
    logits = torch.logit(torch.tensor(probabilities).double(), eps=1e-6)  # (seeds, 8, N), written with six digits
    labels = np.array([CLASSES.index(row["label"]) for row in rows])
    identities = [row["identity"] for row in rows]
    lines = table_rows(logits, labels, identities, "")
    if facts["calibration"]:
        counts = {row["class"]: row["images"] for row in facts["data"]["counts"] if row["split"] == "train"}
        shift = math.log(counts["male"] / counts["female"]) - log_odds(facts["calibration"]["prior"])
        lines += table_rows(logits + shift, labels, identities, ", prior=train")
    print(f"{' '.join(given.overrides)}: {', '.join(f'{m:.1f}' for m in minutes)} minutes")
    print(f"{len(labels)} images of {len(set(identities))} identities; debiased ECE at a prior of {PRIOR}")
    print(table(HEADER, lines))


def table_rows(logits: torch.Tensor, labels: np.ndarray, identities: list[str], suffix: str) -> list[list[object]]:
    """Return a row for clean images and one for the mean over corruptions, of logits (seeds, 8, N)."""
    evaluation = Evaluation(logits.sigmoid().flatten(0, 1), labels, identities)
    ece = np.array([[calibration_metrics(row, labels, PRIOR)["ece_debiased"] for row in seed] for seed in logits])
    lines: list[list[object]] = []
    for name, chosen in {"clean": [0], "corrupted": list(range(1, len(COLUMNS)))}.items():
        sets = [[len(COLUMNS) * seed + column for column in chosen] for seed in range(len(logits))]
        found = evaluation.metrics(*(number for some in sets for number in some))
        each = " ".join(f"{evaluation.metrics(*some)['f1_macro']:.3f}" for some in sets)
        others = [found[key] for key in ("f1_female", "f1_male", "accuracy", "auroc")]
        debiased = "" if suffix else float(ece[:, chosen].mean())
        lines.append([name + suffix, found["f1_macro"], *found["f1_macro_ci95"], each, *others, debiased])
    return lines


if __name__ == "__main__":
    main()
