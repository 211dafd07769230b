"""The package as it is installed: a wheel in an empty folder, its console scripts, types and imports."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from conftest import ROOT

USER_SCRIPT = """
import pytorch_lightning as pl

from gender_cls import FolderDataModule, GenderModule, GenderNet, Predictor

data: pl.LightningDataModule = FolderDataModule("faces", batch_size=64)
module = GenderModule(weights=None, optimizer={"_target_": "torch.optim.AdamW", "lr": 1e-3})
network: GenderNet = module.network
trainer = pl.Trainer(max_epochs=1)
trainer.fit(module, data)
for prediction in Predictor("model.pth").predict(["photo.jpg"]):
    print(prediction.label, prediction.confidence)
"""


def run(*command: str | Path, where: Path, path: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(path), "PATH": f"{path / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's content, which comes before the checkout that the tests run in."""
    built, target = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("installed")
    source = tmp_path_factory.mktemp("source") / "checkout"
    files = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    for name in files.stdout.splitlines():  # pip would leave a build folder in the checkout
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", built, source], check=True, capture_output=True)
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "gender_cls").rglob("*.py")}
    assert modules <= names
    assert {"gender_cls/evaluation/report.html", "gender_cls/inference/model_card.md"} <= names
    assert {"gender_cls/py.typed", "gender_cls/conf/train.yaml", "gender_cls/conf/model/scheduler/none.yaml"} <= names
    subprocess.run([*pip, "install", "--no-deps", "--target", target, wheel], check=True, capture_output=True)
    return target


@pytest.mark.slow
def test_a_wheel_trains_and_predicts_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    said = run(
        installed / "bin" / "gender-cls-train", "experiment=demo", "data.train=[20,40]", "data.val=[6,10]",
        "trainer.max_epochs=1", "hydra.run.dir=runs/one", where=tmp_path, path=installed,
    )  # fmt: skip
    again = next(line for line in said.splitlines() if line.startswith("gender-cls-predict "))
    assert again.split()[1] == "model=runs/one/Binary_Classification_model.pth"
    image = min((tmp_path / "demo_faces").glob("val/male/*.jpg"))
    line = run(installed / "bin" / "gender-cls-predict", f"img={image}", where=tmp_path, path=installed)
    assert line.startswith(f"{image}  ")
    where = run(sys.executable, "-c", "import gender_cls; print(gender_cls.__file__)", where=tmp_path, path=installed)
    assert Path(where.strip()).is_relative_to(installed)


@pytest.mark.slow
def test_a_users_own_experiment(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults: [demo]\n\ntrainer:\n  max_epochs: 3\n"
    (tmp_path / "mine" / "experiment" / "own.yaml").write_text(text)
    words = ("--config-dir", "mine", "experiment=own", "--cfg", "job")
    said = run(installed / "bin" / "gender-cls-train", *words, where=tmp_path, path=installed)
    assert "max_epochs: 3" in said
    assert "gender_cls.data.datamodule.DemoDataModule" in said


@pytest.mark.slow
def test_a_users_script_has_types(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(USER_SCRIPT)
    said = run(sys.executable, "-m", "mypy", "--strict", "mine.py", where=tmp_path, path=installed)
    assert "no issues found" in said
    (tmp_path / "mine.py").write_text(USER_SCRIPT.replace("weights=None", "weights=1"))
    with pytest.raises(AssertionError):
        run(sys.executable, "-m", "mypy", "--strict", "mine.py", where=tmp_path, path=installed)


def test_imports_are_light() -> None:
    code = "import sys, gender_cls\nassert 'torch' not in sys.modules\nimport gender_cls.inference.cli\n" + (
        "assert not {'torch', 'hydra', 'pytorch_lightning', 'torchmetrics', 'matplotlib'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_imports_go_one_way(tmp_path: Path) -> None:
    """The contract holds, and a forbidden import breaks it."""

    def lint(root: Path) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(root)}
        command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)

    whole = lint(ROOT)
    assert whole.returncode == 0, whole.stdout
    for path in (ROOT / "gender_cls").rglob("*.py"):
        copy = tmp_path / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    for name, forbidden in (
        ("inference/inputs.py", "from gender_cls.data import sources\n"),
        ("inference/journal.py", "import pytorch_lightning\n"),
        ("transforms/decode.py", "from gender_cls.models import network\n"),
    ):
        before = (tmp_path / "gender_cls" / name).read_text()
        (tmp_path / "gender_cls" / name).write_text(before + forbidden)
        broken = lint(tmp_path)
        assert broken.returncode == 1, broken.stdout
        assert name.split("/")[0] in broken.stdout
        (tmp_path / "gender_cls" / name).write_text(before)
