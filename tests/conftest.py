"""Tiny drawn faces, and the two entry points as a user starts them, but in this process."""

import os

os.environ["OMP_NUM_THREADS"] = "1"  # there is a worker for each core; torch reads it once, when it is imported

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from torchvision.models import resnet18

from gender_cls.data import drawn as drawing
from gender_cls.errors import UserError

ROOT = Path(__file__).parent.parent
TINY = ("data.size=32", "data.batch_size=8", "data.num_workers=0", "trainer.accelerator=cpu")
Run = Callable[..., Path]


@dataclass(frozen=True)
class Failure:
    """How an entry point failed.

    Attributes:
        code: Code of the `UserError`.
        line: What was printed.
    """

    code: str
    line: str


Fails = Callable[..., Failure]


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the user's cache nor the network: what a test needs it makes."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
    os.environ["TORCH_HOME"] = str(tmp_path_factory.mktemp("torch"))


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 female and 32 male images to train on, 12 and 16 to report on; never written to by a test."""
    root = tmp_path_factory.mktemp("faces") / "Task_A_Dataset"
    drawing.draw(root, {"train": (16, 32), "val": (12, 16)}, side=48)
    return root


@pytest.fixture
def faces(drawn: Path, tmp_path: Path) -> Path:
    """A copy of the drawn faces that a test may spoil."""
    return Path(shutil.copytree(drawn, tmp_path / "Task_A_Dataset"))


@pytest.fixture(scope="session")
def backbone_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float16 state dict of a resnet18 of 1000 classes, as weights are passed around."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.save({name: tensor.half() for name, tensor in resnet18().state_dict().items()}, path)
    return path


def script(name: str, *arguments: str) -> None:
    """Run an entry point of the project in this process, as `python NAME ARGUMENTS` would."""
    before, sys.argv = sys.argv, [name, *arguments]
    handler = signal.getsignal(signal.SIGINT)
    try:
        code = compile((ROOT / name).read_text(), str(ROOT / name), "exec")
        exec(code, {"__name__": "__main__"})  # runpy would put the whole path into sys.argv
    except SystemExit as stop:
        if stop.code != 0 or name != "train.py":  # predict.py's exit code is asserted by its tests
            raise
    finally:
        sys.argv = before
        signal.signal(signal.SIGINT, handler)  # Lightning ignores it once a run was interrupted
        GlobalHydra.instance().clear()


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def train(in_tmp: Path, drawn: Path) -> Run:
    """Train on the drawn faces with random weights, uncalibrated, unless told otherwise; returns the run folder."""

    def run(*overrides: str, name: str = "run") -> Path:
        folder = in_tmp / "runs" / name
        sweep = "-m" in overrides or any(override.startswith("hparams_search=") for override in overrides)
        where = () if sweep else (f"hydra.run.dir={folder}",)
        given = {override.split("=")[0] for override in overrides}
        usual = [f"data.root={drawn}", "model.weights=null", "calibration=none"]
        usual = [override for override in usual if override.split("=")[0] not in given]
        if {"data=manifest", "data=_base"} & set(overrides):
            usual = usual[1:]
        if "experiment" in given and "calibration=none" in usual:
            usual.remove("calibration=none")  # which it has a say in
        multirun = ("-m",) if "-m" in overrides else ()  # argparse wants it before the overrides
        rest = (override for override in overrides if override != "-m")
        script("train.py", *multirun, *usual, *TINY, *where, *rest)
        return folder

    return run


@pytest.fixture
def fails(capsys: pytest.CaptureFixture[str]) -> Fails:
    """Run what must fail with exit code 1 and one line on standard error; returns its code and the line."""

    def run(start: Callable[..., object], *arguments: str) -> Failure:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            start(*arguments)
        assert isinstance(stop.value.code, str), f"exit code {stop.value.code}, {capsys.readouterr().err}"
        line = stop.value.code  # what Python prints before it ends with exit code 1
        assert line.startswith("error: ")
        assert "\n" not in line
        assert "Traceback" not in capsys.readouterr().err
        error = stop.value.__cause__ or stop.value.__context__
        assert isinstance(error, UserError)
        return Failure(error.code, line)

    return run


@pytest.fixture(scope="session")
def trained(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of a run by the real command; what it printed lies in stdout.txt and stderr.txt beside runs/."""
    where = tmp_path_factory.mktemp("trained")
    overrides = (
        f"data.root={drawn}",
        "model.weights=null",
        "trainer.max_epochs=2",
        "data.holdout=0.2",
        "model.optimizer.lr=0.1",
        *TINY,
    )
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *overrides, "hydra.run.dir=runs/one"],
        cwd=where, capture_output=True, text=True,
    )  # fmt: skip
    (where / "stdout.txt").write_text(done.stdout)
    (where / "stderr.txt").write_text(done.stderr)
    assert done.returncode == 0, done.stderr
    return where / "runs" / "one"
