"""The base of the LightningDataModules: faces as batches of views or of stored features."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Subset

from gender_cls.data.datasets import FaceDataset, FeatureDataset, collate
from gender_cls.data.faceset import FaceSet
from gender_cls.data.identities import IDENTITY
from gender_cls.data.sampler import DrawSampler, draw
from gender_cls.data.sources import Listed, class_names
from gender_cls.data.validation import check, check_split
from gender_cls.errors import check_boolean, check_integer, check_regex
from gender_cls.features.extractor import Extractor, FeatureOptions
from gender_cls.features.landmarks import Landmarks, landmarks_of
from gender_cls.inference.runtimes import one_torch_thread
from gender_cls.labels import CLASSES
from gender_cls.models.network import GenderNet
from gender_cls.transforms.augmentation import Augmentation, RandomCorruption
from gender_cls.transforms.decode import MAX_PIXELS, Decoder
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import CLEAN, EvaluationViews, TrainingViews

DECIDE_A_HEAD = ("holdout", "split_seed", "batch_size", "balanced_sampler", "view_seed")
REPORTS_TOO = ("identity", "val_share", "split_seed", "group", "report_exclude", "classes")
EVALUATION_BATCH = 4096  # of features: a step costs more than what it computes


class FaceDataModule(pl.LightningDataModule):
    """Base of the data modules; a subclass lists the faces.

    With a frozen backbone and `cached_views`, `setup` computes features once, which batches then hold; else views.

    Args:
        identity: Regular expression on file names without suffix, whose first group is the identity; None: each image.
        val_share, holdout, split_seed: Who becomes val, where the data bring no split, and dev, see `check`.
        batch_size: Images in a training batch.
        num_workers: Processes that decode, augment and compute features; None: one a core. Results do not depend on it.
        balanced_sampler: Whether to draw both classes equally often, not each image once an epoch.
        seed: Seed of the order of draws.
        size, interpolation, mean, std, crop, median, faces, zoom, min_score: See `Preprocessing`.
        augment, corruption: Augmentation and corruption of training views.
        view_seed: Seed of what is random in training views.
        cached_views: Number of training views of each image whose features are stored; 0 for a new view at each draw.
        features: Where and how features are stored.
        report_exclude: Regular expression on file names; a report gives its metrics also without these images.
        classes: Names of female and of male in folders or labels, as lists by class; None for the usual ones.
        truncated, max_pixels: What becomes of files that end too early and of large images, see `Decoder`.

    Raises:
        UserError: A value is out of its range.
    """

    source: Path  # folder or file that lists the faces
    group = "group"  # column whose values a report compares

    def __init__(
        self,
        *,
        identity: str | None = IDENTITY,
        val_share: float = 0.2,
        holdout: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 32,
        num_workers: int | None = None,
        balanced_sampler: bool = True,
        seed: int = 0,
        size: int = 224,
        interpolation: str = "bilinear",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        crop: float = 1.0,
        median: bool = False,
        faces: str = "none",
        zoom: float = 0.62,
        min_score: float = 0.55,
        augment: Augmentation = Augmentation(),
        corruption: RandomCorruption = RandomCorruption(),
        view_seed: int = 0,
        cached_views: int = 8,
        features: FeatureOptions = FeatureOptions(),
        report_exclude: str | None = None,
        classes: Mapping[str, Any] | None = None,
        truncated: str = "refuse",
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        super().__init__()
        check_integer("data.batch_size", batch_size, 1)
        from_zero = {"data.view_seed": view_seed, "seed": seed, "cached_views": cached_views}
        for key, value in (from_zero | {"data.num_workers": num_workers or 0}).items():
            check_integer(key, value, 0)
        check_split(identity, val_share, holdout, split_seed)
        check_boolean("data.balanced_sampler", balanced_sampler)
        check_regex("data.report_exclude", report_exclude)
        self.identity, self.val_share, self.holdout, self.split_seed = identity, val_share, holdout, split_seed
        self.batch_size, self.balanced_sampler, self.seed = batch_size, balanced_sampler, seed
        self.num_workers = torch.get_num_threads() if num_workers is None else num_workers
        preprocessing = Preprocessing(size, crop, median, interpolation, mean, std, faces, zoom, min_score)
        self.views = TrainingViews(preprocessing, augment, corruption, view_seed)
        self.augment, self.corruption, self.view_seed = augment, corruption, view_seed
        self.cached_views, self.feature_options, self.report_exclude = cached_views, features, report_exclude
        self.classes, self.labels = classes, class_names(classes)
        self.decoder = Decoder(truncated, max_pixels)
        self.features: dict[str, FeatureDataset] = {}
        self._extractor: Extractor | None = None
        self._one_thread = ExitStack()

    def list_faces(self) -> Listed:
        """Return the faces by split, or all of them under `UNSPLIT`; `labels` has the label of each name of a class."""
        raise NotImplementedError

    @cached_property
    def faces(self) -> FaceSet:
        """Checked faces: each image is read once, and remembered."""
        return check(self.list_faces(), self.identity, self.val_share, self.holdout, self.split_seed, self.decoder)

    @cached_property
    def landmarks(self) -> Landmarks | None:
        """Landmarks of the face in each image, if faces are aligned; they are found once, and stored."""
        found = landmarks_of(self.views.preprocessing, self.feature_options.dir, self.decoder)
        if found:
            found.find(self.faces.by_digest(), self.num_workers)
        return found

    @cached_property
    def datasets(self) -> dict[str, FaceDataset]:
        """Views of the faces, by split."""
        self.views.find, faces = self.landmarks, self.faces.splits.items()
        evaluation = EvaluationViews(self.views.preprocessing, self.landmarks)
        return {s: FaceDataset(f, self.views if s == "train" else evaluation, self.decoder) for s, f in faces}

    @property
    def eval_splits(self) -> list[str]:
        """Names of the splits that are not trained on: dev, where identities are held out, and val."""
        return [split for split in self.faces.splits if split != "train"]

    @property
    def class_counts(self) -> list[int]:
        """Numbers of female and male training images."""
        return np.bincount(self.datasets["train"].labels, minlength=len(CLASSES)).tolist()

    @cached_property
    def sampler(self) -> DrawSampler:
        """Order of the training images."""
        return self.make_sampler(np.ones(len(self.datasets["train"]), dtype=bool), self.seed)

    def make_sampler(self, chosen: np.ndarray, seed: int) -> DrawSampler:
        """Return a sampler of as many draws as there are training images (N), from those `chosen` (N, bool)."""
        return draw(self.datasets["train"].labels, chosen, seed, self.balanced_sampler)

    def extractor(self, network: GenderNet) -> Extractor:
        """Return what computes and stores the features of a network, on the trainer's device."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if self._extractor is None or (self._extractor.network, self._extractor.device) != (network, device):
            self._extractor = Extractor(network, self.feature_options, device, self.decoder)
        return self._extractor

    def setup(self, stage: str) -> None:
        """Compute and store the features that the stage needs, if the backbone of the trained module is frozen."""
        network = getattr(self.trainer and self.trainer.lightning_module, "network", None)
        if self._extractor and self._extractor.network is not network:
            self.features = {}
        if not isinstance(network, GenderNet):
            return
        network.check_size(self.views.preprocessing.size, self.augment.size)
        if not self.caches(network):
            self.features = {}
            return
        splits = {"fit": self.eval_splits, "validate": self.eval_splits}.get(stage, ["val"])
        if stage == "fit" and "train" not in self.features:
            self._cache(["train"], self.cached_views, network)
        self._cache([split for split in splits if split not in self.features], 1, network)
        if stage == "fit":  # a batch of features is too little to share, and threads wait where a core is busy
            self._one_thread.enter_context(one_torch_thread())

    def teardown(self, stage: str) -> None:
        """Give torch its threads back."""
        self._one_thread.close()

    def on_exception(self, exception: BaseException) -> None:
        """Give torch its threads back."""
        self.teardown("fit")

    def caches(self, network: GenderNet) -> bool:
        """Return whether batches hold stored features of a network: what is trained makes other ones at each step."""
        return self.cached_views > 0 and network.trainable == "head"

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of weighted draws of augmented views."""
        trainer: Any = self.trainer
        if trainer is not None:  # with workers Lightning reads before it tells the sampler the epoch of a resume
            self.sampler.set_epoch(trainer.fit_loop.epoch_progress.current.processed)
            if trainer.overfit_batches:  # the draws of the first epoch, again and again
                return self._loader("train", list(self.sampler))
        return self._loader("train", sampler=self.sampler)

    def val_dataloader(self) -> list[DataLoader[Any]]:
        """Return a loader for each of `eval_splits`."""
        return [self.eval_dataloader(split) for split in self.eval_splits]

    def test_dataloader(self) -> DataLoader[Any]:
        """Return the loader of val."""
        return self.eval_dataloader("val")

    predict_dataloader = test_dataloader

    def eval_dataloader(self, split: str) -> DataLoader[Any]:
        """Return the loader of the clean images of a split, in their order."""
        return self._loader(split)

    def settings(self, network: GenderNet) -> dict[str, Any]:
        """Return what decides splits, order, views and features, by configuration key, as plain values."""
        parts: Any = {"data": self.views.preprocessing, "data.augment": self.augment, "corruption": self.corruption}
        return {
            "data": self.faces.fingerprint,
            "seed": self.seed,
            "cached_views": self.cached_views if self.caches(network) else 0,
            "features": self.extractor(network).how if self.caches(network) else None,
            **{f"data.{key}": getattr(self, key) for key in DECIDE_A_HEAD},
            **{f"{group}.{key}": value for group, part in parts.items() for key, value in part.values().items()},
        }

    def report_settings(self) -> dict[str, Any]:
        """Return what a later report on other data takes over from this run."""
        return {key: getattr(self, key) for key in REPORTS_TOO} | asdict(self.decoder)

    def _cache(self, splits: list[str], number: int, network: GenderNet) -> None:
        if splits:
            images = {digest: path for split in splits for digest, path in self.datasets[split].by_digest().items()}
            wanted = dict.fromkeys(images, tuple(range(number)) if splits == ["train"] else (CLEAN,))
            store = self.extractor(network).compute(self.datasets[splits[0]].views, images, wanted, self.num_workers)
            self.features |= {split: FeatureDataset(self.datasets[split], store, number) for split in splits}

    def _loader(self, split: str, draws: Sequence[Any] | None = None, **options: Any) -> DataLoader[Any]:
        dataset: Any = (self.features or self.datasets)[split]
        dataset = dataset if draws is None else Subset(dataset, draws)
        if self.features:
            size = self.batch_size if split == "train" else max(self.batch_size, EVALUATION_BATCH)
            return DataLoader(dataset, batch_size=size, collate_fn=list, **options)
        options |= {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        options |= {"pin_memory": torch.cuda.is_available(), "collate_fn": collate}
        return DataLoader(dataset, batch_size=self.batch_size, **options)  # Lightning wants it named
