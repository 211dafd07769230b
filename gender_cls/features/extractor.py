"""Extraction of frozen features: views of each image go once through the backbone and into a store."""

import os
from dataclasses import dataclass
from functools import partial

import torch

from gender_cls.errors import check_choice, check_extra
from gender_cls.features.filling import Wanted, Work, complete
from gender_cls.features.landmarks import landmarks_of
from gender_cls.features.store import Store
from gender_cls.files import cache_folder
from gender_cls.models.backbones import best_precision, openvino_backbone, torch_backbone
from gender_cls.models.network import GenderNet
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import EvaluationViews, Views

VERSION = 2  # to be raised when equal facts come to mean other features


@dataclass(frozen=True)
class FeatureOptions:
    """How features are computed, and where they are stored; bad values raise a `UserError`.

    Attributes:
        dir: Folder of the stores; None is `cache_folder()`.
        precision: Precision of the backbone: bf16, fp32, or auto, which is bf16 if the hardware computes with it.
        dtype: Type of the stored features: float16 or float32.
        engine: torch, or openvino (the extra `fast`), which runs on CPUs.
    """

    dir: str | os.PathLike[str] | None = None
    precision: str = "auto"
    dtype: str = "float16"
    engine: str = "torch"

    def __post_init__(self) -> None:
        check_choice("features.precision", self.precision, ("auto", "bf16", "fp32"))
        check_choice("features.dtype", self.dtype, ("float16", "float32"))
        check_choice("features.engine", self.engine, ("torch", "openvino"))
        if self.engine == "openvino":
            check_extra("features.engine=openvino", "fast", "openvino")


class Extractor:
    """A frozen backbone and the stores of its features.

    An image is decoded once for all its missing views. On a CPU each worker process runs its own backbone on one
    thread, so that none waits for another; for a GPU the workers make the views.

    Args:
        network: Network whose frozen backbone is used.
        options: How features are computed, and where they are stored.
        device: Device of the torch engine.
        decoder: How images are decoded.

    Attributes:
        how: Facts that name the stores besides those of the backbone and the views.
    """

    def __init__(
        self,
        network: GenderNet,
        options: FeatureOptions = FeatureOptions(),
        device: str | torch.device = "cpu",
        decoder: Decoder = Decoder(),
    ) -> None:
        self.network, self.decoder = network, decoder
        self.folder = options.dir or cache_folder()
        self.dtype = getattr(torch, options.dtype)
        self.device = torch.device(device if options.engine == "torch" else "cpu")
        precision = best_precision(self.device) if options.precision == "auto" else options.precision
        if options.engine == "openvino":
            self.build = partial(openvino_backbone, network.backbone, precision=precision)
        else:
            self.build = partial(torch_backbone, network.backbone, precision=precision, device=self.device)
        self.how = {"precision": precision, "dtype": options.dtype, "engine": options.engine, "version": VERSION}
        self._reported: set[str] = set()  # stores that were reported as complete

    def store(self, views: Views) -> Store:
        """Return the store of the features of these views, or raise a `UserError` as `Store` does."""
        return Store(self.folder, {"backbone": self.network.backbone_hash(), **views.facts, **self.how})

    def evaluate(
        self, preprocessing: Preprocessing, images: dict[bytes, str], wanted: Wanted, num_workers: int = 0
    ) -> Store:
        """Find the faces of images in conditions, if they are wanted, and `compute` the `EvaluationViews` of them."""
        find = landmarks_of(preprocessing, self.folder, self.decoder)
        if find:
            find.compute(images, wanted, num_workers)
        return self.compute(EvaluationViews(preprocessing, find), images, wanted, num_workers)

    def compute(self, views: Views, images: dict[bytes, str], wanted: Wanted, num_workers: int = 0) -> Store:
        """Return the store of these views, after computing the features that are wanted and not stored yet.

        Images that can't be read, or whose content is not that of their digest, are left out with a warning.

        Args:
            views: Views of the images.
            images: Path of each image, by digest.
            wanted: Numbers of the views of each image, by digest.
            num_workers: Number of worker processes; 0 computes in this process.

        Raises:
            UserError: The store can't be read or written.
        """
        store, of = self.store(views), views.facts["of"]
        build = partial(self.build, preprocessing=views.preprocessing)
        work = Work(views, build, self.decoder, self.device, self.dtype, f"features of {{}} {of} views")
        if not complete(store, work, images, wanted, num_workers) and str(store.folder) not in self._reported:
            self._reported.add(str(store.folder))
            print(f"all features of the {of} views are stored in {store.folder}")
        return store
