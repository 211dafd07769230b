"""The report after a run, and by its own command."""

import base64
import csv
import json
import os
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, Run
from hydra import compose, initialize_config_dir
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import resnet18

from gender_cls.data.sources import Face
from gender_cls.evaluation import inputs, report
from gender_cls.evaluation.robustness import Predictions
from gender_cls.inference.predictor import Predictor
from gender_cls.transforms.corruptions import CORRUPTIONS
from gender_cls.transforms.views import CONDITIONS


class Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.sources: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.sources += [str(value) for name, value in attrs if name in ("src", "href")]


@pytest.fixture
def reported(train: Run, drawn: Path, in_tmp: Path) -> Path:
    """A run with a full report, on files and groups with markup in their names."""
    lines = ["path,label,split,group,age"]
    for path in sorted(drawn.glob("*/*/*.jpg")):
        copy = in_tmp / "faces" / f"<b>{path.parent.parent.name} & {path.stem}.jpg"
        copy.parent.mkdir(exist_ok=True)
        copy.write_bytes(path.read_bytes())
        lines.append(f'"{copy}",{path.parent.name},{path.parent.parent.name},,<i>{len(lines) % 2}</i>')
    Path("faces.csv").write_text("\n".join(lines))
    return train("data=manifest", "data.csv=faces.csv", "data.group=age", "report=full", "trainer.max_epochs=1")


def test_a_full_report(reported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    left = reported / "report"
    numbers = json.loads((left / "metrics.json").read_text())
    run = json.loads((reported / "metrics.json").read_text())
    assert numbers["clean"]["confusion"] == run["val"]["confusion"]
    assert list(numbers["corrupted"]) == list(CORRUPTIONS)
    assert all("".join(by) == "12345" for by in numbers["corrupted"].values())
    assert {row["slice"] for row in numbers["slices"]} == {"<i>0</i>", "<i>1</i>"}
    with open(left / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 28
    right = sum((float(row["foggy_2"]) > 0.5) == (row["label"] == "male") for row in rows)
    assert right == np.trace(numbers["corrupted"]["foggy"]["2"]["confusion"])

    text = (left / "report.html").read_text()
    page = Page(text)
    assert page.tags["b"] == page.tags["i"] == page.tags["script"] == 0  # of names, all escaped
    assert "&lt;i&gt;0&lt;/i&gt;" in text
    assert page.tags["img"] == len(list(left.glob("*.png"))) == 10
    assert set(re.findall('href="#([a-z]+)"', text)) == set(re.findall('<h2 id="([a-z]+)"', text))
    images = [source for source in page.sources if not source.startswith("#")]
    assert all(source.startswith("data:image/png;base64,") for source in images)  # nothing outside of the file
    assert base64.b64decode(images[0].split(",")[1]) == (left / "severity.png").read_bytes()
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert all("28 images of" in caption and "weights: random" in caption for caption in captions)
    for path in left.glob("*.png"):
        Image.open(path).load()
    assert not list(left.glob("*.part*"))
    images = EventAccumulator(str(reported), size_guidance={"images": 0}).Reload().Tags()["images"]
    assert {f"report/{path.stem}" for path in left.glob("*.png")} <= set(images)


@pytest.mark.slow
def test_the_command_gives_what_the_run_gave(
    reported: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert report.main(["data.csv=faces.csv", "out=again"]) == 0
    said = capsys.readouterr().out
    assert "again/report.html" in said
    Path("again/mine.txt").write_text("")
    assert re.search(r"^mean over corruptions +0\.\d+ +0\.\d+", said, re.MULTILINE)
    before, after = ((path / "metrics.json").read_text() for path in (reported / "report", Path("again")))
    assert before == after
    assert report.main(["data.csv=faces.csv", "out=again", "data.group=split", "data.report_exclude=0001$"]) == 0
    assert Path("again/mine.txt").exists()  # only its own files are replaced
    slices = [row["slice"] for row in json.loads(Path("again/metrics.json").read_text())["slices"]]
    assert slices == ["without 0001$"]
    path = reported / "Binary_Classification_model.json"
    facts = json.loads(path.read_text())
    del facts["report"]["report_exclude"]
    path.write_text(json.dumps({**facts, "report": {**facts["report"], "without": "0002$"}}))  # as older runs wrote it
    assert report.main(["data.csv=faces.csv", "out=again", "data.group=split"]) == 0
    slices = [row["slice"] for row in json.loads(Path("again/metrics.json").read_text())["slices"]]
    assert slices == ["without 0002$"]


def test_the_usual_choices_are_those_of_conf() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data = compose("train", ["data=manifest", "data.csv=x"]).data
    assert {key: data[key] for key in inputs.USUAL} == inputs.USUAL


@pytest.mark.slow
def test_a_report_that_was_cut_short_is_written_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    faces = [Face(f"{n}.jpg", int(n >= 20), f"p{n // 2}", "", f"{n}") for n in range(80)]
    full = report.build(Predictions(faces, torch.full((len(CONDITIONS), 80), 2.2)), "model", "data; random weights")
    with monkeypatch.context() as patch:
        replace = os.replace
        patch.setattr(os, "replace", lambda one, other: replace(one, other) if "html" in str(one) else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            full.save(tmp_path / "report")
    full.save(tmp_path / "report")
    assert len(list((tmp_path / "report").glob("*.png"))) == 10
    assert not list((tmp_path / "report").glob("*.part*"))


def test_what_the_command_refuses(trained: Path, drawn: Path, in_tmp: Path, fails: Callable[..., Any]) -> None:
    def refused(*arguments: str) -> tuple[str, str]:
        model = f"model={trained / 'Binary_Classification_model.pth'}"
        failure = fails(lambda: report.run_main(lambda _: report.main([model, *arguments])))
        return failure.code, failure.line

    def check(code: str, part: str, *arguments: str) -> None:
        found, line = refused(*arguments)
        assert found == code
        assert part in line

    check("conflict", "give either data.root=DIR or data.csv=FILE")
    check("unknown-option", "'data.size=3' is none of model=", "data.size=3")
    check("renamed", "data.report_exclude=", f"data.root={drawn}", "data.without=x")
    check("bad-value", "data.report_exclude=(", f"data.root={drawn}", "data.report_exclude=(")
    check("conflict", "data.group= names a column of a table", f"data.root={drawn}", "data.group=age")
    Path("faces.csv").write_text(f"path,label,split,age\n{next((drawn / 'val' / 'male').iterdir())},male,val,3\n")
    found = "has no such column (found: path, label, split, age)"
    check("bad-value", f"data.group=x: faces.csv {found}", "data.csv=faces.csv", "data.group=x")
    Path("mine").mkdir()
    Path("mine/metrics.json").write_text("mine")
    check("conflict", "out=mine holds something else", f"data.root={drawn}", "out=mine")
    Path("file").write_text("")
    check("not-writable", "file/report: not a directory", f"data.root={drawn}", "out=file/report")


def test_robust_is_what_predict_says_and_a_plain_state_dict(train: Run, drawn: Path) -> None:
    """Crop and median are in the model's JSON, so `predict.py` does them."""
    exact = ("features.precision=fp32", "features.dtype=float32", "features.dir=exact")
    run = train("experiment=robust", "trainer.max_epochs=2", *exact)
    with open(run / "report" / "predictions.csv", newline="") as file:
        reported = {row["path"]: float(row["clean"]) for row in csv.DictReader(file)}
    predictor = Predictor(run / "Binary_Classification_model.pth")
    assert (predictor.preprocessing.crop, predictor.preprocessing.median) == (0.8, True)
    assert "val/male" in {str(Path(path).parent) for path in reported}  # relative to the folder of the data
    for path, prediction in zip(reported, predictor.predict([drawn / path for path in reported])):
        assert prediction.p_male == pytest.approx(reported[path], abs=1e-4)
    net = resnet18(num_classes=1)
    net.load_state_dict(torch.load(run / "Binary_Classification_model.pth", weights_only=True), strict=True)
