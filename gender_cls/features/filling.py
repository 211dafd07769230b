"""Filling of a store: images are decoded once each, by worker processes, and rows of numbers of them are stored."""

import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gender_cls.errors import ImageError, printable, reason
from gender_cls.features.store import DIGEST, Store
from gender_cls.models.backbones import Backbone
from gender_cls.transforms.decode import Decoder, content_digest

log = logging.getLogger(__name__)

SHARD_IMAGES = 256  # what a killed extraction loses at most: half a minute on two cores
BATCH, GPU_BATCH = 18, 256  # views that go through the backbone at once; in small batches malloc reuses its blocks

Wanted = Mapping[bytes, tuple[int, ...]]  # numbers of the views of each image, by its digest
Block = tuple[tuple[int, ...], list[bytes]]  # views by number, of images by digest: one pass through the backbone


@dataclass(frozen=True)
class Work:
    """What is computed of an image and stored.

    Attributes:
        views: Function of an image, its digest and numbers that returns a tensor of as many views.
        build: Builds the function that turns a batch of views into rows. On a CPU each worker process builds its own
            and runs it on one thread, so that none waits for another; for a GPU the workers make the views.
        decoder: How images are decoded.
        device: Device that the function runs on.
        dtype: Type of what is stored.
        name: What it is, for the terminal; {} stands for the number of views.
    """

    views: Callable[[Image.Image, str, Sequence[int]], torch.Tensor]
    build: Callable[[], Backbone]
    decoder: Decoder
    device: torch.device
    dtype: torch.dtype
    name: str


def complete(store: Store, work: Work, images: dict[bytes, str], wanted: Wanted, num_workers: int) -> bool:
    """Compute what is wanted and not stored yet, and return whether there was anything to compute.

    Images that can't be read, or whose content is not that of their digest, are left out with a warning.

    Args:
        store: The store.
        work: What is computed.
        images: Path of each image, by digest.
        wanted: Numbers of the views of each image, by digest.
        num_workers: Number of worker processes; 0 computes in this process.

    Raises:
        UserError: The store can't be read or written.
    """
    if not _missing(store, wanted):
        return False
    with store.lock():
        if missing := _missing(store, wanted):  # another process may have computed them meanwhile
            try:
                _fill(store, work, missing, images, num_workers)
            except KeyboardInterrupt:
                print(f"\nstored in steps of {SHARD_IMAGES} images; the same command continues from there")
                raise
    return True


def _fill(store: Store, work: Work, missing: Wanted, images: dict[bytes, str], num_workers: int) -> None:
    in_workers = work.device.type == "cpu"
    backbone = None if in_workers else work.build()
    plan = _plan(missing, BATCH if in_workers else GPU_BATCH)
    planned = [block for shard in plan for block in shard]
    blocks = _Blocks(planned, images, work, in_workers)
    workers = min(num_workers, len(blocks))
    computed = iter(DataLoader(blocks, batch_size=None, num_workers=workers, collate_fn=tuple))
    total = sum(map(len, missing.values()))
    print(f"computing {work.name.format(total)} of {len(missing)} images to {store.folder}")
    seconds = 0.1 if sys.stderr.isatty() else 30  # an occasional line in a log
    described = work.name.split()[0]
    with tqdm(total=total, desc=described, unit="view", mininterval=seconds, delay=seconds, leave=False) as bar:
        for shard in plan:
            read: list[bytes] = []
            parts = []
            for columns, digests in shard:
                some, output = next(computed)
                if some:
                    output = torch.from_numpy(output)
                    rows = _in_batches(backbone, output, GPU_BATCH) if backbone else output
                    parts.append(rows.reshape(len(some), len(columns), -1))
                    read += some
                bar.update(len(columns) * len(digests))
            if read:
                store.write(np.array(read, dtype=DIGEST), columns, torch.cat(parts).to(work.dtype))


@dataclass(eq=False)
class _Blocks(Dataset[tuple[list[bytes], Any]]):
    """Digests of the images of each block that can be read, and their views, or their rows if `in_workers`.

    Both are arrays, which workers send through a pipe; tensors would need shared memory, and containers have little.
    """

    blocks: list[Block]
    images: dict[bytes, str]
    work: Work
    in_workers: bool
    backbone: Backbone | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> tuple[list[bytes], Any]:
        if self.in_workers and not self.backbone:
            self.backbone = self.work.build()  # only after the process is forked, since it may have threads
        columns, digests = self.blocks[number]
        views = {}
        for digest in digests:
            path = self.images[digest]
            try:
                views[digest] = self.work.views(self._load(path, digest.decode()), digest.decode(), columns)
            except ImageError as error:
                log.warning("left out: %s: %s", printable(path), error)
        output = torch.cat(list(views.values())) if views else torch.empty(0)
        if self.backbone and views:
            output = _in_batches(self.backbone, output, BATCH)
        return list(views), output.numpy()

    def _load(self, path: str, digest: str) -> Image.Image:
        """Decode a file whose content has the digest, so that nothing is stored under the digest of another."""
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(reason(error)) from error
        if content_digest(content) != digest:
            raise ImageError("changed since it was checked")
        return self.work.decoder.convert(content)


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
