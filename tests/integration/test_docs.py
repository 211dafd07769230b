"""README and docs: their code runs, their links lead somewhere, and they stay what they are meant to be."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

from gender_cls.data import drawn as drawing
from gender_cls.inference.predictor import Predictor
from gender_cls.models.network import GenderNet
from gender_cls.transforms.centerface import NEEDED
from gender_cls.transforms.preprocessing import Preprocessing

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash run)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SUBJECTS = {
    "architecture", "benchmarks", "calibration", "data", "faces", "faq", "feature-cache", "finetuning", "prediction",
    "python-api", "results", "robustness", "training",
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, backbone_file: Path, trained: Path) -> Path:
    """A folder with what the pages name: data, a table, photos, weights and a model."""
    for script in ("train.py", "predict.py"):
        (tmp_path / script).symlink_to(ROOT / script)
    drawing.draw(tmp_path / "Task_A_Dataset", {"train": (14, 20), "val": (6, 8)}, side=48)
    faces = sorted((tmp_path / "Task_A_Dataset").glob("*/*/*.jpg"))
    with open(tmp_path / "faces.csv", "w", newline="") as file:
        rows = [("path", "label", "group"), *((face, face.parent.name, at % 2) for at, face in enumerate(faces))]
        csv.writer(file).writerows(rows)
    shutil.copytree(tmp_path / "Task_A_Dataset" / "val", tmp_path / "my_faces")
    (tmp_path / "photos").mkdir()
    for face in faces[:3]:
        shutil.copy(face, tmp_path / "photos")
    shutil.copy(faces[0], tmp_path / "photo.jpg")
    shutil.copy(backbone_file, tmp_path / "resnet18.pth")
    for suffix in (".pth", ".json"):
        shutil.copy(trained / f"Binary_Classification_model{suffix}", tmp_path / f"model{suffix}")
    weights = tmp_path / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"  # where a download would lie
    weights.parent.mkdir(parents=True)
    shutil.copy(backbone_file, weights)
    return tmp_path


def blocks(page: Path) -> list[tuple[str, str]]:
    return BLOCK.findall(page.read_text(encoding="utf-8"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.stem)
def test_the_code_of_a_page_runs(page: Path, place: Path) -> None:
    if page.stem == "faces" and not all(map(find_spec, NEEDED)):
        pytest.skip("the extra `faces` is not installed")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TORCH_HOME": str(place / "torch")}
    for language, code in blocks(page):
        start = [sys.executable, "-c"] if language == "python" else ["bash", "-euo", "pipefail", "-c"]
        done = subprocess.run(
            [*start, code], cwd=place, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
def test_the_pth_without_this_project_predicts_the_same(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    network, preprocessing = GenderNet("resnet18.pth"), Preprocessing(size=96, crop=0.8, median=True)
    (place / "runs" / "one").mkdir(parents=True)
    model = place / "runs" / "one" / "Binary_Classification_model.pth"
    torch.save(network.plain_state(), model)
    model.with_suffix(".json").write_text(json.dumps({"preprocessing": asdict(preprocessing)}))
    noise = np.random.default_rng(0).integers(0, 256, (420, 300, 3), dtype=np.uint8)
    Image.fromarray(noise).save("photo.jpg")  # over 256 pixels, and something for the median to remove
    (code,) = (code for _, code in blocks(ROOT / "docs" / "prediction.md") if "load_state_dict" in code)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    (expected,) = Predictor(model).predict("photo.jpg")
    label, p_male = done.stdout.split()
    assert label == expected.label
    assert float(p_male) == pytest.approx(expected.p_male, abs=1e-4)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_is_of_a_known_kind(page: Path) -> None:
    fences = re.findall(r"^ *```(.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert set(fences[::2]) <= {"python", "bash run", "bash", "text", "yaml"}
    assert set(fences[1::2]) <= {""}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "../../actions/")):  # the latter is GitHub's
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            prose = re.sub(r"^```.*?^```$", "", target.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
            headings = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
            slugs = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{page.name}: {link}"


def test_the_readme_is_two_screens() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 120


def test_each_subject_has_a_page_that_starts_with_a_command() -> None:
    assert {page.stem for page in PAGES if page.parent.name == "docs"} == SUBJECTS
    for subject in SUBJECTS:
        text = (ROOT / "docs" / f"{subject}.md").read_text(encoding="utf-8")
        measured = subject in ("benchmarks", "results")  # their commands take minutes and other data
        assert re.match(r"# .+\n\n```bash\n" if measured else r"# .+\n\n```(bash run|python)\n", text), f"{subject}.md"


def test_the_table_of_groups_is_complete() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    listed = {
        group: set(re.findall(r"`([^`]+)`", row))
        for group, row in re.findall(r"^\| `([^`]+)` \| (`.*) \|$", text, re.M)
    }
    folders = [path for path in (ROOT / "conf").rglob("*") if path.is_dir()]
    assert set(listed) == {folder.relative_to(ROOT / "conf").as_posix() for folder in folders}
    for folder in folders:
        choices = {file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("_")}
        assert listed[folder.relative_to(ROOT / "conf").as_posix()] == choices


def test_what_a_bug_report_needs() -> None:
    done = subprocess.run([sys.executable, "-m", "gender_cls"], capture_output=True, text=True, check=True)
    for word in ("python train.py", "gender_cls.evaluation.report", "recalibrate  ", version("torch"), "cpu: "):
        assert word in done.stdout
