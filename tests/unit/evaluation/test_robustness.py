"""Metrics of predictions with known values."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from gender_cls.data.sources import Face, folder
from gender_cls.data.validation import check
from gender_cls.errors import UserError, check_regex
from gender_cls.evaluation import robustness
from gender_cls.evaluation.robustness import Predictions, measure
from gender_cls.features.extractor import Extractor, FeatureOptions
from gender_cls.models.network import GenderNet
from gender_cls.transforms.corruptions import CORRUPTIONS
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import CONDITIONS


def faces(females: int = 20, males: int = 60) -> list[Face]:
    groups = ("old", "young")
    return [
        Face(f"{n}_frontal.jpg", int(n >= females), f"p{n // 2}", groups[n % 2], f"{n}") for n in range(females + males)
    ]


def predictions(probability: Callable[[int, str, int, int], float]) -> Predictions:
    """Predictions from a function of label, corruption, severity and number of the image."""
    rows = [[probability(f.label, *condition, n) for n, f in enumerate(faces())] for condition in CONDITIONS]
    return Predictions(faces(), torch.tensor(rows).logit())


def test_a_perfect_classifier() -> None:
    numbers = measure(predictions(lambda label, *_: float(label)))
    for found in (numbers["clean"], numbers["corrupted"]["sunny"][5], numbers["mean_over_corruptions"][3]):
        for name in ("f1_macro", "f1_female", "f1_male", "recall_female", "recall_male"):
            assert found[name] == 1
            assert found[f"{name}_ci95"] == [1, 1]
        assert found["auroc"] == 1
    assert numbers["mistakes"] == numbers["mistakes_corrupted"] == []
    assert (len(numbers["slices"]), numbers["gap"]["f1_macro"]) == (2, 0)


def test_a_constant_classifier() -> None:
    numbers = measure(predictions(lambda *_: 0.9))
    for found in (numbers["clean"], numbers["corrupted"]["foggy"][1], numbers["mean_over_corruptions"][3]):
        assert found["f1_male"] == pytest.approx(120 / 140, abs=1e-6)
        assert found["f1_macro"] == pytest.approx(60 / 140, abs=1e-6)
        assert (found["f1_female"], found["recall_female"], found["recall_male"]) == (0, 0, 1)
        low, high = found["f1_macro_ci95"]
        assert low < 60 / 140 < high < 0.47
        assert found["auroc"] == 0.5
    assert len(numbers["mistakes"]) == 12
    assert {(row["label"], row["prediction"], row["condition"]) for row in numbers["mistakes"]} == {
        ("female", "male", "clean")
    }


def test_each_corruption_is_counted_where_it_belongs() -> None:
    """All right except for noise from severity 3 on, and for group old in rain of severity 3."""

    def probability(label: int, name: str, severity: int, number: int) -> float:
        wrong = (name == "noisy" and severity >= 3) or (name == "rainy" and severity == 3 and number % 2 == 0)
        return abs(label - wrong)

    numbers = measure(predictions(probability))
    f1 = {name: [by[s]["f1_macro"] for s in by] for name, by in numbers["corrupted"].items()}
    assert f1["noisy"] == [1, 1, 0, 0, 0]
    assert f1["rainy"][2] == pytest.approx((20 / 60 + 60 / 100) / 2, abs=1e-6)  # half of each are right
    assert all(f1[name] == [1] * 5 for name in CORRUPTIONS if name not in ("noisy", "rainy"))
    assert numbers["mean_over_corruptions"][3]["f1_macro"] == pytest.approx((5 + f1["rainy"][2]) / 7, abs=1e-6)
    old, young = (row["mean_over_corruptions"]["f1_macro"] for row in numbers["slices"])
    assert (old, young) == (pytest.approx(5 / 7, abs=1e-6), pytest.approx(6 / 7, abs=1e-6))
    assert {row["condition"] for row in numbers["mistakes_corrupted"]} <= {"noisy", "rainy"}


def test_the_gap_is_between_the_best_and_the_worst_group() -> None:
    found = measure(predictions(lambda label, name, severity, number: abs(label - (number % 8 == 0))))["gap"]
    assert (found["best"], found["worst"]) == ("young", "old")
    assert 0 < found["f1_macro"] < 1


def test_a_pattern_leaves_files_out() -> None:
    some = faces()
    some[3:10] = [Face(f"{n}_snapshot.jpg", 0, f"q{n}", "", f"{n}") for n in range(7)]
    everything = Predictions(some, torch.rand(len(CONDITIONS), 80, generator=torch.Generator().manual_seed(0)))
    *_, row = measure(everything, r"^\d+_frontal$")["slices"]
    assert (row["slice"], row["clean"]["images"], row["clean"]["auroc"]) == (r"without ^\d+_frontal$", 7, None)
    for numbers in (row["clean"], row["mean_over_corruptions"]):  # none of the seven is male
        assert numbers["f1_macro"] is numbers["f1_macro_ci95"] is numbers["recall_male"] is None
        assert 0 <= numbers["recall_female"] <= 1


def test_a_large_val_is_sampled_by_identity(monkeypatch: pytest.MonkeyPatch, drawn: Path, tmp_path: Path) -> None:
    monkeypatch.setattr(robustness, "MAX_IMAGES", 10)
    val = check(folder(drawn), r"^(.+)_\d{4}$").splits["val"]
    network = GenderNet(None)
    extractor = Extractor(network, FeatureOptions(dir=str(tmp_path)))
    found = robustness.predict_conditions(network, Preprocessing(size=32), val, extractor, 0)
    identities = {face.identity for face in found.faces}
    assert 10 <= len(found.faces) == sum(face.identity in identities for face in val) < 15


@pytest.mark.parametrize("exclude", ["(", 3])
def test_what_is_not_a_regular_expression(exclude: str) -> None:
    with pytest.raises(UserError) as failure:
        check_regex("data.report_exclude", exclude)
    assert failure.value.code == "bad-value"
    assert f"data.report_exclude={exclude}" in str(failure.value)
