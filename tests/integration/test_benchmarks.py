"""The scripts that give the numbers of the README run; what they measure is not judged here."""

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from conftest import ROOT
from PIL import Image

from gender_cls.transforms.centerface import NEEDED

pytestmark = pytest.mark.slow


def run(name: str, *arguments: str) -> str:
    command = [sys.executable, ROOT / "benchmarks" / name, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_training(faces: Path, backbone_file: Path) -> None:
    for folder in faces.glob("*/*/"):
        for image in sorted(folder.iterdir())[4:]:
            image.unlink()
    said = run("training.py", str(faces), "--weights", str(backbone_file))
    assert re.search(r"plain loop \(2 epochs, scaled\) +[\d.]+ +1\.0 +\d+", said)
    assert re.search(r"torch, cold +[\d.]+ +[\d.]+ +\d+ +0\.\d+", said)
    assert re.search(r"torch, warm +[\d.]+ +[\d.]+ +\d+ +0\.\d+", said)
    assert re.search(r"experiment=finetune +[\d.]+ +[\d.]+ +\d+$", said, re.MULTILINE)


def test_extraction() -> None:
    said = run("extraction.py", "--seconds", "0.1", "--batch", "4")
    assert len(re.findall(r"[\d.]+ views/s", said)) >= 5


def test_million(tmp_path: Path) -> None:
    said = run("million.py", "--dir", str(tmp_path), "--images", "3000")
    assert re.search(r"3000 images, +0\.03 GB stored", said)
    assert not list(tmp_path.iterdir())


def test_corruptions() -> None:
    assert len(re.findall(r"\d+ images/s", run("corruptions.py", "--seconds", "0.01"))) == 8


def test_cross_validation(drawn: Path, backbone_file: Path) -> None:
    said = run("cross_validation.py", str(drawn), "--weights", str(backbone_file), "--only", "never twice")
    assert re.search(r"never twice( +[01]\.\d{3}){9}", said)


@pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="the extra `faces` is not installed")
def test_faces(tmp_path: Path) -> None:
    (folder,) = find_spec("skimage").submodule_search_locations  # type: ignore[union-attr, misc]
    photograph = Image.open(Path(folder, "data", "astronaut.png"))
    (tmp_path / "train").mkdir()
    for at in range(2):
        photograph.crop((100 + at, 0, 356 + at, 256)).save(tmp_path / "train" / f"{at}.png")
    said = run("faces.py", str(tmp_path), "--images", "3", "--times", "1")
    assert re.search(r"of 2 faces missed at severity", said)
    assert re.search(r"^ratio +[\d.]+ \([\d.]+ to [\d.]+\)", said, re.MULTILINE)


def test_calibration(drawn: Path, backbone_file: Path) -> None:
    said = run("calibration.py", str(drawn), "--weights", str(backbone_file), "--epochs", "1", "--seeds", "0")
    assert re.search(
        r"train out of fold, calibrated, corrupted( +-?[\d.]+( \(-?[\d.]+ to -?[\d.]+\)| to -?[\d.]+)){7}", said
    )


def test_results(drawn: Path, backbone_file: Path) -> None:
    arguments = ("trainer.max_epochs=1", f"model.weights={backbone_file}", "data.size=32", "--seeds", "0")
    said = run("results.py", str(drawn), "experiment=robust", *arguments)
    assert re.search(r"^clean( +[01]\.\d{3}){5}", said, re.MULTILINE)
    assert re.search(r"^corrupted( +[01]\.\d{3}){8} +-?[01]\.\d{3}$", said, re.MULTILINE)


def test_predict(drawn: Path) -> None:
    said = run("predict.py", str(drawn), "--images", "6", "--times", "1")
    for name in ("plain loop: fp32, batches of 32", "torch", "ONNX Runtime", "OpenVINO, the extra fast"):
        assert re.search(rf"^{name} +[\d.]+ +[\d.]+ +[\d.]+ +\d+$", said, re.MULTILINE)
    assert re.search(r"by ONNX Runtime [\d.]+ s, [\d.]+ times that", said)


def test_robust(drawn: Path, backbone_file: Path) -> None:
    pair = ("--first", "experiment=baseline cached_views=1 data.size=64", "--second", "experiment=robust data.size=64")
    said = run("robust.py", str(drawn), "--weights", str(backbone_file), "--epochs", "1", "--seeds", "0", *pair)
    assert re.search(r"mean over corruptions( +-?[01]\.\d{3}){11}", said)
