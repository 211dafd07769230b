"""How far off the probabilities of an experiment are, raw and calibrated: three seeds, val and train out of fold.

Each cell is the mean of the seeds, with the lowest and the highest. Classes are weighted to a share of men of 0.5;
corrupted is the mean over the seven corruptions at severity 3 and, of slope and intercept, the lowest and highest of
any. Out of fold, each head is asked about people of train whom it was trained without. The two numbers of the
calibration are fitted on these people, clean and in one corruption each.

    python benchmarks/calibration.py data/facecom --weights resnet18.pth
"""

import argparse
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from robust import PROJECT, SEEDS, predictions_of
from robust import train as run_train

from gender_cls.files import cache_folder
from gender_cls.evaluation.calibration import figures
from gender_cls.features.extractor import Extractor
from gender_cls.training.crossfit import HeldOut
from gender_cls.evaluation.metrics import auroc
from gender_cls.training.module import GenderModule
from gender_cls.models.network import GenderNet
from gender_cls.inference.predictor import Predictor
from gender_cls.evaluation.tables import table
from gender_cls.transforms.views import REPORTED, EvaluationViews

sys.path.insert(0, str(PROJECT))
from train import make_data

COLUMNS = {"error": "error", "ece_debiased": "debiased", "slope": "slope", "intercept": "intercept"}
COLUMNS |= {"brier": "Brier", "nll": "NLL", "auroc": "AUROC"}
Asked = tuple[torch.Tensor, np.ndarray]  # logits (8, N) in each of ASKED, labels (N)


def of_a_run(folder: Path, model: Path) -> dict[str, Asked]:
    """What the model of a run says of val, and its raw head's equals of train out of fold."""
    cfg = OmegaConf.load(folder / ".hydra" / "config.yaml")
    data = make_data(cfg, instantiate(cfg.data.source))
    predictions = predictions_of(model, 0.0, data.faces.splits["val"])
    network = GenderNet(cfg.model.weights, cfg.model.backbone)
    extractor = Extractor(network, cache_folder())
    data.compute_features(extractor, cfg.views)
    optimizer, scheduler = instantiate(cfg.model.optimizer), instantiate(cfg.model.scheduler)
    module = GenderModule(
        network, optimizer, scheduler, class_counts=data.class_counts, class_weight=cfg.model.class_weight
    )
    held_out = HeldOut(data, extractor)
    held_out.find()
    images = {face.digest.encode(): face.path for face in held_out.faces}
    wanted = dict.fromkeys(images, tuple(REPORTED.values()))
    store = held_out.store = extractor.compute(
        EvaluationViews(data.views.preprocessing), images, wanted, data.num_workers
    )
    digests = np.array([face.digest.encode() for face in held_out.faces])
    held_out.places = np.stack([store.find(digests, condition) for condition in REPORTED.values()])
    steps = cfg.trainer.max_epochs * math.ceil(len(data.faces.splits["train"]) / cfg.data.batch_size)
    asked = held_out.logits(module, steps)
    return {"val": (predictions.logits[list(REPORTED.values())], predictions.labels), "train": (asked, held_out.labels)}


def rows(logits: torch.Tensor, labels: np.ndarray) -> np.ndarray:
    """Figures in each of ASKED, (8, len(COLUMNS))."""
    every = []
    for row in logits:
        found = figures(row, labels, 0.5) | {"auroc": auroc(row.double().sigmoid(), torch.from_numpy(labels))}
        every.append([found[name] for name in COLUMNS])
    return np.array(every, dtype=float)


def cells(name: str, found: np.ndarray) -> list[str]:
    """A line of the table, of figures (seeds, conditions, len(COLUMNS)) in the clean or the corrupted conditions."""
    of_seeds = found.mean(1)
    line = [f"{m:.3f} ({a:.3f} to {b:.3f})" for m, a, b in zip(of_seeds.mean(0), of_seeds.min(0), of_seeds.max(0))]
    if found.shape[1] > 1:  # a mean would be good where some are too high and some too low
        for place in (list(COLUMNS).index("slope"), list(COLUMNS).index("intercept")):
            line[place] = f"{found[..., place].min():.3f} to {found[..., place].max():.3f}"
    return [name, *line]


def main() -> None:
    """Train, ask and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="(%(default)s)")
    parser.add_argument("--experiment", default="robust", help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="(0 1 2)")
    arguments = parser.parse_args()
    found: dict[str, list[np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for seed in arguments.seeds:
            arguments = [
                f"experiment={arguments.experiment}",
                "views=8",
                "calibration=platt",
                f"seed={seed}",
                f"trainer.max_epochs={arguments.epochs}",
            ]
            arguments += [f"data.root='{arguments.root.resolve()}'", f"model.weights='{arguments.weights}'"]
            model = run_train(arguments, Path(runs, str(seed)))
            calibration = Predictor(model).calibration
            assert calibration
            slope, bias = calibration["slope"], calibration["bias"]
            val, train = of_a_run(model.parent, model).values()
            sets = {
                "val, raw": ((val[0].double() - bias) / slope, val[1]),
                "val, calibrated": val,
                "train out of fold, raw": train,
                "train out of fold, calibrated": (slope * train[0] + bias, train[1]),
            }
            print(f"seed {seed}: slope {slope:.3f}, bias {bias:.3f}", flush=True)
            for name, asked in sets.items():
                found.setdefault(name, []).append(rows(*asked))
    shown = []
    for name, of_seeds in found.items():
        shown.append(cells(f"{name}, clean", np.array(of_seeds)[:, :1]))
        shown.append(cells(f"{name}, corrupted", np.array(of_seeds)[:, 1:]))
    print(table((f"{len(val[1])} + {len(train[1])} images", *COLUMNS.values()), shown))


if __name__ == "__main__":
    main()
