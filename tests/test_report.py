"""The report of answers with known values, after a run, and by its own command."""

import base64
import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, Run
from hydra import compose, initialize_config_dir
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torchvision.models import resnet18

from gender_cls import answers as answers_module
from gender_cls import report
from gender_cls.answers import Answers, measure
from gender_cls.checks import check
from gender_cls.degrade import DEGRADATIONS
from gender_cls.features import Extractor
from gender_cls.network import GenderNet
from gender_cls.people import fold_people
from gender_cls.predictor import Predictor
from gender_cls.sources import Face, folder
from gender_cls.transforms import Preprocessing
from gender_cls.views import CONDITIONS


def faces(women: int = 20, men: int = 60) -> list[Face]:
    groups = ("old", "young")
    return [Face(f"{n}_frontal.jpg", int(n >= women), f"p{n // 2}", groups[n % 2], f"{n}") for n in range(women + men)]


def answers(probability: Callable[[int, str, int, int], float]) -> Answers:
    """Of a function of label, degradation, severity and number of the picture."""
    rows = [[probability(f.label, *condition, n) for n, f in enumerate(faces())] for condition in CONDITIONS]
    return Answers(faces(), torch.tensor(rows).logit())


def test_a_perfect_classifier() -> None:
    numbers = measure(answers(lambda label, *_: float(label)))
    for found in (numbers["clean"], numbers["degraded"]["sunny"][5], numbers["mean_of_seven"][3]):
        for name in ("f1_macro", "f1_female", "f1_male", "recall_female", "recall_male"):
            assert found[name] == 1
            assert found[f"{name}_ci95"] == [1, 1]
        assert found["auroc"] == 1
    assert numbers["mistakes"] == numbers["mistakes_degraded"] == []
    assert (len(numbers["slices"]), numbers["gap"]["f1_macro"]) == (2, 0)


def test_a_constant_classifier() -> None:
    numbers = measure(answers(lambda *_: 0.9))
    for found in (numbers["clean"], numbers["degraded"]["foggy"][1], numbers["mean_of_seven"][3]):
        assert found["f1_male"] == pytest.approx(120 / 140, abs=1e-6)
        assert found["f1_macro"] == pytest.approx(60 / 140, abs=1e-6)
        assert (found["f1_female"], found["recall_female"], found["recall_male"]) == (0, 0, 1)
        low, high = found["f1_macro_ci95"]
        assert low < 60 / 140 < high < 0.47
        assert found["auroc"] == 0.5
    assert len(numbers["mistakes"]) == 12
    assert {(row["label"], row["answer"], row["condition"]) for row in numbers["mistakes"]} == {
        ("female", "male", "clean")
    }


def test_each_degradation_is_counted_where_it_belongs() -> None:
    """Right but for noise from severity 3 on, and for the old in the rain of severity 3."""

    def probability(label: int, name: str, severity: int, number: int) -> float:
        wrong = (name == "noisy" and severity >= 3) or (name == "rainy" and severity == 3 and number % 2 == 0)
        return abs(label - wrong)

    numbers = measure(answers(probability))
    f1 = {name: [by[s]["f1_macro"] for s in by] for name, by in numbers["degraded"].items()}
    assert f1["noisy"] == [1, 1, 0, 0, 0]
    assert f1["rainy"][2] == pytest.approx((20 / 60 + 60 / 100) / 2, abs=1e-6)  # half of each are right
    assert all(f1[name] == [1] * 5 for name in DEGRADATIONS if name not in ("noisy", "rainy"))
    assert numbers["mean_of_seven"][3]["f1_macro"] == pytest.approx((5 + f1["rainy"][2]) / 7, abs=1e-6)
    old, young = (row["mean_of_seven"]["f1_macro"] for row in numbers["slices"])
    assert (old, young) == (pytest.approx(5 / 7, abs=1e-6), pytest.approx(6 / 7, abs=1e-6))
    assert {row["condition"] for row in numbers["mistakes_degraded"]} <= {"noisy", "rainy"}


def test_the_gap_is_between_the_best_and_the_worst_group() -> None:
    found = measure(answers(lambda label, name, severity, number: abs(label - (number % 8 == 0))))["gap"]
    assert (found["best"], found["worst"]) == ("young", "old")
    assert 0 < found["f1_macro"] < 1


def test_a_pattern_leaves_files_out() -> None:
    some = faces()
    some[3:10] = [Face(f"{n}_snapshot.jpg", 0, f"q{n}", "", f"{n}") for n in range(7)]
    everything = Answers(some, torch.rand(len(CONDITIONS), 80, generator=torch.Generator().manual_seed(0)))
    *_, row = measure(everything, r"^\d+_frontal$")["slices"]
    assert (row["slice"], row["clean"]["pictures"], row["clean"]["auroc"]) == (r"without ^\d+_frontal$", 7, None)
    for numbers in (row["clean"], row["mean_of_seven"]):  # there is no man among the seven
        assert numbers["f1_macro"] is numbers["f1_macro_ci95"] is numbers["recall_male"] is None
        assert 0 <= numbers["recall_female"] <= 1


def test_of_a_large_val_whole_people_are_asked(monkeypatch: pytest.MonkeyPatch, drawn: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(answers_module, "MOST_PICTURES", 10)
    val = check(folder(drawn), r"^(.+)_\d{4}$").splits["val"]
    network = GenderNet(None)
    found = answers_module.ask(network, Preprocessing(size=32), val, Extractor(network, tmp_path), 0)
    people = {face.identity for face in found.faces}
    assert 10 <= len(found.faces) == sum(face.identity in people for face in val) < 15


def test_an_identity_never_stands_on_both_sides_of_a_fold() -> None:
    rng = np.random.default_rng(0)
    people = [Face(f"{who}_{n}", int(who > 40), f"p{who}") for who in range(200) for n in range(rng.integers(1, 9))]
    people += [Face(f"one_{n}", 1, "one") for n in range(200)]
    folds = fold_people(people, 5, seed=0)
    of_person: dict[str, set[int]] = {}
    for face, fold in zip(people, folds):
        of_person.setdefault(face.identity, set()).add(fold)
    assert all(len(found) == 1 for found in of_person.values())
    women = Counter(fold for face, fold in zip(people, folds) if face.label == 0)
    assert sorted(women) == [0, 1, 2, 3, 4]
    assert max(women.values()) - min(women.values()) <= 8
    assert folds == fold_people(people, 5, seed=0) != fold_people(people, 5, seed=1)


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
    assert list(numbers["degraded"]) == list(DEGRADATIONS)
    assert all("".join(by) == "12345" for by in numbers["degraded"].values())
    assert {row["slice"] for row in numbers["slices"]} == {"<i>0</i>", "<i>1</i>"}
    with open(left / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 28
    right = sum((float(row["foggy_2"]) > 0.5) == (row["label"] == "male") for row in rows)
    assert right == np.trace(numbers["degraded"]["foggy"]["2"]["confusion"])

    text = (left / "report.html").read_text()
    page = Page(text)
    assert page.tags["b"] == page.tags["i"] == page.tags["script"] == 0  # of names, all escaped
    assert "&lt;i&gt;0&lt;/i&gt;" in text
    assert page.tags["img"] == len(list(left.glob("*.png"))) == 9
    assert all(source.startswith("data:image/png;base64,") for source in page.sources)  # nothing outside of the file
    assert base64.b64decode(page.sources[0].split(",")[1]) == (left / "severity.png").read_bytes()
    captions = re.findall("<figcaption>(.*?)</figcaption>", text)
    assert all("28 pictures of" in caption and "weights: random" in caption for caption in captions)
    for path in left.glob("*.png"):
        Image.open(path).load()
    assert not list(left.glob("*.part"))
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
    assert re.search(r"^mean of the seven +0\.\d+ +0\.\d+", said, re.MULTILINE)
    before, after = ((path / "metrics.json").read_text() for path in (reported / "report", Path("again")))
    assert before == after
    assert report.main(["data.csv=faces.csv", "out=again", "data.group=split", "data.without=0001$"]) == 0
    assert Path("again/mine.txt").exists()  # only its own files are replaced
    slices = [row["slice"] for row in json.loads(Path("again/metrics.json").read_text())["slices"]]
    assert slices == ["without 0001$"]


def test_the_usual_choices_are_those_of_conf() -> None:
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        data = compose("train", ["data=manifest", "data.csv=x"]).data
    assert {key: data[key] for key in report.USUAL} == report.USUAL


@pytest.mark.slow
def test_a_report_that_was_cut_short_is_written_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = report.build(answers(lambda *_: 0.9), "model", "data", None)
    with monkeypatch.context() as patch:
        replace = report.os.replace
        patch.setattr(report.os, "replace", lambda one, other: replace(one, other) if "html" in str(one) else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            full.save(tmp_path / "report")
    full.save(tmp_path / "report")
    assert len(list((tmp_path / "report").glob("*.png"))) == 9
    assert not list((tmp_path / "report").glob("*.part"))


def test_what_the_command_refuses(trained: Path, drawn: Path, in_tmp: Path, fails: Callable[..., str]) -> None:
    def start(*words: str) -> None:
        report.run_command(lambda _: report.main([f"model={trained / 'Binary_Classification_model.pth'}", *words]))

    assert "give either data.root=DIR or data.csv=FILE" in fails(start)
    assert "'data.size=3' is none of model=" in fails(start, "data.size=3")
    assert "data.without=( is no regular expression" in fails(start, f"data.root={drawn}", "data.without=(")
    assert "data.group= names a column of a CSV" in fails(start, f"data.root={drawn}", "data.group=age")
    Path("faces.csv").write_text(f"path,label,split,age\n{next((drawn / 'val' / 'male').iterdir())},male,val,3\n")
    assert "has no such column (found: path, label, split, age)" in fails(start, "data.csv=faces.csv", "data.group=x")
    assert "has no female picture in val" in fails(start, "data.csv=faces.csv")
    Path("mine").mkdir()
    Path("mine/metrics.json").write_text("mine")
    assert "out=mine holds something else" in fails(start, f"data.root={drawn}", "out=mine")
    Path("file").write_text("")
    assert "file/report: not a directory" in fails(start, f"data.root={drawn}", "out=file/report")


def test_robust_is_what_predict_says_and_a_plain_state_dict(train: Run) -> None:
    """Crop and median are in the model's JSON, so `predict.py` does them."""
    exact = ("features.precision=fp32", "features.dtype=float32", "features.dir=exact")
    run = train("experiment=robust", "trainer.max_epochs=2", *exact)
    with open(run / "report" / "predictions.csv", newline="") as file:
        reported = {row["path"]: float(row["clean"]) for row in csv.DictReader(file)}
    predictor = Predictor(run / "Binary_Classification_model.pth")
    assert (predictor.preprocessing.crop, predictor.preprocessing.median) == (0.8, True)
    for answer in predictor.predict(reported):
        assert answer.p_male == pytest.approx(reported[answer.path], abs=1e-4)
    net = resnet18(num_classes=1)
    net.load_state_dict(torch.load(run / "Binary_Classification_model.pth", weights_only=True), strict=True)
