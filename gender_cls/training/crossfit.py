"""Logits of identities that the head was not trained on, which calibration is fitted on."""

import math
import sys
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from itertools import chain, repeat
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from tqdm import tqdm

from gender_cls.data.base import FaceDataModule
from gender_cls.data.identities import fold_identities, sample_identities
from gender_cls.data.sampler import DrawSampler
from gender_cls.data.sources import Face
from gender_cls.errors import UserError
from gender_cls.evaluation import calibration
from gender_cls.evaluation.robustness import logits_of
from gender_cls.labels import CLASSES
from gender_cls.models.network import GenderNet
from gender_cls.training.module import GenderModule
from gender_cls.training.schedules import make_optimizer
from gender_cls.transforms.corruptions import CORRUPTIONS
from gender_cls.transforms.views import CLEAN, CONDITIONS, MID_SEVERITY, derive_seed

FOLDS = 5
MAX_IMAGES = 20_000  # two numbers are fitted on them


class HeldOut:
    """Images, clean and under one corruption each, of identities that a head was not trained on.

    With stored features, training images, each predicted by a head that is trained without the identities of its fold,
    for as many steps as the final one, so that logits have the same scale; otherwise dev, predicted by the final head.

    Args:
        data: The data module.
        network: The network that is trained.
        prior: Share of male images to predict for, in (0, 1), or `train`: that of the training images.

    Raises:
        UserError: There are too few identities.
    """

    def __init__(self, data: FaceDataModule, network: GenderNet, prior: float | str) -> None:
        self.data, self.network, self.prior = data, network, prior
        self.split = "train" if data.caches(network) else "dev"
        everything = data.faces.splits.get(self.split, [])
        if not everything:
            way_out = "give data.holdout=0.1, or cached_views=8 with a frozen backbone, or calibration=none"
            raise UserError("conflict", f"no identities are held out, which calibration is fitted on; {way_out}")
        self.faces = faces = sample_identities(everything, MAX_IMAGES, "calibration")
        number = min(_fewest_identities(faces, self.split), math.ceil(FOLDS * len(faces) / len(everything)))
        self.folds = np.array(fold_identities(faces, number, seed=0))

    def find(self) -> None:
        """Compute the features of their views, clean and corrupted, once what makes the features is trained."""
        data, faces = self.data, self.faces
        images = {face.digest.encode(): face.path for face in faces}
        digests = np.array([face.digest.encode() for face in faces])
        conditions = np.array([_condition(face.digest) for face in faces])
        wanted = {digest: (CLEAN, condition) for digest, condition in zip(digests.tolist(), conditions.tolist())}
        extractor = data.extractor(self.network)
        self.store = extractor.evaluate(data.views.preprocessing, images, wanted, data.num_workers)
        places = np.stack([self.store.find(digests, CLEAN), np.full(len(faces), -1)])
        for condition in set(conditions.tolist()):
            places[1, conditions == condition] = self.store.find(digests[conditions == condition], condition)
        there = np.all(places >= 0, axis=0)
        self.places, self.folds = places[:, there], self.folds[there]
        self.faces = [face for face, it in zip(faces, there) if it]
        self.labels = np.array([face.label for face in self.faces], dtype=int)
        if len(set(self.labels.tolist())) < len(CLASSES):
            raise UserError("not-found", f"hardly an image of {self.split} can be read any more; are the files there?")

    def logits(self, module: GenderModule) -> torch.Tensor:
        """Return logits (2, N), clean and corrupted, after `find`; heads of folds are trained as that of `module`."""
        if self.split == "dev":
            head = deepcopy(module.network.head).cpu()
            return torch.stack([logits_of(head, self.store, row) for row in self.places])
        found = torch.empty(self.places.shape)
        number = int(self.folds.max()) + 1
        total = number * sum(steps for steps, _ in module.steps)
        wait = 0.1 if sys.stderr.isatty() else 30  # a line now and then in a log
        with tqdm(total=total, desc="calibration", unit="step", mininterval=wait, delay=wait, leave=False) as bar:
            for fold in range(number):
                chosen = self.folds == fold
                left_out = {face.identity for face, it in zip(self.faces, chosen) if it}
                kept = np.array([face.identity not in left_out for face in self.data.faces.splits["train"]])
                seed = derive_seed("fold", self.data.sampler.seed, fold)
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed)
                    head = nn.Linear(module.network.head.in_features, 1)
                train_head(head, self.data, self.data.make_sampler(kept, seed), module, bar)
                for row, places in zip(found, self.places):
                    row[chosen] = logits_of(head, self.store, places[chosen])
        if not found.isfinite().all():
            way_out = "lower model.optimizer.lr, or resume from the run's last.ckpt with calibration=none"
            raise UserError("diverged", f"heads of the calibration diverged; {way_out}")
        return found


class _Fold(pl.LightningModule):
    """A head that is trained on features as the head of `module` was, with the learning rates of its steps."""

    def __init__(self, head: nn.Linear, module: GenderModule, bar: Any) -> None:
        super().__init__()
        self.head, self.bar = head, bar
        self.loss, self.optimizer = module.loss, module.hparams["optimizer"]
        self.values = chain.from_iterable(repeat(values, steps) for steps, values in module.steps)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        features, labels, _ = batch
        return self.loss(self.head(features).squeeze(1), labels) if len(labels) else None

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        optimizer.param_groups[0].update(next(self.values))
        self.bar.update()

    def configure_optimizers(self) -> Optimizer:
        return make_optimizer(self.optimizer, self.head.parameters())


def train_head(head: nn.Linear, data: FaceDataModule, sampler: DrawSampler, module: GenderModule, bar: Any) -> None:
    """Train a head on stored features for as many steps as that of the module, and in the same way."""
    steps = sum(steps for steps, _ in module.steps)
    loader = DataLoader(data.features["train"], batch_size=data.batch_size, sampler=sampler, collate_fn=list)
    trainer = pl.Trainer(accelerator="cpu", devices=1, max_steps=steps, max_epochs=max(1, steps), barebones=True)
    trainer.fit(_Fold(head, module, bar), loader)


def calibrate(held_out: HeldOut, module: GenderModule) -> dict[str, Any]:
    """Fit slope and bias on held-out logits, and fold them into the head of a trained module.

    Args:
        held_out: What they are fitted on.
        module: The module, after its training.

    Returns:
        Prior, slope and bias; whether the fit found nothing in the logits (`blind`); what they were fitted on; and the
        calibration metrics there, uncalibrated (moved by the log-odds of the prior) and calibrated.

    Raises:
        UserError: A head diverged, or hardly an image can be read any more.
    """
    counts = held_out.data.class_counts
    share = counts[1] / sum(counts) if held_out.prior == "train" else float(held_out.prior)
    held_out.find()
    logits = held_out.logits(module)
    slope, bias = calibration.fit(logits, held_out.labels)
    bias += calibration.log_odds(share)
    calibration.fold(module.network.head, slope, bias)
    blind = calibration.is_blind({"slope": slope})
    facts: dict[str, Any] = {"prior": share, "slope": slope, "bias": bias, "blind": blind, "split": held_out.split}
    facts |= {"images": len(held_out.faces), "identities": len({face.identity for face in held_out.faces})}
    for name, row in zip(("clean", "corrupted"), logits):
        kinds = {"uncalibrated": row + calibration.log_odds(share), "calibrated": slope * row + bias}
        metrics = partial(calibration.calibration_metrics, labels=held_out.labels, prior=share)
        facts[name] = {kind: metrics(values) for kind, values in kinds.items()}
    return facts


def _fewest_identities(faces: Sequence[Face], split: str) -> int:
    numbers = [len({face.identity for face in faces if face.label == label}) for label in range(len(CLASSES))]
    needed = 2 if split == "train" else 1
    if min(numbers) < needed:
        what = f"{needed} {CLASSES[numbers.index(min(numbers))]} identities in {split}"
        found = f"{min(numbers)} found; give calibration=none"
        raise UserError("too-few-identities", f"calibration needs at least {what}, {found}")
    return min(numbers)


def _condition(digest: str) -> int:
    """Condition that an image is corrupted in: of middle severity, of a kind that its content decides."""
    kinds = list(CORRUPTIONS)
    return CONDITIONS.index((kinds[derive_seed("calibration", digest) % len(kinds)], MID_SEVERITY))
