"""`experiment=robust` against the recipe, `experiment=seed views=8`: val clean and corrupted, three seeds each.

Both answer for as many women as men: the recipe's class weight, which moves its logit by log(n / (2 n_male)), is taken
out of its head again. Intervals of the differences are paired: both are asked about the same images, and the draws
of people are shared.

    python benchmarks/robust.py data/facecom --weights resnet18.pth
"""

import argparse
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from gender_cls.files import cache_folder
from gender_cls.evaluation.robustness import Predictions, ask
from gender_cls.data.validation import check
from gender_cls.transforms.corruptions import CORRUPTIONS
from gender_cls.features.extractor import Extractor
from gender_cls.evaluation.metrics import auroc, class_scores, confusion, resample
from gender_cls.data.identities import IDENTITY
from gender_cls.inference.predictor import MODEL_NAME, Predictor
from gender_cls.data.sources import Face, folder
from gender_cls.evaluation.tables import table
from gender_cls.transforms.views import MID_SEVERITY

PROJECT = Path(__file__).parent.parent
SEEDS = (0, 1, 2)
ROWS = ("clean", *CORRUPTIONS)


def train(arguments: list[str], where: Path) -> Path:
    """Run train.py; returns the model."""
    command = [sys.executable, str(PROJECT / "train.py"), *arguments, "report=short", f"hydra.run.dir={where}"]
    subprocess.run([*command, "trainer.enable_progress_bar=false"], check=True, stdout=subprocess.DEVNULL)
    return where / MODEL_NAME


def predictions_of(model: Path, shift: float, faces: list[Face]) -> Predictions:
    """What a model says in every condition, with its logit moved by `shift`."""
    predictor = Predictor(model)
    with torch.no_grad():
        predictor.network.head.bias += shift
    extractor = Extractor(predictor.network, cache_folder())
    return ask(predictor.network, predictor.preprocessing, faces, extractor, torch.get_num_threads())


def main() -> None:
    """Train, ask and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="(%(default)s)")
    parser.add_argument("--epochs", type=int, default=30, help="(%(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="(0 1 2)")
    arguments = parser.parse_args()
    faces = check(folder(arguments.root), IDENTITY).splits
    n_male = sum(face.label for face in faces["train"])
    shifts = {"seed": -math.log(len(faces["train"]) / (2 * n_male)), "robust": 0.0}
    given = [f"data.root='{arguments.root.resolve()}'", f"model.weights='{arguments.weights}'"]
    found: dict[str, list[Predictions]] = {}
    with tempfile.TemporaryDirectory() as runs:
        for name, shift in shifts.items():
            for seed in arguments.seeds:
                arguments = [
                    f"experiment={name}",
                    "views=8",
                    f"seed={seed}",
                    f"trainer.max_epochs={arguments.epochs}",
                    *given,
                ]
                model = train(arguments, Path(runs, f"{name}_{seed}"))
                found.setdefault(name, []).append(predictions_of(model, shift, faces["val"]))
    first = found["seed"][0]
    labels, identities = first.labels, first.identities
    asked = [torch.cat([each.probabilities[:1], each.at(MID_SEVERITY)]) for name in shifts for each in found[name]]
    probabilities = torch.stack(asked).unflatten(0, (len(shifts), len(arguments.seeds)))  # (2, seeds, 8, N)
    areas = np.array([auroc(row, torch.from_numpy(labels)) for row in probabilities.flatten(0, 2)]).reshape(2, -1, 8)
    predictions = (probabilities > 0.5).numpy()
    counts = np.array([confusion(row, labels) for row in predictions.reshape(-1, len(labels))])
    scores = {name: values.reshape(2, -1, 8).mean(1) for name, values in class_scores(counts).items()}  # (2, 8)
    drawn = class_scores(resample(predictions.reshape(-1, len(labels)), labels, identities))["f1_macro"]
    differences = np.diff(drawn.reshape(len(drawn), 2, -1, 8).mean(2), axis=1)[:, 0]  # (draws, 8)
    of_rows = {name: [place] for place, name in enumerate(ROWS)} | {"mean over corruptions": list(range(1, 8))}
    rows: list[list[object]] = []
    for name, chosen in of_rows.items():
        low, high = np.quantile(differences[:, chosen].mean(1), [0.025, 0.975])
        seed, robust = scores["f1_macro"][:, chosen].mean(1)
        each = [scores[f"f1_{label}"][model, chosen].mean() for model in (0, 1) for label in ("female", "male")]
        area = areas.mean(1)[:, chosen].mean(1)
        numbers = (seed, robust, robust - seed, low, high, *each, *area)
        rows.append([name, *map(float, numbers)])
    of_f1 = ("F1 f seed", "F1 m seed", "F1 f robust", "F1 m robust")
    header = ("seed", "robust", "difference", "low", "high", *of_f1, "AUROC seed", "AUROC robust")
    print(f"macro-F1 first; {len(labels)} images of {len(set(identities))} people, corrupted at severity {MID_SEVERITY}")
    print(table(("", *header), rows))


if __name__ == "__main__":
    main()
