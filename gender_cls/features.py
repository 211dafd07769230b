"""The frozen features, computed once: views of each picture go through the backbone and into a store."""

import logging
import os
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from gender_cls.backbones import Backbone, best_precision, openvino_backbone, torch_backbone
from gender_cls.errors import UserError
from gender_cls.images import PictureError, content_digest, load_rgb
from gender_cls.network import GenderNet
from gender_cls.store import DIGEST, Store
from gender_cls.views import Views

log = logging.getLogger(__name__)

SHARD_PICTURES = 256  # what a killed extraction loses at most: half a minute on two cores
BATCH, GPU_BATCH = 18, 256  # views that go through the backbone at once; with few, malloc keeps its blocks
VERSION = 1  # to be raised when equal facts come to mean other features

Columns = tuple[int, ...]
Pictures = dict[bytes, str]  # path, by digest
Wanted = Mapping[bytes, Columns]  # views, by digest
Block = tuple[Columns, list[bytes]]  # pictures, by digest, that go through the backbone together


class Extractor:
    """The frozen backbone, and the stores of what it makes of pictures.

    A picture is decoded once for all its missing views. On a CPU each worker process runs a backbone of
    its own on one thread, so nobody waits for anybody; for a GPU the workers make the views.

    Args:
        network: Its frozen backbone is used.
        folder: That holds the stores.
        precision: Of the backbone: bf16, fp32, or auto, which is bf16 where the hardware computes with it.
        dtype: Of what is stored: float16 or float32.
        engine: torch, or openvino (the extra `fast`), which runs on CPUs.
        device: Where torch runs the backbone.

    Raises:
        UserError: OpenVINO is asked for and not installed.
    """

    def __init__(
        self,
        network: GenderNet,
        folder: str | os.PathLike[str],
        precision: str = "auto",
        dtype: str = "float16",
        engine: str = "torch",
        device: str | torch.device = "cpu",
    ) -> None:
        if engine == "openvino" and not find_spec("openvino"):
            raise UserError('features.engine=openvino needs the extra `fast`: pip install -e ".[fast]"')
        self.folder = folder
        self.dtype = getattr(torch, dtype)
        self.device = torch.device(device if engine == "torch" else "cpu")
        self.precision = best_precision(self.device) if precision == "auto" else precision
        if engine == "openvino":
            self.build = partial(openvino_backbone, network, precision=self.precision)
        else:
            self.build = partial(torch_backbone, network, precision=self.precision, device=self.device)
        self.how = {"precision": self.precision, "dtype": dtype, "engine": engine, "version": VERSION}
        self.network = network
        self._said: set[str] = set()  # stores of which it was said that they have all

    def store(self, views: Views) -> Store:
        """Where the features of these views are; each kind has a store of its own.

        Raises:
            UserError: the folder can't be written, or a shard not read.
        """
        return Store(self.folder, {"backbone": self.network.backbone_hash(), **views.facts, **self.how})

    def compute(self, views: Views, pictures: Pictures, wanted: Wanted, num_workers: int = 0) -> Store:
        """Bring a store up to what is wanted, and no further.

        Args:
            views: Of the pictures.
            pictures: Where each is.
            wanted: Views of each.
            num_workers: Processes; 0 does everything in this one.

        Returns:
            The store. Pictures that can't be read any more, or are not what they were when they were checked, are
            left out, and said.

        Raises:
            UserError: the store can't be read or written.
        """
        store = self.store(views)
        if _missing(store, wanted):
            with store.lock():
                missing = _missing(store, wanted)
                if missing:  # still, after another process may have been at work
                    try:
                        self._fill(store, views, missing, pictures, num_workers)
                    except KeyboardInterrupt:
                        print(f"\nkept in steps of {SHARD_PICTURES} pictures: the same command goes on from there")
                        raise
        elif str(store.folder) not in self._said:
            self._said.add(str(store.folder))
            print(f"all features of the {views.facts['of']} views are stored, in {store.folder}")
        return store

    def _fill(self, store: Store, views: Views, missing: Wanted, pictures: Pictures, num_workers: int) -> None:
        build = partial(self.build, preprocessing=views.preprocessing)
        in_workers = self.device.type == "cpu"
        backbone = None if in_workers else build()
        plan = _plan(missing, BATCH if in_workers else GPU_BATCH)
        blocks = _Blocks([block for shard in plan for block in shard], pictures, views, build if in_workers else None)
        computed = iter(DataLoader(blocks, batch_size=None, num_workers=min(num_workers, len(blocks))))
        total = sum(map(len, missing.values()))
        what = f"{total} {views.facts['of']} views of {len(missing)} pictures"
        print(f"computing features of {what}, into {store.folder}")
        wait = 0.1 if sys.stderr.isatty() else 30  # a line now and then in a log
        with tqdm(total=total, desc="features", unit="view", mininterval=wait, delay=wait, leave=False) as bar:
            done, started = 0, time.monotonic()
            for shard in plan:
                read: list[bytes] = []
                parts = []
                for columns, digests in shard:
                    some, output = next(computed)
                    if some:
                        features = _in_batches(backbone, output, GPU_BATCH) if backbone else output
                        parts.append(features.reshape(len(some), len(columns), -1))
                        read += some
                    done += len(digests)
                    bar.set_postfix_str(f"{done / (time.monotonic() - started):.1f} pictures/s", refresh=False)
                    bar.update(len(columns) * len(digests))
                if read:
                    store.write(np.array(read, dtype=DIGEST), columns, torch.cat(parts).to(self.dtype))


class _Blocks(Dataset[tuple[list[bytes], torch.Tensor]]):
    """For each block the pictures that could be read, and their views or, if it is to build a backbone, features."""

    def __init__(
        self, blocks: list[Block], pictures: Pictures, views: Views, build: Callable[[], Backbone] | None
    ) -> None:
        self.blocks = blocks
        self.pictures = pictures
        self.views = views
        self.build = build
        self.backbone: Backbone | None = None

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, number: int) -> tuple[list[bytes], torch.Tensor]:
        if self.build and not self.backbone:
            self.backbone = self.build()  # not before the process is forked: it may have threads
        columns, digests = self.blocks[number]
        views = {}
        for digest in digests:
            path = self.pictures[digest]
            try:
                views[digest] = self.views(_load(path, digest.decode()), digest.decode(), columns)
            except PictureError as error:
                log.warning("left out: %s: %s", path, error)
        output = torch.cat(list(views.values())) if views else torch.empty(0)
        return list(views), _in_batches(self.backbone, output, BATCH) if self.backbone and views else output


def _load(path: str, digest: str) -> Image.Image:
    """The picture, if its file still is what was checked: features of another are not stored under its digest."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise PictureError((error.strerror or str(error)).lower()) from error
    if content_digest(content) != digest:
        raise PictureError("changed since it was checked")
    return load_rgb(BytesIO(content))


def _in_batches(backbone: Backbone, views: torch.Tensor, size: int) -> torch.Tensor:
    return torch.cat([backbone(some) for some in torch.split(views, size)])  # a picture may have more views than that


def _missing(store: Store, wanted: Wanted) -> Wanted:
    missing = {}
    for columns, some in _alike(wanted).items():
        digests = np.array(some, dtype=DIGEST)
        stored = np.stack([store.find(digests, column) >= 0 for column in columns], axis=1)
        for digest, row in zip(some, stored):
            if not row.all():
                missing[digest] = tuple(column for column, there in zip(columns, row) if not there)
    return missing


def _alike(wanted: Wanted) -> dict[Columns, list[bytes]]:
    """Pictures by the views that are wanted of them."""
    alike = defaultdict(list)
    for digest, columns in wanted.items():
        alike[columns].append(digest)
    return alike


def _plan(missing: Wanted, batch: int) -> list[list[Block]]:
    """The blocks of each shard to come: pictures that miss the same views."""
    plan = []
    for columns, digests in _alike(missing).items():
        size = max(1, batch // len(columns))
        for first in range(0, len(digests), SHARD_PICTURES):
            shard = digests[first : first + SHARD_PICTURES]
            plan.append([(columns, shard[at : at + size]) for at in range(0, len(shard), size)])
    return plan
