"""An epoch from a store of synthetic features, by the number of images: seconds and anonymous memory. Linux only.

The store has just been written, so most of it is still in the page cache; an epoch includes its validation.

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
from functools import partial
from pathlib import Path

import numpy as np
import pytorch_lightning as pl
import torch

from gender_cls.data.validation import FaceSet
from gender_cls.data.datamodule import FaceDataModule
from gender_cls.features.extractor import SHARD_IMAGES, Extractor
from gender_cls.training.module import GenderModule
from gender_cls.models.network import GenderNet
from gender_cls.data.sources import Face
from gender_cls.features.store import DIGEST
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import CLEAN, EvaluationViews, TrainingViews

VIEWS = 8
SIZES = (10_000, 100_000, 1_000_000)


def anonymous_mb() -> float:
    """Memory of this process that no file stands behind."""
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text()).group(1)) / 1024


class Watch(threading.Thread):
    """The most anonymous memory from now on."""

    peak = 0.0

    def run(self) -> None:
        """Look five times a second."""
        while True:
            self.peak = max(self.peak, anonymous_mb())
            time.sleep(0.2)


def epoch(number: int, folder: Path) -> None:
    """Write the store, train one epoch, print a line."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # as train.py does for a head
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    network = GenderNet(None)
    views = TrainingViews(Preprocessing(), flip=0.5, jitter=(0.2, 0.2, 0.2), blur=3)
    extractor = Extractor(network, folder)
    training, evaluation = extractor.store(views), extractor.store(EvaluationViews(views.preprocessing))
    digests = np.array([f"{index:032x}".encode() for index in range(number)], dtype=DIGEST)
    rows = torch.rand(SHARD_IMAGES, VIEWS, 512).half()
    for first in range(0, number, SHARD_IMAGES):
        some = digests[first : first + SHARD_IMAGES]
        training.write(some, tuple(range(VIEWS)), rows[: len(some)])
        evaluation.write(some, (CLEAN,), rows[: len(some), :1])
    faces = [Face(f"faces/{i:08d}.jpg", i % 5 > 0, f"{i // 2}", "", f"{i:032x}") for i in range(number)]
    val = faces[: number // 10]
    watch = Watch(daemon=True)
    watch.start()
    data = FaceDataModule(FaceSet({"train": faces, "val": val}, [], [], ""), views, batch_size=32)
    started = time.perf_counter()
    data.compute_features(extractor, VIEWS)
    found = time.perf_counter() - started
    module = GenderModule(network, partial(torch.optim.Adam, lr=1e-4), class_counts=data.class_counts)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    started = time.perf_counter()
    trainer.fit(module, data)
    seconds = time.perf_counter() - started
    stored = sum(path.stat().st_size for path in folder.glob("*/*")) / 1e9
    print(
        f"{number:9d} images, {stored:5.2f} GB stored: found in {found:5.1f} s, epoch {seconds:7.1f} s, "
        f"{seconds / number * 1e6:6.1f} us an image, anonymous memory {watch.peak:6.0f} MB",
        flush=True,
    )


def main() -> None:
    """One process for each size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", type=Path, required=True, help="folder for the stores, which are deleted afterwards")
    parser.add_argument("--images", type=int, help="of one store; without it 1e4, 1e5 and 1e6")
    arguments = parser.parse_args()
    folder = arguments.dir / "million"
    if arguments.images:
        try:
            epoch(arguments.images, folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    for number in SIZES:
        arguments = [sys.executable, __file__, "--dir", str(arguments.dir), "--images", str(number)]
        subprocess.run(arguments, check=True)


if __name__ == "__main__":
    main()
