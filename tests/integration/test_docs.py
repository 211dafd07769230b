"""README and docs: their code runs, their links lead somewhere, and they stay what they are meant to be."""

import csv
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from conftest import ROOT

from gender_cls.data import drawn as drawing

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|bash run)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
SUBJECTS = {
    "architecture", "benchmarks", "calibration", "data", "faq", "feature-cache", "finetuning", "prediction",
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
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "TORCH_HOME": str(place / "torch")}
    for language, code in blocks(page):
        start = [sys.executable, "-"] if language == "python" else ["bash", "-euo", "pipefail", "-s"]
        done = subprocess.run(start, input=code, cwd=place, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


def test_a_failing_block_would_be_found() -> None:
    found = BLOCK.findall("text\n```bash run\nfalse\n```\n```bash\nno\n```\n```python\n1 / 0\n```\n")
    assert found == [("bash run", "false\n"), ("python", "1 / 0\n")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if link.startswith(("https://", "../../actions/")):  # the latter is GitHub's
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
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
        assert re.match(r"# .+\n\n```(bash|python)", text), f"{subject}.md"


def test_the_table_of_groups_is_complete() -> None:
    text = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    listed = {
        group: set(re.findall(r"`([^`]+)`", row))
        for group, row in re.findall(r"^\| `([^`]+)` \| (`.*) \|$", text, re.M)
    }
    folders = [path for path in (ROOT / "conf").rglob("*") if path.is_dir()]
    for folder in folders:
        choices = {file.stem for file in folder.glob("*.yaml") if not file.stem.startswith("_")}
        assert listed[folder.relative_to(ROOT / "conf").as_posix()] == choices


def test_what_a_bug_report_needs() -> None:
    done = subprocess.run([sys.executable, "-m", "gender_cls"], capture_output=True, text=True, check=True)
    for word in ("python train.py", "gender_cls.evaluation.report", version("torch"), "cpu: "):
        assert word in done.stdout
