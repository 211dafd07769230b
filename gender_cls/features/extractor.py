"""Extraction of frozen features: views of each image go once through the backbone and into a store."""

import logging
import os
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gender_cls.errors import ImageError, check_choice, check_extra, printable, reason
from gender_cls.features.store import DIGEST, Store
from gender_cls.files import cache_folder
from gender_cls.models.backbones import Backbone, best_precision, openvino_backbone, torch_backbone
from gender_cls.models.network import GenderNet
from gender_cls.transforms.decode import Decoder, content_digest
from gender_cls.transforms.views import Views

log = logging.getLogger(__name__)

SHARD_IMAGES = 256  # what a killed extraction loses at most: half a minute on two cores
BATCH, GPU_BATCH = 18, 256  # views that go through the backbone at once; in small batches malloc reuses its blocks
VERSION = 2  # to be raised when equal facts come to mean other features

Wanted = Mapping[bytes, tuple[int, ...]]  # numbers of the views of each image, by its digest
Block = tuple[tuple[int, ...], list[bytes]]  # views by number, of images by digest: one pass through the backbone


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
        self._complete: set[str] = set()  # stores that were reported as complete

    def store(self, views: Views) -> Store:
        """Return the store of the features of these views, or raise a `UserError` as `Store` does."""
        return Store(self.folder, {"backbone": self.network.backbone_hash(), **views.facts, **self.how})

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
        store = self.store(views)
        if _missing(store, wanted):
            with store.lock():
                if missing := _missing(store, wanted):  # another process may have computed them meanwhile
                    try:
                        self._fill(store, views, missing, images, num_workers)
                    except KeyboardInterrupt:
                        print(f"\nstored in steps of {SHARD_IMAGES} images; the same command continues from there")
                        raise
        elif str(store.folder) not in self._complete:
            self._complete.add(str(store.folder))
            print(f"all features of the {views.facts['of']} views are stored in {store.folder}")
        return store

    def _fill(self, store: Store, views: Views, missing: Wanted, images: dict[bytes, str], num_workers: int) -> None:
        build = partial(self.build, preprocessing=views.preprocessing)
        in_workers = self.device.type == "cpu"
        backbone = None if in_workers else build()
        plan = _plan(missing, BATCH if in_workers else GPU_BATCH)
        planned = [block for shard in plan for block in shard]
        blocks = _Blocks(planned, images, views, self.decoder, build if in_workers else None)
        workers = min(num_workers, len(blocks))
        computed = iter(DataLoader(blocks, batch_size=None, num_workers=workers, collate_fn=tuple))
        total = sum(map(len, missing.values()))
        print(f"computing features of {total} {views.facts['of']} views of {len(missing)} images to {store.folder}")
        seconds = 0.1 if sys.stderr.isatty() else 30  # an occasional line in a log
        with tqdm(total=total, desc="features", unit="view", mininterval=seconds, delay=seconds, leave=False) as bar:
            for shard in plan:
                read: list[bytes] = []
                parts = []
                for columns, digests in shard:
                    some, output = next(computed)
                    if some:
                        output = torch.from_numpy(output)
                        features = _in_batches(backbone, output, GPU_BATCH) if backbone else output
                        parts.append(features.reshape(len(some), len(columns), -1))
                        read += some
                    bar.update(len(columns) * len(digests))
                if read:
                    store.write(np.array(read, dtype=DIGEST), columns, torch.cat(parts).to(self.dtype))


@dataclass(eq=False)
class _Blocks(Dataset[tuple[list[bytes], Any]]):
    """Digests of the images of each block that can be read, and their views, or their features if `build` is given.

    Both are arrays, which workers send through a pipe; tensors would need shared memory, and containers have little.
    """

    blocks: list[Block]
    images: dict[bytes, str]
    views: Views
    decoder: Decoder
    build: Callable[[], Backbone] | None
    backbone: Backbone | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> tuple[list[bytes], Any]:
        if self.build and not self.backbone:
            self.backbone = self.build()  # only after the process is forked, since it may have threads
        columns, digests = self.blocks[number]
        views = {}
        for digest in digests:
            path = self.images[digest]
            try:
                views[digest] = self.views(self._load(path, digest.decode()), digest.decode(), columns)
            except ImageError as error:
                log.warning("left out: %s: %s", printable(path), error)
        output = torch.cat(list(views.values())) if views else torch.empty(0)
        if self.backbone and views:
            output = _in_batches(self.backbone, output, BATCH)
        return list(views), output.numpy()

    def _load(self, path: str, digest: str) -> Image.Image:
        """Decode a file whose content has the digest, so that no features are stored under the digest of another."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(reason(error)) from error
        if content_digest(content) != digest:
            raise ImageError("changed since it was checked")
        return self.decoder.convert(content)


def _in_batches(backbone: Backbone, views: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([backbone(some) for some in torch.split(views, size)])  # one image may have more views


def _missing(store: Store, wanted: Wanted) -> dict[bytes, tuple[int, ...]]:
    missing = {}
    for columns, digests in _by_columns(wanted).items():
        keys = np.array(digests, dtype=DIGEST)
        stored = np.stack([store.find(keys, column) >= 0 for column in columns], axis=1)
        for digest, row in zip(digests, stored):
            if not row.all():
                missing[digest] = tuple(column for column, there in zip(columns, row) if not there)
    return missing


def _by_columns(wanted: Wanted) -> dict[tuple[int, ...], list[bytes]]:
    """Group images by the views that are wanted of them."""
    groups = defaultdict(list)
    for digest, columns in wanted.items():
        groups[columns].append(digest)
    return groups


def _plan(missing: Wanted, batch: int) -> list[list[Block]]:
    """Return the blocks of each shard to write; its images miss the same views."""
    plan = []
    for columns, digests in _by_columns(missing).items():
        size = max(1, batch // len(columns))
        for first in range(0, len(digests), SHARD_IMAGES):
            shard = digests[first : first + SHARD_IMAGES]
            plan.append([(columns, shard[at : at + size]) for at in range(0, len(shard), size)])
    return plan
