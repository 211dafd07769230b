"""Faces to batches: the weighted sampler and the loaders."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, WeightedRandomSampler

from gender_cls import CLASSES
from gender_cls.checks import FaceSet
from gender_cls.datasets import Batch, FaceDataset, FeatureDataset, collate
from gender_cls.features import Extractor
from gender_cls.transforms import derive_seed
from gender_cls.views import CLEAN, EvaluationViews, TrainingViews

EVALUATION_BATCH = 4096  # of features: a step costs more than what it computes


class DrawSampler(WeightedRandomSampler):
    """torch's WeightedRandomSampler as a function of (seed, epoch), which also counts the draws of each picture.

    It yields (index, draw): draw 0 is the first time that the picture is drawn since the start of training, so that
    every draw can get a view of its own, whatever worker or resumed run asks. Lightning calls `set_epoch`.

    Args:
        weights: Chance of each picture, up to a factor; an epoch has as many draws as there are weights.
        seed: Of the order.
        replacement: Otherwise within an epoch no picture is drawn again before each that has a chance was drawn.
    """

    def __init__(self, weights: Sequence[float], seed: int, replacement: bool = True) -> None:
        draws_of_a_round = len(weights) if replacement else int(np.count_nonzero(weights))
        super().__init__(weights, num_samples=draws_of_a_round, replacement=replacement, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)
        self._counted = 0  # epochs whose draws are in _draws
        self._draws = np.zeros(len(weights), dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

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
        order: list[int] = []
        while len(order) < len(self):
            order += super().__iter__()
        return order[: len(self)]


class FaceDataModule(pl.LightningDataModule):
    """Loaders of a checked set of faces: of their views, or after `compute_features` of stored features.

    Args:
        faces: With the splits train, val and perhaps dev.
        views: Of the training pictures; evaluation views end in the same preprocessing.
        batch_size: Pictures a step.
        num_workers: Processes that decode and augment, and on a CPU run the frozen backbone; 0 does it in the main
            process, None takes one a core. Results do not depend on it.
        balanced_sampler: Draw both classes equally often (weights 1 / class count); otherwise each picture once an
            epoch.
        seed: Of the order of the training pictures.
    """

    def __init__(
        self,
        faces: FaceSet,
        views: TrainingViews,
        batch_size: int,
        num_workers: int | None = 0,
        balanced_sampler: bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.faces = faces
        self.views = views
        self.batch_size = batch_size
        self.num_workers = torch.get_num_threads() if num_workers is None else num_workers
        self.eval_splits = [split for split in faces.splits if split != "train"]
        evaluation = EvaluationViews(views.preprocessing)
        self.pictures = {
            split: FaceDataset(members, views if split == "train" else evaluation)
            for split, members in faces.splits.items()
        }
        self.features: dict[str, FeatureDataset] = {}
        self.balanced_sampler = balanced_sampler
        labels = self.pictures["train"].labels
        self.class_counts = np.bincount(labels, minlength=len(CLASSES)).tolist()
        self.sampler = self.make_sampler(np.ones(len(labels), dtype=bool), seed)

    def make_sampler(self, chosen: np.ndarray, seed: int) -> DrawSampler:
        """Of as many draws as there are training pictures (N), but only from those `chosen` (N, bool)."""
        labels = self.pictures["train"].labels
        counts = np.bincount(labels[chosen], minlength=len(CLASSES)).clip(1)
        weights = 1 / counts[labels] if self.balanced_sampler else np.ones(len(labels))
        return DrawSampler((weights * chosen).tolist(), seed, replacement=self.balanced_sampler)

    def compute_features(self, extractor: Extractor, number: int) -> None:
        """Have the features of `number` training views and of each clean evaluation view, and load those."""
        self.number = number
        train = self.pictures["train"]
        pictures = train.by_digest()
        rest = [self.pictures[split] for split in self.eval_splits]
        training = extractor.compute(
            train.views, pictures, dict.fromkeys(pictures, tuple(range(number))), self.num_workers
        )
        others = {digest: path for some in rest for digest, path in some.by_digest().items()}
        evaluation = extractor.compute(rest[0].views, others, dict.fromkeys(others, (CLEAN,)), self.num_workers)
        self.features = {"train": FeatureDataset(train, training, number)}
        for split in self.eval_splits:
            self.features[split] = FeatureDataset(self.pictures[split], evaluation, 1)

    def train_dataloader(self) -> DataLoader[Any]:
        """Weighted draws of augmented views.

        With worker processes Lightning starts to read before it tells the sampler the epoch, which after a resume is
        not the first.
        """
        if self.trainer is not None:
            progress: Any = self.trainer.fit_loop.epoch_progress.current  # Lightning types it too narrowly
            self.sampler.set_epoch(progress.processed)
        return self._loader("train", sampler=self.sampler)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """A loader for each of `eval_splits`, in the order of the faces."""
        return [self._loader(split) for split in self.eval_splits]

    predict_dataloader = val_dataloader

    def _loader(self, split: str, **kwargs: Any) -> DataLoader[Any]:
        if self.features:
            size = self.batch_size if split == "train" else max(self.batch_size, EVALUATION_BATCH)
            return DataLoader(self.features[split], batch_size=size, collate_fn=_whole, **kwargs)
        return DataLoader(
            self.pictures[split],
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
        if self.features:
            keys = [(index, draw % self.number) for index, draw in keys]
        items = [item for item in map(self.pictures["train"].__getitem__, keys) if item is not None]
        preprocessing = self.views.preprocessing
        mean, std = (torch.tensor(x).view(3, 1, 1) for x in (preprocessing.mean, preprocessing.std))
        views = torch.stack([view for view, _, _ in items]) * std + mean
        return views.clamp(0, 1), [CLASSES[int(label)] for _, label, _ in items]


def _whole(batch: Batch) -> Batch:
    return batch  # `FeatureDataset` gives no items to collate
