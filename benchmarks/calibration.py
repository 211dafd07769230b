"""Calibration of an experiment before and after Platt scaling: three seeds, on val and on train out of fold.

Each cell is the mean over seeds, with the lowest and the highest. Classes are weighted to a prior of 0.5. Corrupted is
the mean over corruptions at severity 3 and, for slope and intercept, the lowest and highest of any. Out of fold, each
head predicts identities of train that it was not trained on. Slope and bias of the calibration are fitted on these
identities, clean and with one corruption each. The backbone of the experiment must be frozen.

    python benchmarks/calibration.py data/facecom --weights resnet18.pth
"""

import argparse
import io
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from robust import SEEDS, compose

from gender_cls.evaluation.calibration import calibration_metrics
from gender_cls.evaluation.metrics import auroc
from gender_cls.evaluation.robustness import predict_conditions
from gender_cls.evaluation.tables import table
from gender_cls.inference.runtimes import one_torch_thread
from gender_cls.training import run as training
from gender_cls.training.crossfit import HeldOut, calibrate
from gender_cls.transforms.views import REPORTED, EvaluationViews

COLUMNS = {"ece": "ECE", "ece_debiased": "debiased ECE", "slope": "slope", "intercept": "intercept"}
COLUMNS |= {"brier": "Brier", "nll": "NLL", "auroc": "AUROC"}
PRIOR = 0.5


def run_logits(cfg: DictConfig) -> tuple[dict[str, tuple[torch.Tensor, np.ndarray]], float, float]:
    """Train, and return logits (8, N) in the conditions of `REPORTED` and labels (N) by set, and slope and bias."""
    run = training.compose_run(training.prepare(cfg))
    data, network = run.data, run.module.network
    held_out = HeldOut(data, network, PRIOR)
    training.fit(run)
    with one_torch_thread():
        facts = calibrate(held_out, run.module)
    slope, bias = facts["slope"], facts["bias"]
    images = {face.digest.encode(): face.path for face in held_out.faces}
    wanted = dict.fromkeys(images, tuple(REPORTED.values()))
    views, extractor = EvaluationViews(data.views.preprocessing), data.extractor(network)
    held_out.store = extractor.compute(views, images, wanted, data.num_workers)
    digests = np.array([face.digest.encode() for face in held_out.faces])
    held_out.places = np.stack([held_out.store.find(digests, condition) for condition in REPORTED.values()])
    with one_torch_thread():
        train = held_out.logits(run.module)  # the heads of the folds again, for all conditions
    found = predict_conditions(network, views.preprocessing, data.faces.splits["val"], extractor, data.num_workers)
    val = found.logits[list(REPORTED.values())]
    sets = {
        "val, uncalibrated": ((val.double() - bias) / slope, found.labels),
        "val, calibrated": (val, found.labels),
        "train out of fold, uncalibrated": (train, held_out.labels),
        "train out of fold, calibrated": (slope * train + bias, held_out.labels),
    }
    return sets, slope, bias


def measure(logits: torch.Tensor, labels: np.ndarray) -> list[list[float | None]]:
    """Return the metrics of `COLUMNS` in each condition, of logits (8, N) and labels (N)."""
    rows = []
    for row in logits:
        area = auroc(row.double().sigmoid(), torch.from_numpy(labels))
        rows.append([(calibration_metrics(row, labels, PRIOR) | {"auroc": area})[name] for name in COLUMNS])
    return rows


def cells(name: str, metrics: np.ndarray) -> list[str]:
    """Return a row of the table, of metrics (seeds, conditions, len(COLUMNS))."""
    means = metrics.mean(1)
    line = [f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(means.mean(0), means.min(0), means.max(0))]
    if metrics.shape[1] > 1:  # values that are off to both sides would average to a good one
        for column in (list(COLUMNS).index("slope"), list(COLUMNS).index("intercept")):
            line[column] = f"{metrics[..., column].min():.3f} to {metrics[..., column].max():.3f}"
    return [name, *line]


def main() -> None:
    """Train, predict and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="(%(default)s)")
    parser.add_argument("--experiment", default="robust", help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="(0 1 2)")
    given = parser.parse_args()
    same = [f"experiment={given.experiment}", f"data.root='{given.root}'", f"model.weights='{given.weights}'"]
    same += ["calibration=platt", f"trainer.max_epochs={given.epochs}"]
    training.quieten()
    metrics: dict[str, list[list[list[float | None]]]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for seed in given.seeds:
            with redirect_stdout(io.StringIO()):
                sets, slope, bias = run_logits(compose(Path(runs, str(seed)), *same, f"seed={seed}"))
            print(f"seed {seed}: slope {slope:.3f}, bias {bias:.3f}", flush=True)
            for name, logits_and_labels in sets.items():
                metrics.setdefault(name, []).append(measure(*logits_and_labels))
    rows = []
    for name, seeds in metrics.items():
        values = np.array(seeds, dtype=float)
        rows += [cells(f"{name}, clean", values[:, :1]), cells(f"{name}, corrupted", values[:, 1:])]
    sizes = [len(sets[f"{split}, calibrated"][1]) for split in ("val", "train out of fold")]
    print(table((f"{sizes[0]} + {sizes[1]} images", *COLUMNS.values()), rows))


if __name__ == "__main__":
    main()
