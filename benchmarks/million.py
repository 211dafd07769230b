"""Time and anonymous memory of an epoch on a store of synthetic features, by the number of images. Linux only.

The store has just been written, so most of it is still in the page cache. An epoch includes its validation.

python benchmarks/million.py --dir /path/with/12/GB
"""

import argparse
import logging
import re
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from gender_cls.data.base import FaceDataModule
from gender_cls.data.faceset import FaceSet
from gender_cls.data.sources import Face
from gender_cls.features.extractor import Extractor, FeatureOptions
from gender_cls.features.filling import SHARD_IMAGES
from gender_cls.features.store import DIGEST
from gender_cls.training.module import GenderModule
from gender_cls.transforms.views import CLEAN, EvaluationViews

VIEWS = 8
SIZES = (10_000, 100_000, 1_000_000)


def anonymous_mb() -> float:
    """Return the memory of this process that is not mapped from files."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


class Watch(threading.Thread):
    """Peak anonymous memory since the start of the thread, in MB."""

    peak = 0.0

    def run(self) -> None:
        """Measure five times a second."""
        while True:
            self.peak = max(self.peak, anonymous_mb())
            time.sleep(0.2)


class SyntheticFaces(FaceDataModule):
    """Faces without files; it measures the seconds that it takes to find their features."""

    def setup(self, stage: str) -> None:
        """Find the features."""
        started = time.perf_counter()
        super().setup(stage)
        self.seconds = time.perf_counter() - started


def epoch(number: int, folder: Path) -> None:
    """Write the store, train one epoch, print a line."""
    torch.manual_seed(0)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    options = FeatureOptions(folder)
    module, data = GenderModule(weights=None), SyntheticFaces(num_workers=0, cached_views=VIEWS, features=options)
    extractor = Extractor(module.network, options)
    training, evaluation = extractor.store(data.views), extractor.store(EvaluationViews(data.views.preprocessing))
    digests = np.array([f"{index:032x}".encode() for index in range(number)], dtype=DIGEST)
    rows = torch.rand(SHARD_IMAGES, VIEWS, 512).half()
    for first in range(0, number, SHARD_IMAGES):
        some = digests[first : first + SHARD_IMAGES]
        training.write(some, tuple(range(VIEWS)), rows[: len(some)])
        evaluation.write(some, (CLEAN,), rows[: len(some), :1])
    faces = [Face(f"faces/{i:08d}.jpg", i % 5 > 0, f"{i // 2}", "", f"{i:032x}") for i in range(number)]
    data.faces = FaceSet({"train": faces, "val": faces[: number // 10]}, [], [], "")
    watch = Watch(daemon=True)
    watch.start()
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - started - data.seconds
    stored = sum(path.stat().st_size for path in folder.glob("*/*")) / 1e9
    print(
        f"{number:9d} images, {stored:5.2f} GB stored: found in {data.seconds:5.1f} s, epoch {seconds:7.1f} s, "
        f"{seconds / number * 1e6:6.1f} us an image, peak anonymous memory {watch.peak:6.0f} MB",
        flush=True,
    )


def main() -> None:
    """Start a process for each size, so that each has its own peak memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="folder for the stores, which are deleted at the end")
    parser.add_argument("--images", type=int, help="images of a single store (default: 1e4, 1e5 and 1e6)")
    arguments = parser.parse_args()
    folder = arguments.dir / "million"
    if arguments.images:
        try:
            epoch(arguments.images, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    for number in SIZES:
        command = [sys.executable, __file__, "--dir", str(arguments.dir), "--images", str(number)]
        subprocess.run(command, check=True)


if __name__ == "__main__":
    main()
