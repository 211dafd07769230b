"""Time and memory of the recipe's 30 epochs: the plain loop, and this project with 8 cached views, cold and warm.

Then an epoch in which the whole network is trained, with the validation after it: the plain loop, the recipe's views
in bf16 where the processor computes with it, and experiment=finetune.

Whole processes, one after another, on the same data, weights and machine; the plain loop is timed over two epochs and
scaled. Cold means empty caches: images are checked, features computed. Linux only (memory is read from /proc).

    python benchmarks/training.py data/facecom --weights resnet18.pth
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from gender_cls.evaluation.tables import table

PROJECT = Path(__file__).parent.parent
EPOCHS, TIMED = 30, 2


@dataclass
class Measured:
    """Measurements of a whole process with its workers."""

    seconds: float
    peak_mb: float
    output: str


def measure(arguments: list[str], folder: str) -> Measured:
    """Run a command in a folder, with its caches there.

    Raises:
        RuntimeError: The command failed.
    """
    started, peak = time.perf_counter(), 0.0
    with tempfile.TemporaryFile("w+") as output:
        environment = {**os.environ, "XDG_CACHE_HOME": f"{folder}/cache"}
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, cwd=folder, env=environment)
        while process.poll() is None:
            peak = max(peak, memory_mb(process.pid))
            time.sleep(0.1)
        seconds = time.perf_counter() - started
        output.seek(0)
        text = output.read()
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{text}")
    return Measured(seconds, peak, text)


def memory_mb(pid: int) -> float:
    """Return the proportional set size of a process and its children: what they share counts once."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
        own = int(re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE).group(1)) / 1024
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return own + sum(memory_mb(int(child)) for child in children)
    except (OSError, AttributeError):  # it has ended
        return 0.0


def recipe_rows(plain: list[str], ours: list[str], folder: str) -> list[list[object]]:
    """Return rows for 30 epochs of the head."""
    rows: list[list[object]] = []
    loop = measure([*plain, "--epochs", str(TIMED)], folder)
    epochs = [float(number) for number in re.findall(r"seconds ([\d.]+)", loop.output)]
    whole = loop.seconds + (EPOCHS - TIMED) * sum(epochs) / TIMED
    rows.append([f"plain loop ({TIMED} epochs, scaled)", f"{whole:.1f}", "1.0", f"{loop.peak_mb:.0f}", ""])
    print(f"an epoch of the plain loop: {sum(epochs) / TIMED:.1f} s")
    for engine in ("torch", "openvino") if find_spec("openvino") else ("torch",):
        arguments = [*ours, "experiment=baseline", "cached_views=8", f"trainer.max_epochs={EPOCHS}"]
        arguments += [f"features.engine={engine}", f"features.dir=features_{engine}"]
        for state in ("cold", "warm"):
            if state == "cold":
                Path(folder, "cache/gender_cls/pictures.sqlite").unlink(missing_ok=True)
            run = measure([*arguments, f"hydra.run.dir={engine}_{state}"], folder)
            f1 = json.loads(Path(folder, f"{engine}_{state}", "metrics.json").read_text())["val"]["f1_macro"]
            speed_up = f"{whole / run.seconds:.1f}"
            rows.append([f"{engine}, {state}", f"{run.seconds:.1f}", speed_up, f"{run.peak_mb:.0f}", f1])
    return rows


def finetune_rows(plain: list[str], ours: list[str], folder: str) -> list[list[object]]:
    """Return rows for an epoch that trains everything, measured over two, so that a start-up counts half."""
    loop = measure([*plain, "--all", "--epochs", "1"], folder)
    seconds = float(re.findall(r"seconds ([\d.]+)", loop.output)[0])
    rows: list[list[object]] = [["plain loop", f"{seconds:.1f}", "1.0", f"{loop.peak_mb:.0f}"]]
    variants = {
        "the recipe's views, precision=auto": ["experiment=baseline", "model.trainable=all", "trainer.precision=auto"],
        "experiment=finetune": ["experiment=finetune", "calibration=none", "report=short"],
    }
    for name, arguments in variants.items():
        arguments += ["data.holdout=0", f"trainer.max_epochs={TIMED}", "hydra.run.dir=tuned"]
        run = measure([*ours, *arguments], folder)
        fitted = json.loads(Path(folder, "tuned", "metrics.json").read_text())["fit"]
        epoch = fitted["seconds"] / fitted["epochs"]
        rows.append([name, f"{epoch:.1f}", f"{seconds / epoch:.1f}", f"{run.peak_mb:.0f}"])
    return rows


def main() -> None:
    """Measure all and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with train/ and val/")
    parser.add_argument("--weights", type=Path, help="state dict of a resnet18 (default: ImageNet's)")
    parser.add_argument("--trainable", choices=("head", "all"), help="only this table (default: both)")
    given = parser.parse_args()
    root, weights = given.root.resolve(), given.weights and given.weights.resolve()

    with tempfile.TemporaryDirectory() as folder:
        plain = [sys.executable, str(PROJECT / "benchmarks/plain.py"), str(root)]
        plain += ["--weights", str(weights)] if weights else []
        ours = [sys.executable, str(PROJECT / "train.py"), f"data.root='{root}'", "trainer=cpu"]
        ours += ["trainer.enable_progress_bar=false", *([f"model.weights='{weights}'"] if weights else [])]
        if given.trainable != "all":
            header = ("30 epochs", "seconds", "speed-up", "peak memory (MB)", "val macro-F1")
            print(table(header, recipe_rows(plain, ours, folder)))
        if given.trainable != "head":
            header = ("an epoch of the whole network", "seconds", "speed-up", "peak memory (MB)")
            print(table(header, finetune_rows(plain, ours, folder)))


if __name__ == "__main__":
    main()
