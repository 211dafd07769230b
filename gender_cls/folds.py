"""Logits for people that the head was not trained on: what calibration is fitted on."""

import math
import sys
from collections.abc import Sequence
from copy import deepcopy
from itertools import count, islice
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from gender_cls import CLASSES, calibration
from gender_cls.answers import logits_of
from gender_cls.datamodule import DrawSampler, FaceDataModule
from gender_cls.degrade import DEGRADATIONS
from gender_cls.errors import UserError
from gender_cls.features import Extractor
from gender_cls.module import GenderModule
from gender_cls.people import fold_people, some_people
from gender_cls.sources import Face
from gender_cls.transforms import derive_seed
from gender_cls.views import CLEAN, CONDITIONS, MIDDLE, EvaluationViews

FOLDS = 5
MOST_PICTURES = 20_000  # two numbers are fitted on them


class HeldOut:
    """Pictures as they are and under one degradation each, of people that a head does not know.

    Where there are stored features, these are training pictures: each is asked of a head that is trained without the
    people of its fold, for as many steps as the final one, so that its logits have the same scale. Where there are
    none, the final head is asked about dev.

    Args:
        data: With the stored features, if there are any.
        extractor: Of the evaluation views.

    Attributes:
        faces: N of them.
        labels: (N), 0 or 1.
        split: train or dev.
        folds: (N), of each picture; of many pictures there are fewer than `FOLDS`, since few are asked about.

    Raises:
        UserError: there are too few people.
    """

    def __init__(self, data: FaceDataModule, extractor: Extractor) -> None:
        self.data, self.extractor = data, extractor
        self.split = "train" if data.features else "dev"
        everybody = data.faces.splits.get(self.split, [])
        if not everybody:
            raise UserError(
                "calibration is fitted on people that the head is not trained on, and there are none: "
                "give data.holdout=0.1, or views=8 with a frozen backbone, or calibration=none"
            )
        self.faces = faces = some_people(everybody, MOST_PICTURES, "calibration")
        number = min(_least_people(faces, self.split), math.ceil(FOLDS * len(faces) / len(everybody)))
        self.folds = np.array(fold_people(faces, number, seed=0))

    def find(self) -> None:
        """Have the features of their views, clean and degraded; of a backbone that is trained, after that.

        Raises:
            UserError: hardly a picture can be read any more.
        """
        data, faces = self.data, self.faces
        pictures = {face.digest.encode(): face.path for face in faces}
        degraded = {digest: _condition(digest.decode()) for digest in pictures}
        wanted = {digest: (CLEAN, condition) for digest, condition in degraded.items()}
        self.store = self.extractor.compute(
            EvaluationViews(data.views.preprocessing), pictures, wanted, data.num_workers
        )
        digests = np.array([face.digest.encode() for face in faces])
        conditions = np.array([degraded[digest] for digest in digests.tolist()])
        places = np.stack([self.store.find(digests, CLEAN), np.full(len(faces), -1)])
        for condition in set(conditions.tolist()):
            places[1, conditions == condition] = self.store.find(digests[conditions == condition], condition)
        there = np.all(places >= 0, axis=0)
        self.places, self.folds = places[:, there], self.folds[there]
        self.faces = [face for face, it in zip(faces, there) if it]
        self.labels = np.array([face.label for face in self.faces], dtype=int)
        if len(set(self.labels.tolist())) < len(CLASSES):
            raise UserError(f"hardly a picture of {self.split} can be read any more; are the files still there?")

    def logits(self, module: GenderModule, steps: int) -> torch.Tensor:
        """Ask, after `find`.

        Args:
            module: With the final head, and all else that heads are trained with.
            steps: That the final head was trained for.

        Returns:
            (2, N): clean and degraded.

        Raises:
            UserError: a head's values are no longer finite.
        """
        if self.split == "dev":
            head = deepcopy(module.network.head).cpu()
            return torch.stack([logits_of(head, self.store, row) for row in self.places])
        found = torch.empty(self.places.shape)
        number = int(self.folds.max()) + 1
        wait = 0.1 if sys.stderr.isatty() else 30  # a line now and then in a log
        bar = tqdm(total=number * steps, desc="calibration", unit="step", mininterval=wait, delay=wait, leave=False)
        with bar:
            for fold in range(number):
                asked = self.folds == fold
                left_out = {face.identity for face, it in zip(self.faces, asked) if it}
                kept = np.array([face.identity not in left_out for face in self.data.faces.splits["train"]])
                seed = derive_seed("fold", self.data.sampler.seed, fold)
                with torch.random.fork_rng(devices=[]):
                    torch.default_generator.manual_seed(seed)
                    head = nn.Linear(module.network.head.in_features, 1)
                train_head(head, self.data, self.data.make_sampler(kept, seed), module, steps, bar)
                for row, places in zip(found, self.places):
                    row[asked] = logits_of(head, self.store, places[asked])
        if not found.isfinite().all():
            raise UserError(
                "heads of the calibration diverged; lower model.optimizer.lr, or go on from the run's last.ckpt "
                "with calibration=none"
            )
        return found


def train_head(
    head: nn.Linear, data: FaceDataModule, sampler: DrawSampler, module: GenderModule, steps: int, bar: Any
) -> None:
    """Train a head on stored features as Lightning trains that of the module."""
    optimizer = module.optimizer(head.parameters())
    scheduler, interval = module.make_scheduler(optimizer, steps)
    done, before = 0, -1
    for epoch in count():
        if done == before:  # not one picture could be read
            return
        before = done
        sampler.set_epoch(epoch)
        draws = iter(sampler)
        while keys := list(islice(draws, data.batch_size)):
            if done == steps:
                return
            features, labels, _ = data.features["train"].__getitems__(keys)
            if len(labels):
                optimizer.zero_grad()
                loss = module.loss(head(features).squeeze(1), labels)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                done += 1
                bar.update()
                if interval == "step":
                    scheduler.step()
        if scheduler and interval == "epoch":
            scheduler.step()


def calibrate(held_out: HeldOut, module: GenderModule, steps: int, prior: float | str) -> dict[str, Any]:
    """Fit slope and bias, and fold them into the head of a module.

    Args:
        held_out: That they are fitted on.
        module: After its training.
        steps: Of that.
        prior: Share of men to answer for, in (0, 1), or `train`: that of the training pictures.

    Returns:
        What a model's JSON says of it: prior, slope and bias; what they were fitted on; and, clean and degraded, the
        figures there of the raw logits, moved by the prior's log-odds, and of the calibrated ones.

    Raises:
        UserError: a head's values are no longer finite, or hardly a picture can be read any more.
    """
    counts = held_out.data.class_counts
    share = counts[1] / sum(counts) if prior == "train" else float(prior)
    held_out.find()
    logits = held_out.logits(module, steps)
    slope, bias = calibration.fit(logits, held_out.labels)
    bias += calibration.log_odds(share)
    calibration.fold(module.network.head, slope, bias)
    asked = {"pictures": len(held_out.faces), "people": len({face.identity for face in held_out.faces})}
    of_conditions = {
        name: {
            "raw": calibration.figures(row + calibration.log_odds(share), held_out.labels, share),
            "calibrated": calibration.figures(slope * row + bias, held_out.labels, share),
        }
        for name, row in zip(("clean", "degraded"), logits)
    }
    return {"prior": share, "slope": slope, "bias": bias, "split": held_out.split, **asked, **of_conditions}


def _least_people(faces: Sequence[Face], split: str) -> int:
    """People of the class that has the fewest.

    Raises:
        UserError: they are too few for folds, or of dev none.
    """
    people = [len({face.identity for face in faces if face.label == label}) for label in range(len(CLASSES))]
    needed = 2 if split == "train" else 1
    if min(people) < needed:
        label = CLASSES[people.index(min(people))]
        raise UserError(
            f"calibration needs {needed} {label} people in {split} or more, and there are {min(people)}; "
            "give calibration=none"
        )
    return min(people)


def _condition(digest: str) -> int:
    """That a picture is degraded in, at the middle severity; which kind, its content decides."""
    kinds = list(DEGRADATIONS)
    return CONDITIONS.index((kinds[derive_seed("calibration", digest) % len(kinds)], MIDDLE))
