"""Logits for people that the head was not trained on: what calibration is fitted on."""

import math
import sys
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from gender_cls import CLASSES
from gender_cls.answers import logits_of
from gender_cls.datamodule import FaceDataModule
from gender_cls.degrade import DEGRADATIONS
from gender_cls.errors import UserError
from gender_cls.features import Extractor
from gender_cls.module import GenderModule
from gender_cls.network import FEATURES
from gender_cls.people import fold_people, some_people
from gender_cls.transforms import derive_seed
from gender_cls.views import CLEAN, CONDITIONS, MIDDLE, EvaluationViews

FOLDS = 5
MOST_PICTURES = 20_000  # two numbers are fitted on them


class HeldOut:
    """Pictures as they are and under one degradation each, of people that a head does not know.

    Where there are stored features, these are training pictures: each is asked of a head that is trained without the
    people of its fold, for as many draws as the final one, so that its logits have the same scale. Where there are
    none, the final head is asked about dev.

    Args:
        data: With the stored features, if there are any.
        extractor: Of the evaluation views, which are computed here.

    Attributes:
        faces: N of them.
        labels: (N), 0 or 1.
        split: train or dev.

    Raises:
        UserError: there are too few people.
    """

    def __init__(self, data: FaceDataModule, extractor: Extractor) -> None:
        self.data = data
        self.split = "train" if data.features else "dev"
        everybody = data.faces.splits.get(self.split, [])
        if not everybody:
            raise UserError(
                "calibration is fitted on people that the head is not trained on, and there are none: "
                "give data.holdout=0.1, or views=8, or calibration=none"
            )
        faces = some_people(everybody, MOST_PICTURES, "calibration")
        pictures = {face.digest.encode(): face.path for face in faces}
        degraded = {digest: _condition(digest.decode()) for digest in pictures}
        wanted = {digest: (CLEAN, condition) for digest, condition in degraded.items()}
        self.store = extractor.compute(EvaluationViews(data.views.preprocessing), pictures, wanted, data.num_workers)
        digests = np.array([face.digest.encode() for face in faces])
        conditions = np.array([degraded[digest] for digest in digests.tolist()])
        places = np.stack([self.store.find(digests, CLEAN), np.full(len(faces), -1)])
        for condition in set(conditions.tolist()):
            places[1, conditions == condition] = self.store.find(digests[conditions == condition], condition)
        there = np.all(places >= 0, axis=0)
        self.places = places[:, there]
        self.faces = [face for face, it in zip(faces, there) if it]
        self.labels = np.array([face.label for face in self.faces], dtype=int)
        people = min(
            len({face.identity for face in self.faces if face.label == label}) for label in range(len(CLASSES))
        )
        if people < 2:
            raise UserError(
                f"calibration needs two people of each class in {self.split}, and there are {people} of one; "
                "give calibration=none"
            )
        # of many pictures few are asked about, and then fewer heads leave out a fifth of the people at most
        folds = min(people, math.ceil(FOLDS * len(faces) / len(everybody)))
        self.folds = np.array(fold_people(self.faces, folds, seed=0))

    def logits(self, module: GenderModule, epochs: int) -> torch.Tensor:
        """Ask.

        Args:
            module: With the final head, and all else that heads are trained with.
            epochs: That the final head was trained for.

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
        with tqdm(
            total=number * epochs, desc="calibration", unit="epoch", mininterval=wait, delay=wait, leave=False
        ) as bar:
            for fold in range(number):
                asked = self.folds == fold
                head = self._train(module, epochs, fold, bar)
                for row, places in zip(found, self.places):
                    row[asked] = logits_of(head, self.store, places[asked])
        if not found.isfinite().all():
            raise UserError("heads of the calibration diverged; lower model.optimizer.lr, or give calibration=none")
        return found

    def _train(self, module: GenderModule, epochs: int, fold: int, bar: Any) -> nn.Linear:
        """A head as Lightning trains the final one, of everybody but the people of a fold."""
        left_out = {face.identity for face, number in zip(self.faces, self.folds) if number == fold}
        kept = np.array([face.identity not in left_out for face in self.data.faces.splits["train"]])
        seed = derive_seed("fold", self.data.sampler.seed, fold)
        sampler = self.data.make_sampler(kept, seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            head = nn.Linear(FEATURES, 1)
        optimizer = module.optimizer(head.parameters())
        scheduler = module.scheduler(optimizer) if module.scheduler else None
        for epoch in range(epochs):
            sampler.set_epoch(epoch)
            draws = iter(sampler)
            while keys := list(islice(draws, self.data.batch_size)):
                features, labels, _ = self.data.features["train"].__getitems__(keys)
                if len(labels):
                    optimizer.zero_grad()
                    loss = module.loss(head(features).squeeze(1), labels)
                    loss.backward()  # type: ignore[no-untyped-call]
                    optimizer.step()
            if scheduler:
                scheduler.step()
            bar.update()
        return head


def _condition(digest: str) -> int:
    """That a picture is degraded in, at the middle severity; which kind, its content decides."""
    kinds = list(DEGRADATIONS)
    return CONDITIONS.index((kinds[derive_seed("calibration", digest) % len(kinds)], MIDDLE))
