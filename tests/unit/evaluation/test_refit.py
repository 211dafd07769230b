"""The arithmetic of a recalibration: folds, held-out logits, the comparison and the composed calibration."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from gender_cls.data.identities import count_identities, fold_identities
from gender_cls.data.sources import Face
from gender_cls.errors import UserError
from gender_cls.evaluation import calibration, recalibrate
from gender_cls.evaluation.tables import recalibration_report


def people(females: int, males: int, images: int = 2) -> list[Face]:
    return [
        Face(f"{who}_{n}", int(who >= females), f"p{who}", "", f"{who}_{n}")
        for who in range(females + males)
        for n in range(images)
    ]


def drawn(faces: list[Face], slope: float = 1, bias: float = 0) -> torch.Tensor:
    """Logits of a model whose slope and bias are to be found: the log-odds are 2 x, with x from N(-1, 1) or N(1, 1)."""
    labels = np.array([face.label for face in faces])
    log_odds = 2 * np.random.default_rng(0).normal(2 * labels - 1)
    return torch.from_numpy((log_odds - bias) / slope)


def test_each_fold_is_predicted_by_the_fit_on_the_others() -> None:
    faces = people(20, 30)
    logits, labels = drawn(faces, 2, 1), np.array([face.label for face in faces])
    folds = np.array(fold_identities(faces, 3, seed=0))
    found = recalibrate.cross_fit(logits, labels, folds)
    for number in range(3):
        others = folds != number
        slope, bias = calibration.fit(logits[None, others], labels[others])
        assert torch.equal(found[folds == number], slope * logits[folds == number] + bias)
    labels[folds == 0] = 1 - labels[folds == 0]  # their own labels say nothing to their prediction
    again = recalibrate.cross_fit(logits, labels, folds)
    assert torch.equal(again[folds == 0], found[folds == 0])
    assert not torch.equal(again[folds == 1], found[folds == 1])


def test_a_known_slope_and_bias_are_found_for_any_prior() -> None:
    faces = people(400, 800, images=1)
    logits = drawn(faces, 0.5, -2)
    for known, prior in ((None, 0.5), ({"prior": 0.8}, 0.8), ({"prior": 0.5}, 0.8)):
        found = recalibrate.refit(logits, faces, known, prior)
        assert found["slope"] == pytest.approx(0.5, rel=0.1)
        assert found["bias"] == pytest.approx(-2 + calibration.log_odds(prior), abs=0.25)
        assert (found["images"], found["identities"], found["folds"]) == (1200, 1200, 5)
        before, after = found["before"], found["after"]
        assert (after["slope"], after["intercept"]) == (pytest.approx(1, abs=0.1), pytest.approx(0, abs=0.1))
        given = 0 if known is None else calibration.log_odds(known["prior"])  # what the old model's prior adds
        assert before["intercept"] == pytest.approx(-2 + 0.5 * given, abs=0.25)
        assert after["ece_debiased"] < 0.02 < before["ece_debiased"]
        assert after["nll"] < before["nll"]
        assert after["auroc"] == before["auroc"] > 0.9


def test_the_prior_is_only_an_offset() -> None:
    faces = people(30, 40)
    one, other = (recalibrate.refit(drawn(faces, 2, 1), faces, None, prior) for prior in (0.5, 0.8))
    assert other["slope"] == one["slope"]
    assert other["bias"] - one["bias"] == pytest.approx(math.log(4))
    assert other["before"]["intercept"] == pytest.approx(one["before"]["intercept"], abs=1e-3)


def test_new_of_old() -> None:
    old: dict[str, Any] = {"prior": 0.5, "slope": 2.0, "bias": -0.5, "split": "train"}
    model: Any = SimpleNamespace(calibration=old, facts={"calibration": old})
    found = {"slope": 0.25, "bias": 3.0}
    new = recalibrate.compose(model, found, 0.8)
    assert new == {"prior": 0.8, "slope": 0.5, "bias": 2.875, "blind": False, "refit": found, "original": old}
    again = recalibrate.compose(SimpleNamespace(calibration=new, facts={"calibration": new}), found, 0.5)
    assert (again["slope"], again["bias"], again["original"]) == (0.125, 0.25 * 2.875 + 3, old)
    for known in ({}, {"calibration": None}):
        plain = recalibrate.compose(SimpleNamespace(calibration=None, facts=known), found, 0.5)
        assert (plain["slope"], plain["bias"], plain["original"]) == (0.25, 3.0, None)
        twice: Any = SimpleNamespace(calibration=plain, facts={"calibration": plain})
        assert recalibrate.compose(twice, found, 0.5)["original"] is None


def test_blind_is_the_fit_and_not_the_slope_of_the_head_before() -> None:
    steep = {"prior": 0.5, "slope": 0.03, "bias": 0.0}  # the uncalibrated logits are large
    model: Any = SimpleNamespace(calibration=steep, facts={"calibration": steep})
    assert not recalibrate.compose(model, {"slope": 0.5, "bias": 0.0}, 0.5)["blind"]
    assert recalibrate.compose(model, {"slope": 0.01, "bias": 0.0}, 0.5)["blind"]


@pytest.mark.parametrize(("females", "males", "folds"), [(2, 30, 2), (4, 3, 3), (5, 9, 5), (40, 60, 5)])
def test_fewer_identities_have_fewer_folds(females: int, males: int, folds: int) -> None:
    faces = people(females, males)
    assert recalibrate.count_folds(faces) == folds
    number = np.array(fold_identities(faces, folds, seed=0))
    labels = np.array([face.label for face in faces])
    assert all(set(labels[number != fold]) == {0, 1} for fold in range(folds))


def test_an_identity_with_both_labels_counts_once() -> None:
    faces = people(2, 2)
    faces += [Face("x", 0, "p3", "", "x")]  # one female image of a male identity
    assert count_identities(faces) == [2, 2]
    with pytest.raises(UserError, match=r"data\.root=faces: .* 1 female and 2 male found; add") as error:
        recalibrate.count_folds([face for face in faces if face.identity != "p0"], "data.root=faces")
    assert error.value.code == "too-few-identities"


def test_what_is_said_of_a_fit_that_helps_no_one() -> None:
    faces = people(30, 40)
    labels = np.array([face.label for face in faces])
    right = torch.from_numpy(2.0 * labels - 1) + drawn(faces)
    model: Any = SimpleNamespace(calibration=None, facts={})

    def said(logits: torch.Tensor) -> str:
        return recalibration_report(recalibrate.compose(model, recalibrate.refit(logits, faces, None, 0.5), 0.5))

    assert "note:" not in said(right + 3)
    assert "note: here the model is no better than chance" in said(-right)
    slope, bias = calibration.fit(right[None], labels)
    assert "held out, the new model is no better; keep the old one" in said(
        slope * right + bias
    )  # it was fitted on these
