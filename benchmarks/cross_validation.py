"""How `experiment=robust` was chosen: heads cross-validated over the identities of train, clean and corrupted.

Five folds of identities; val is not used. Each recipe is a line of means over three seeds: AUROC, class-balanced
log-loss and macro-F1 of the out-of-fold predictions on clean images, and their means over corruptions at severity 3 and
over the frames (0.5 to 1.25 of the image's sides). Below come differences of macro-F1 between recipes whose names are
given by --differences, with 95 % intervals that resample identities. With efficientnet_lite0 the line lr 2e-3 was
chosen.

    python benchmarks/cross_validation.py data/facecom --weights resnet18.pth
    python benchmarks/cross_validation.py data/facecom --backbone efficientnet_lite0 --weights PACKAGE
"""

import argparse
import itertools
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import binary_cross_entropy_with_logits

from gender_cls import FolderDataModule, GenderNet
from gender_cls.data.identities import fold_identities
from gender_cls.data.sources import Face
from gender_cls.evaluation.metrics import auroc, class_scores, confusion, resample
from gender_cls.evaluation.tables import table
from gender_cls.features.extractor import Extractor, FeatureOptions
from gender_cls.features.landmarks import Landmarks, landmarks_of
from gender_cls.models.zoo import find_backbone
from gender_cls.transforms.augmentation import Augmentation, RandomCorruption
from gender_cls.transforms.centerface import CenterFace
from gender_cls.transforms.faces import FRAME, cut_box, main_face
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import (
    CONDITIONS,
    FRAMES,
    REPORTED,
    EvaluationViews,
    TrainingViews,
    Views,
    in_condition,
)

FOLDS = 5
SEEDS = range(3)
COLUMNS = (*REPORTED.values(), *(CONDITIONS.index(("framing", share)) for share in FRAMES))
SETS = {"": [0], ", corrupted": range(1, len(REPORTED)), ", framed": [0, *range(len(REPORTED), len(COLUMNS))]}


@dataclass(frozen=True)
class Recipe:
    """A candidate; the defaults are those of `experiment=robust`."""

    crop: float = 0.8
    median: bool = True
    faces: str = "none"
    zoom: float = 0.62
    box: bool = False  # whether a head of whole images is asked with cut=box
    augment: Augmentation = Augmentation()
    corruption: RandomCorruption = RandomCorruption(0.5, 0.3)
    cached_views: int = 8
    lr: float = 1e-2
    cosine: bool = True
    weight_decay: float = 0.0
    epochs: int = 30
    balanced: bool = True


ROBUST = Recipe()
JITTERED = Augmentation(landmarks=(0.04, 0.05, 2.5))
FRAMED = replace(JITTERED, frame=(0.5, 1.25))
FOUR = replace(ROBUST, cached_views=4)
RECIPES = {
    "experiment=robust": ROBUST,
    "  lr 1e-3": replace(ROBUST, lr=1e-3),
    "  lr 2e-3": replace(ROBUST, lr=2e-3),
    "  lr 3e-3": replace(ROBUST, lr=3e-3),
    "  lr 3e-2": replace(ROBUST, lr=3e-2),
    "  constant lr": replace(ROBUST, cosine=False),
    "  constant lr 1e-3": replace(ROBUST, cosine=False, lr=1e-3),
    "  weight decay 1e-4": replace(ROBUST, weight_decay=1e-4),
    "  weight decay 1e-3": replace(ROBUST, weight_decay=1e-3),
    "  10 epochs": replace(ROBUST, epochs=10),
    "  60 epochs": replace(ROBUST, epochs=60),
    "  not balanced": replace(ROBUST, balanced=False),
    "4 views": FOUR,
    "  none corrupted": replace(FOUR, corruption=RandomCorruption()),
    "  a quarter corrupted": replace(FOUR, corruption=RandomCorruption(0.25, 0.3)),
    "  three quarters corrupted": replace(FOUR, corruption=RandomCorruption(0.75, 0.3)),
    "  never twice": replace(FOUR, corruption=RandomCorruption(0.5, 0.0)),
    "  severities 1 to 3": replace(FOUR, corruption=RandomCorruption(0.5, 0.3, severities=(1, 2, 3))),
    "  no median": replace(FOUR, median=False),
    "  no crop": replace(FOUR, crop=1.0),
    "  crop 0.7": replace(FOUR, crop=0.7),
    "whole": FOUR,
    "whole, cut=box": replace(FOUR, box=True),
    "whole, framed": replace(FOUR, augment=Augmentation(frame=(0.5, 1.25))),
    "aligned": replace(FOUR, faces="align", augment=JITTERED),
    "aligned, framed": replace(FOUR, faces="align", augment=FRAMED),
    "aligned 0.75": replace(FOUR, faces="align", zoom=0.75, augment=JITTERED),
    "aligned 0.75, framed": replace(FOUR, faces="align", zoom=0.75, augment=FRAMED),
    "aligned, exactly": replace(FOUR, faces="align"),
    "the baseline's preprocessing, constant lr 1e-4, none corrupted": Recipe(
        crop=1.0, median=False, corruption=RandomCorruption(), cached_views=4, lr=1e-4, cosine=False
    ),
}


class BoxViews(EvaluationViews):
    """Evaluation views of faces that are cut by their boxes, as predict.py cut=box cuts them."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        super().__init__(preprocessing)
        self.detector = CenterFace(preprocessing.min_score)
        self.facts |= {"cut": FRAME, **self.detector.facts}

    def _pixels(self, image: Image.Image, digest: str, number: int) -> np.ndarray:
        image = in_condition(image, digest, number)
        face = main_face(self.detector.find_faces(image), image.size)
        return self.preprocessing.pixels(image if face is None else cut_box(image, face.box))


class Features:
    """Features of the training images, in memory.

    Args:
        faces: Training images (N).
        extractor: Extractor of the backbone.
        inputs: Size, interpolation, mean and std of the images that the backbone's weights were made for.
    """

    def __init__(self, faces: list[Face], extractor: Extractor, inputs: dict[str, Any]) -> None:
        self.extractor, self.inputs = extractor, inputs
        self.images = {face.digest.encode(): face.path for face in faces}
        self.digests = np.array([face.digest.encode() for face in faces])

    def landmarks(self, preprocessing: Preprocessing) -> Landmarks | None:
        """Return the landmarks of the faces, if the preprocessing wants them."""
        found = landmarks_of(preprocessing, None, self.extractor.decoder)
        if found:
            found.compute(self.images, dict.fromkeys(self.images, COLUMNS), torch.get_num_threads())
        return found

    def __call__(self, views: Views, numbers: Sequence[int]) -> torch.Tensor:
        """Return the features of the views with these numbers, (N, len(numbers), F)."""
        wanted = dict.fromkeys(self.images, tuple(numbers))
        store = self.extractor.compute(views, self.images, wanted, torch.get_num_threads())
        return torch.stack([store.read(store.find(self.digests, number)) for number in numbers], dim=1)


def fit(views: torch.Tensor, labels: torch.Tensor, recipe: Recipe, seed: int) -> torch.nn.Linear:
    """Return a head that is trained as train.py does, but a draw reads a random one of the views (N, K, F)."""
    torch.manual_seed(seed)
    head = torch.nn.Linear(views.shape[-1], 1)
    optimizer = torch.optim.Adam(head.parameters(), recipe.lr, weight_decay=recipe.weight_decay)
    weights = 1 / torch.bincount(labels.long())[labels.long()] if recipe.balanced else torch.ones(len(labels))
    for epoch in range(recipe.epochs):
        if recipe.cosine:  # as CosineAnnealingLR
            optimizer.param_groups[0]["lr"] = recipe.lr * (1 + np.cos(np.pi * epoch / recipe.epochs)) / 2
        for drawn in torch.multinomial(weights, len(labels), recipe.balanced).split(32):
            inputs = views[drawn, torch.randint(recipe.cached_views, (len(drawn),))]
            loss = binary_cross_entropy_with_logits(head(inputs).squeeze(1), labels[drawn])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return head


def out_of_fold(recipe: Recipe, features: Features, labels: torch.Tensor, folds: torch.Tensor) -> torch.Tensor:
    """Return logits (len(SEEDS), len(COLUMNS), N), each from a head that was not trained on the identity."""
    how = {"crop": recipe.crop, "median": recipe.median, "faces": recipe.faces, "zoom": recipe.zoom}
    preprocessing = Preprocessing(**features.inputs, **how)
    find = features.landmarks(preprocessing)
    views = features(
        TrainingViews(preprocessing, recipe.augment, recipe.corruption, find=find), range(recipe.cached_views)
    )
    evaluation = features(BoxViews(preprocessing) if recipe.box else EvaluationViews(preprocessing, find), COLUMNS)
    shift = 0.0 if recipe.balanced else math.log(labels.mean() / (1 - labels.mean()))  # to a prior of 0.5
    logits = torch.empty(len(SEEDS), len(COLUMNS), len(labels))
    for seed, fold in itertools.product(SEEDS, range(FOLDS)):
        rest = folds != fold
        head = fit(views[rest], labels[rest], recipe, seed)
        with torch.no_grad():
            logits[seed, :, ~rest] = head(evaluation[~rest]).squeeze(2).T - shift
    return logits


def row(logits: torch.Tensor, labels: torch.Tensor) -> list[float]:
    """Return AUROC, balanced log-loss and macro-F1, each as its mean over the conditions of each of `SETS`."""
    found = []
    for condition in logits:
        losses = binary_cross_entropy_with_logits(condition, labels, reduction="none")
        balanced = float((losses[labels == 0].mean() + losses[labels == 1].mean()) / 2)
        counts = confusion((condition > 0).numpy(), labels.numpy())
        found.append((auroc(condition.sigmoid(), labels), balanced, float(class_scores(counts)["f1_macro"])))
    means = [np.mean(np.array(found, dtype=float)[list(chosen)], axis=0) for chosen in SETS.values()]
    return [float(value) for values in zip(*means) for value in values]


def difference(one: torch.Tensor, other: torch.Tensor, labels: np.ndarray, identities: list[str]) -> list[object]:
    """Return the difference of macro-F1 with its interval over each of `SETS`, and the lowest of a corruption."""
    shape = (2, len(SEEDS), len(COLUMNS))
    predictions = (torch.stack([one, other]) > 0).flatten(0, 2).numpy()
    counts = np.array([confusion(each, labels) for each in predictions])
    scores = class_scores(counts)["f1_macro"].reshape(shape).mean(1)
    resampled = class_scores(resample(predictions, labels, identities))["f1_macro"]
    differences = np.diff(resampled.reshape(len(resampled), *shape).mean(2), axis=1)[:, 0]
    cells: list[object] = []
    for chosen in SETS.values():
        low, high = np.quantile(differences[:, list(chosen)].mean(1), [0.025, 0.975])
        cells.append(f"{np.diff(scores[:, list(chosen)].mean(1))[0]:+.3f} ({low:+.3f} to {high:+.3f})")
    fall = (scores[1] - scores[0])[1 : len(REPORTED)]
    return [*cells, f"{fall.min():+.3f} {list(REPORTED)[1 + int(fall.argmin())]}"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", help="folder with train/ and val/")
    parser.add_argument("--backbone", default="resnet18", help="(%(default)s)")
    parser.add_argument("--weights", default="IMAGENET1K_V1", help="(%(default)s)")
    parser.add_argument("--only", default="", help="recipes whose name contains this")
    parser.add_argument("--differences", nargs="+", default=[], help="names: of each other recipe to the first")
    parser.add_argument("--precision", default="auto", help="of the backbone (%(default)s)")
    given = parser.parse_args()
    faces = FolderDataModule(given.root, holdout=0).faces.splits["train"]
    extractor = Extractor(GenderNet(given.weights, given.backbone), FeatureOptions(precision=given.precision))
    features = Features(faces, extractor, find_backbone(given.backbone).inputs(given.weights))
    labels = torch.tensor([float(face.label) for face in faces])
    folds = torch.tensor(fold_identities(faces, FOLDS, seed=0))
    rows: list[list[object]] = []
    found = {}
    for name, recipe in RECIPES.items():
        if given.only in name if not given.differences else name.strip() in given.differences:
            found[name.strip()] = logits = out_of_fold(recipe, features, labels, folds)
            rows.append([name, *np.mean([row(each, labels) for each in logits], axis=0).tolist()])
            print(*rows[-1], file=sys.stderr)
    header = [f"{name}{suffix}" for name in ("AUROC", "log-loss", "macro-F1") for suffix in SETS]
    print(table((f"{len(faces)} images, {FOLDS} folds", *header), rows))
    identities = [face.identity for face in faces]
    names, truth = given.differences, labels.int().numpy()
    lines = [[name, *difference(found[names[0]], found[name], truth, identities)] for name in names[1:]]
    if lines:
        print(table((f"macro-F1 minus that of {names[0]}", *(s[2:] or "clean" for s in SETS), "lowest"), lines))


if __name__ == "__main__":
    main()
