"""The demo as the README promises it, and the real FACECOM images where they are at hand."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, TINY

from gender_cls.data.sources import folder
from gender_cls.data.validation import check

FACECOM = ROOT.parent / "shared" / "data" / "facecom"


@pytest.mark.slow
def test_the_demo_reaches_what_the_readme_says(tmp_path: Path) -> None:
    said = re.search(r"macro-F1 (0\.\d+)", (ROOT / "README.md").read_text())
    assert said
    command = [sys.executable, ROOT / "train.py", "experiment=demo", "hydra.run.dir=run", "trainer.accelerator=cpu"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["val"]["f1_macro"]
    assert found >= 0.75
    assert found == pytest.approx(float(said.group(1)), abs=0.03)  # another processor rounds otherwise


@pytest.mark.skipif(not FACECOM.is_dir(), reason="the FACECOM images are not at hand")
def test_facecom_is_what_it_is_known_to_be() -> None:
    faces = check(folder(FACECOM), r"^(.+)_\d{4}$")
    counts = {(row["split"], row["class"]): row["images"] for row in faces.counts()}
    assert list(counts.values()) == [394, 1532, 105, 317]
    identities = {split: len({face.identity for face in members}) for split, members in faces.splits.items()}
    assert identities == {"train": 877, "val": 250}
    assert (faces.skipped, faces.notes) == ([], [])


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to a process group")
def test_ctrl_c_leaves_the_last_whole_epoch(drawn: Path, tmp_path: Path) -> None:
    """The real command, its worker processes and the real signal."""
    overrides = [f"data.root={drawn}", *TINY[:2], "data.num_workers=2", "trainer.accelerator=cpu", "model.weights=null"]
    overrides += ["hydra.run.dir=runs/my run", "trainer.max_epochs=1000"]
    command = [sys.executable, str(ROOT / "train.py"), *overrides]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in a shell's background ignore it
    ) as run:
        for _ in range(600):
            if (tmp_path / "runs" / "my run" / "last.ckpt").exists():
                break
            time.sleep(0.1)
        os.killpg(run.pid, signal.SIGINT)
        said, warned = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "Traceback" not in warned
    again = shlex.split(next(line for line in said.splitlines() if line.startswith(f"python {ROOT}/train.py")))
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *again[2:-1], "trainer.max_epochs=1001", "+trainer.max_time=00:00:00:01"]
        + [again[-1]],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
