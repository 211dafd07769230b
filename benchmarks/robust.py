"""`experiment=robust` against `experiment=baseline cached_views=8`: val, clean and corrupted, three seeds each.

Both predict for a prior of 0.5: the class weight of the baseline, which moves its logit by log(n / (2 n_male)), is
taken out of its head again. The differences have paired intervals, since both predict the same images and share the
bootstrap samples of identities. --first and --second compare any other two runs.

    python benchmarks/robust.py data/facecom --weights resnet18.pth
    python benchmarks/robust.py data/facecom --weights resnet18.pth \
        --first "experiment=robust data.faces=none" --second "experiment=robust data.faces=align"
"""

import argparse
import io
import math
import shlex
import tempfile
from contextlib import redirect_stdout
from pathlib import Path

import hydra
import numpy as np
import torch
from omegaconf import DictConfig

from gender_cls import FolderDataModule, Predictor
from gender_cls.data.sources import Face
from gender_cls.evaluation.metrics import auroc, class_scores, confusion, resample
from gender_cls.evaluation.robustness import Predictions, predict_conditions
from gender_cls.evaluation.tables import table
from gender_cls.features.extractor import Extractor
from gender_cls.inference.predictor import MODEL_NAME
from gender_cls.training.config import config_dir
from gender_cls.training.run import train
from gender_cls.transforms.views import IN_FRAME, MID_SEVERITY, REPORTED

SEEDS = (0, 1, 2)
PLACES = [*REPORTED.values(), *IN_FRAME.values()]


def compose(folder: Path, *overrides: str) -> DictConfig:
    """Return the configuration of a short run in a folder, as the command line composes it."""
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        always = (f"run_dir='{folder}'", "report=short", "trainer.enable_progress_bar=false")
        return hydra.compose("train", [*always, *overrides])


def predict(model: Path, shift: float, faces: list[Face]) -> Predictions:
    """Return the predictions of a model in every condition, with its logit moved by `shift`."""
    predictor = Predictor(model)
    network = predictor.network
    with torch.no_grad():
        network.head.bias += shift
    workers = torch.get_num_threads()
    return predict_conditions(network, predictor.preprocessing, faces, Extractor(network), workers)


def main() -> None:
    """Train, predict and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="(%(default)s)")
    parser.add_argument("--first", default="experiment=baseline cached_views=8", help="overrides (%(default)s)")
    parser.add_argument("--second", default="experiment=robust", help="overrides (%(default)s)")
    parser.add_argument("--epochs", type=int, help="(those of the experiments)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="(0 1 2)")
    given = parser.parse_args()
    data = FolderDataModule(given.root, holdout=0)
    n_female, n_male = data.class_counts
    class_weight = math.log((n_female + n_male) / (2 * n_male))
    same = [f"data.root='{given.root}'", f"model.weights='{given.weights}'"]
    same += [f"trainer.max_epochs={given.epochs}"] * (given.epochs is not None)
    predictions: list[Predictions] = []
    with tempfile.TemporaryDirectory() as runs:
        for at, overrides in enumerate((given.first, given.second)):
            for seed in given.seeds:
                cfg = compose(Path(runs, f"{at}_{seed}"), *shlex.split(overrides), f"seed={seed}", *same)
                shift = -class_weight if cfg.model.class_weight and cfg.calibration.prior is None else 0.0
                with redirect_stdout(io.StringIO()):
                    train(cfg)
                    predictions.append(predict(Path(cfg.run_dir, MODEL_NAME), shift, data.faces.splits["val"]))
    labels, identities = predictions[0].labels, predictions[0].identities
    print(f"macro-F1 first; {len(labels)} images of {len(set(identities))} identities, severity {MID_SEVERITY}")
    print(f"first: {given.first}; second: {given.second}")
    p_male = torch.cat([each.probabilities[PLACES] for each in predictions])
    names = ("first", "second")
    scores = [f"{score} {name}" for score in ("F1 female", "F1 male", "AUROC") for name in names]
    print(table(("", *names, "difference", "low", "high", *scores), compare(p_male, labels, identities)))


def compare(p_male: torch.Tensor, labels: np.ndarray, identities: list[str]) -> list[list[object]]:
    """Return a row for each condition and frame, and for the means, of probabilities (2 * seeds * len(PLACES), N)."""
    shape = (2, -1, len(PLACES))  # runs, seeds, conditions
    predictions = (p_male > 0.5).numpy()
    counts = np.array([confusion(row, labels) for row in predictions])
    scores = {name: values.reshape(shape).mean(1) for name, values in class_scores(counts).items()}
    scores["auroc"] = np.array([auroc(row, torch.from_numpy(labels)) for row in p_male]).reshape(shape).mean(1)
    resampled = class_scores(resample(predictions, labels, identities))["f1_macro"]
    differences = np.diff(resampled.reshape(len(resampled), *shape).mean(2), axis=1)[:, 0]  # (samples, conditions)
    chosen_by_row = {name: [at] for at, name in enumerate(REPORTED)}
    chosen_by_row["mean over corruptions"] = list(range(1, len(REPORTED)))
    chosen_by_row |= {f"frame {share}": [len(REPORTED) + at] for at, share in enumerate(IN_FRAME)}
    chosen_by_row["mean over frames"] = list(range(len(REPORTED), len(PLACES)))
    rows: list[list[object]] = []
    for name, chosen in chosen_by_row.items():
        first, second = scores["f1_macro"][:, chosen].mean(1)
        interval = np.quantile(differences[:, chosen].mean(1), [0.025, 0.975])
        others = [value for key in ("f1_female", "f1_male", "auroc") for value in scores[key][:, chosen].mean(1)]
        rows.append([name, *map(float, (first, second, second - first, *interval, *others))])
    return rows


if __name__ == "__main__":
    main()
