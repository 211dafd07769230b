"""Any path on the command line, and machines with little: no home, read-only folders, other drives."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from conftest import ROOT, TINY, Fails, Run, script
from filelock import FileLock

from gender_cls.files import cache_folder, relative_paths
from gender_cls.inference import journal
from gender_cls.training.module import GenderModule
from gender_cls.training.run import shown_path

MODEL = "Binary_Classification_model.pth"
SHORT = ("trainer.max_epochs=1", "data.holdout=0", "calibration=none", "model.weights=null", *TINY)
NAMES = ("人脸 josé it's", "x (1), [2] a=b #c", "20240101")
MORE_PRECISIONS = ("32", "16-mixed", "bf16")
MORE_NAMES = ("1e3", " blank ", "$HOME", "a\\b", 'say "hi"')


def pasted(line: str) -> list[str]:
    """The arguments that a shell makes of a printed command."""
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {line}"], capture_output=True, check=True)
    words = [os.fsdecode(word) for word in done.stdout.split(b"\0")[:-1]]
    assert words[0] == "python"
    return words[1:]


def printed(said: str, start: str) -> list[str]:
    (line,) = {line for line in said.splitlines() if line.startswith(f"python {start}")}
    return pasted(line)


@pytest.mark.parametrize("name", [*NAMES, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE_NAMES)])
def test_any_path_and_the_command_that_is_printed(
    name: str, drawn: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(name).symlink_to(drawn)
    script("train.py", f"data.root={name}/", *SHORT, f"hydra.run.dir=runs/{name}", f"features.dir=store/{name}")
    assert (in_tmp / "store" / name).is_dir()
    command = printed(capsys.readouterr().out, "predict.py")
    with pytest.raises(SystemExit) as stop:
        script(*command)
    assert stop.value.code == 0
    line = capsys.readouterr().out
    assert line.startswith(f"{name}/val/female/")
    assert "%" in line


@pytest.mark.parametrize("name", ["it's (1) [2] a=b 人脸 #1", pytest.param("20240101", marks=pytest.mark.slow)])
def test_the_commands_of_a_stopped_run_and_of_a_sweep(
    name: str, drawn: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(name).symlink_to(drawn)
    usual = [f"data.root={in_tmp / name}", *(each for each in SHORT if "epochs" not in each), "trainer.max_epochs=3"]
    original = GenderModule.on_train_epoch_start

    def stop(self: Any) -> None:
        original(self)
        if self.current_epoch == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(GenderModule, "on_train_epoch_start", stop)
        with pytest.raises(SystemExit, match="stopped"):
            script("train.py", *usual, f"hydra.run.dir=runs/{name}")
    command = printed(capsys.readouterr().out, "train.py")
    assert f"ckpt_path=runs/{name}/last.ckpt" in command
    script(*command, "hydra.run.dir=runs/resumed")
    assert (in_tmp / "runs" / "resumed" / MODEL).exists()
    capsys.readouterr()
    script("train.py", "-m", *usual, "seed=1,2", f"hydra.sweep.dir=runs/sweep {name}")
    command = printed(capsys.readouterr().out, "train.py")
    script(*command, "hydra.run.dir=runs/best")
    assert (in_tmp / "runs" / "best" / MODEL).exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["it's (1), [2] a=b 人脸", "1e3"])
def test_the_same_by_the_real_commands_in_a_real_shell(name: str, drawn: Path, tmp_path: Path) -> None:
    (tmp_path / name).symlink_to(drawn)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for script_name in ("train.py", "predict.py"):
        (tmp_path / script_name).symlink_to(ROOT / script_name)
    words = [sys.executable, "train.py", f"data.root={name}", *SHORT, f"hydra.run.dir=runs/{name}"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("python predict.py")]
    line = line.replace("python", sys.executable, 1)
    again = subprocess.run(line, shell=True, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (again.returncode, again.stdout.count("%")) == (0, 1), again.stderr


def test_files_that_are_not_utf_8(drawn: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9\x1b")
    Path(name).symlink_to(drawn)
    script("train.py", f"data.root={name}", *SHORT)
    with pytest.raises(SystemExit, match="0"):
        script(*printed(capsys.readouterr().out, "predict.py"))


def test_the_commas_of_a_sweep_are_its_own(drawn: Path, in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("one (1)", "two"):
        Path(name).symlink_to(drawn)
    script("train.py", "-m", "data.root=one (1),two", *SHORT, "hydra.sweep.dir=sweep")
    said = capsys.readouterr().out
    assert "one (1)" in said
    assert (in_tmp / "sweep" / "1" / "metrics.json").exists()


def test_the_fallback_of_a_bare_user_id(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "gender_cls"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # neither HOME nor an entry in passwd
    assert cache_folder().parent.name == f"cache-{os.getuid()}"
    assert cache_folder().is_absolute()


@pytest.mark.slow
def test_a_container_with_a_bare_user_id(drawn: Path, tmp_path: Path) -> None:
    """Neither HOME nor an entry in passwd, as `docker run --user 12345` gives it: train, predict and report."""
    code = (
        "import pwd, runpy, sys\ndef unknown(uid): raise KeyError(f'getpwuid(): uid not found: {{uid}}')\n"
        "pwd.getpwuid = unknown; sys.path.insert(0, {root!r}); sys.argv = {words!r}\n"
        "runpy.run_path({path!r}, run_name='__main__')"
    )
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "OMP_NUM_THREADS")}
    environment["TMPDIR"] = str(tmp_path / "tmp")
    (tmp_path / "tmp").mkdir()
    model = f"runs/one/{MODEL}"
    image = min((drawn / "val" / "male").iterdir())
    commands = [
        ("train.py", f"data.root={drawn}", *SHORT, "hydra.run.dir=runs/one"),
        ("predict.py", f"img={image}", f"model={model}"),
        ("gender_cls/evaluation/report.py", f"data.root={drawn}", f"model={model}"),
    ]
    for words in commands:
        text = code.format(root=str(ROOT), words=list(words), path=str(ROOT / words[0]))
        command = [sys.executable, "-c", text]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runs", "tmp"]  # and no folder named ~


def test_another_drive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, train: Run) -> None:
    def another(*_: object) -> str:
        raise ValueError("path is on mount 'D:', start on mount 'C:'")

    with monkeypatch.context() as patch:
        patch.setattr(os.path, "relpath", another)
        assert shown_path("D:/faces") == "D:/faces"
        assert relative_paths(["/mnt/d/faces/a.jpg"], "/home/c") == ["faces/a.jpg"]
        run = train("trainer.max_epochs=1", "data.holdout=0")
    assert (run / MODEL).exists()


def test_a_lock_is_released_before_it_is_removed(in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Windows wants it, and also where another run has opened it meanwhile."""
    unlink = Path.unlink

    for blocked in (False, True):
        table = journal.Journal(Path("o.csv"), "hash", ["a"], 1)

        def as_on_windows(
            self: Path, missing_ok: bool = False, held: FileLock = table.lock, blocked: bool = blocked
        ) -> None:
            if self.name.endswith(".lock") and (held.is_locked or blocked):
                raise PermissionError("[WinError 32] The process cannot access the file")
            unlink(self, missing_ok)

        monkeypatch.setattr(Path, "unlink", as_on_windows)
        table.write([("a", "male", "51.00", "0.510000", *[""] * 8)])
        table.finish()
        table.close()
        assert Path("o.csv").exists()


def test_too_little_shared_memory(train: Run, fails: Fails, monkeypatch: pytest.MonkeyPatch) -> None:
    """Features come from workers without any; where batches need it, one line names the way out."""
    message = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are "
    for text in (
        f"{message}out of shared memory.",
        "unable to write to file </torch_1_2>: No space left on device (28)",
    ):

        def fail(*_: object, text: str = text) -> None:
            raise RuntimeError(text)

        with monkeypatch.context() as patch:
            patch.setattr(pl.Trainer, "fit", lambda *_, **__: fail())
            failure = fails(train, "cached_views=0")
        assert failure.code == "no-shared-memory"
        assert "data.num_workers=0" in failure.line


def test_a_cache_that_may_only_be_read(train: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is complete in it is used; for what is missing, one line names the key."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(in_tmp / "cache"))
    first = train("trainer.max_epochs=1", name="first")
    folders = [in_tmp / "cache", *(path for path in (in_tmp / "cache").rglob("*"))]
    for path in folders:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = {path: path.read_bytes() for path in folders if path.is_file()}
    again = train("trainer.max_epochs=1", name="again")
    numbers = [json.loads((run / "metrics.json").read_text())["val"] for run in (first, again)]
    assert numbers[0] == numbers[1]
    if os.geteuid():  # root may write everywhere
        assert before == {path: path.read_bytes() for path in folders if path.is_file()}
    for path in folders:
        path.chmod(0o755)


@pytest.mark.parametrize(
    "precision", ["16-true", "bf16-true", "64-true", "64", "transformer-engine", "transformer-engine-float16"]
)
def test_precisions_that_are_refused_before_training(precision: str, train: Run, fails: Fails) -> None:
    failure = fails(train, f"trainer.precision={precision}")
    assert failure.code == "bad-value"
    assert f"trainer.precision={precision}: give auto or 32-true or 16-mixed or bf16-mixed" in failure.line


@pytest.mark.parametrize(
    "precision", ["bf16-mixed", *(pytest.param(p, marks=pytest.mark.slow) for p in MORE_PRECISIONS)]
)
@pytest.mark.parametrize("cached", ["cached_views=2", "cached_views=0"])
def test_precisions_that_work_to_the_end(
    precision: str, cached: str, train: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(
        f"trainer.precision={precision}", cached, "trainer.max_epochs=1", "calibration=platt", "data.holdout=0.2"
    )
    state = torch.load(run / MODEL, weights_only=True)
    assert {tensor.dtype for name, tensor in state.items() if "num_batches" not in name} == {torch.float32}
    with pytest.raises(SystemExit, match="0"):
        script(*printed(capsys.readouterr().out, "predict.py"))
