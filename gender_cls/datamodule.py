"""Faces to batches: datasets, the weighted sampler and the loaders."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler, default_collate

from gender_cls import CLASSES
from gender_cls.checks import FaceSet
from gender_cls.images import PictureError, load_rgb
from gender_cls.sources import Face
from gender_cls.transforms import Preprocessing, Transform, derive_seed, seeded

log = logging.getLogger(__name__)

Item = tuple[torch.Tensor, float, int]  # view (3, size, size), label 0.0 or 1.0, index in the split


class FaceDataset(Dataset[Item | None]):
    """Views of the faces of one split.

    Paths and labels are arrays, not a million Python objects that each worker would copy on reading.

    Args:
        faces: Of the split.
        transform: From picture to tensor.
        view_seed: Together with a picture's content and the number of its draw it decides what is random in a view.
    """

    def __init__(self, faces: Sequence[Face], transform: Transform, view_seed: int = 0) -> None:
        self.paths = np.array([os.fsencode(face.path) for face in faces])
        self.digests = np.array([face.digest.encode() for face in faces])
        self.labels = np.array([face.label for face in faces], dtype=np.int8)
        self.transform = transform
        self.view_seed = view_seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, key: int | tuple[int, int]) -> Item | None:
        """The view of (index, draw), or of the first draw; None if the file has become unreadable since the check."""
        index, draw = key if isinstance(key, tuple) else (key, 0)
        path = os.fsdecode(self.paths[index])
        try:
            picture = load_rgb(path)
        except PictureError as error:
            log.warning("left out: %s: %s", path, error)
            return None
        view = seeded(self.transform, picture, "view", self.view_seed, self.digests[index].decode(), draw)
        return view, float(self.labels[index]), index


def collate(items: Sequence[Item | None]) -> list[torch.Tensor]:
    """Views (N, 3, size, size), labels (N) and indices (N) of the items that could be read; N may be 0."""
    read = [item for item in items if item is not None]
    if not read:
        return [torch.empty(0, 3, 1, 1), torch.empty(0), torch.empty(0, dtype=torch.int64)]
    views, labels, indices = default_collate(read)
    return [views, labels.float(), indices]


class DrawSampler(WeightedRandomSampler):
    """torch's WeightedRandomSampler as a function of (seed, epoch), which also counts the draws of each picture.

    It yields (index, draw): draw 0 is the first time that the picture is drawn since the start of training, so that
    every draw can get a view of its own, whatever worker or resumed run asks. Lightning calls `set_epoch`.

    Args:
        weights: Chance of each picture, up to a factor.
        seed: Of the order.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        super().__init__(weights, num_samples=len(weights), generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)
        self._counted = 0  # epochs whose draws are in _draws
        self._draws = np.zeros(len(weights), dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        if self._counted > self.epoch:
            self._counted, self._draws = 0, np.zeros_like(self._draws)
        while self._counted < self.epoch:
            self._draws += np.bincount(self._order(self._counted), minlength=len(self._draws))
            self._counted += 1
        draws = self._draws.copy()
        for index in self._order(self.epoch):
            yield index, int(draws[index])
            draws[index] += 1

    def _order(self, epoch: int) -> list[int]:
        self.generator.manual_seed(derive_seed("order", self.seed, epoch))
        return list(super().__iter__())


class FaceDataModule(pl.LightningDataModule):
    """Loaders of a checked set of faces.

    Args:
        faces: With the splits train, val and perhaps dev.
        preprocessing: Of every picture.
        augment: Arguments of `Preprocessing.training`.
        batch_size: Pictures a step.
        num_workers: Processes that decode and augment; 0 does it in the main process. Results do not depend on it.
        balanced_sampler: Draw both classes equally often (weights 1 / class count); otherwise all pictures alike.
        seed: Of the order of the training pictures.
        view_seed: Of what is random in their views.
    """

    def __init__(
        self,
        faces: FaceSet,
        preprocessing: Preprocessing,
        augment: Mapping[str, Any],
        batch_size: int,
        num_workers: int = 0,
        balanced_sampler: bool = True,
        seed: int = 0,
        view_seed: int = 0,
    ) -> None:
        super().__init__()
        self.faces = faces
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.eval_splits = [split for split in faces.splits if split != "train"]
        training = preprocessing.training(**augment)
        self.datasets = {
            split: FaceDataset(members, training if split == "train" else preprocessing.evaluation(), view_seed)
            for split, members in faces.splits.items()
        }
        labels = self.datasets["train"].labels
        self.class_counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
        weights = 1 / np.array(self.class_counts)[labels] if balanced_sampler else np.ones(len(labels))
        self.sampler = DrawSampler(weights.tolist(), seed)

    def train_dataloader(self) -> DataLoader[Item | None]:
        """Weighted draws of augmented views.

        With worker processes Lightning starts to read before it tells the sampler the epoch, which after a resume is
        not the first.
        """
        if self.trainer is not None:
            progress: Any = self.trainer.fit_loop.epoch_progress.current  # Lightning types it too narrowly
            self.sampler.set_epoch(progress.processed)
        return self._loader("train", sampler=self.sampler)

    def val_dataloader(self) -> list[DataLoader[Item | None]]:
        """A loader for each of `eval_splits`, in the order of the faces."""
        return [self._loader(split) for split in self.eval_splits]

    predict_dataloader = val_dataloader

    def _loader(self, split: str, **kwargs: Any) -> DataLoader[Item | None]:
        return DataLoader(
            self.datasets[split],
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            collate_fn=collate,
            **kwargs,
        )

    def first_views(self, number: int) -> tuple[torch.Tensor, list[str]]:
        """The first training views of epoch 0 as RGB in 0..1 (N, 3, size, size), and their class names."""
        self.sampler.set_epoch(0)
        keys = [key for key, _ in zip(self.sampler, range(number))]
        items = [item for item in map(self.datasets["train"].__getitem__, keys) if item is not None]
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (self.preprocessing.mean, self.preprocessing.std))
        views = torch.stack([view for view, _, _ in items]) * std + mean
        return views.clamp(0, 1), [CLASSES[int(label)] for _, label, _ in items]
