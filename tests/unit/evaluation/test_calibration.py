"""The fit of a calibration, its folding, the calibration metrics and the coverage."""

import math

import numpy as np
import pytest
import torch
from torchvision.models import resnet18

from gender_cls.evaluation import calibration
from gender_cls.evaluation.metrics import auroc
from gender_cls.evaluation.reliability import coverage_at, measure_calibration
from gender_cls.models.network import GenderNet
from gender_cls.transforms.views import CONDITIONS, REPORTED


def drawn_logits(females: int, males: int, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    """Log-odds of male at a prior of 0.5, and labels: they are 2 x, with x from N(-1, 1) of female, N(1, 1) of male."""
    labels = np.repeat((0, 1), (females, males))
    return torch.from_numpy(2 * np.random.default_rng(seed).normal(2 * labels - 1)), labels


def test_a_known_slope_and_bias_are_recovered_whatever_the_mixture() -> None:
    logits, labels = drawn_logits(40_000, 160_000)
    slope, bias = calibration.fit(((logits - 1.8) / 2.5)[None], labels)
    assert slope == pytest.approx(2.5, rel=0.02)
    assert bias == pytest.approx(1.8, abs=0.03)


def test_a_fit_never_turns_the_ranking_round_and_survives_classes_apart() -> None:
    labels = np.array([0, 0, 1, 1])
    slope, bias = calibration.fit(torch.tensor([[2.0, 1.0, -1.0, -2.0]]), labels)
    assert slope > 0
    slope, bias = calibration.fit(torch.tensor([[-2.0, -1.0, 1.0, 2.0]]), labels)
    assert 0 < slope < 20
    assert bias == pytest.approx(0, abs=1e-4)
    assert calibration.fit(torch.zeros(1, 4), labels)[0] > 0  # an uninformative head
    apart = calibration.calibration_metrics(torch.tensor([-2.0, -1.0, 1.0, 2.0]), labels, 0.5)
    assert apart["slope"] is apart["intercept"] is None


def test_a_refit_of_a_perfect_model_that_is_nearly_always_right_finds_nothing() -> None:
    labels = np.repeat((0, 1), (105, 317))
    found = []
    for seed in range(40):
        logits = 4.5 * np.random.default_rng(seed).normal(2.25 * (2 * labels - 1))  # AUROC 0.999
        found.append(calibration.calibration_metrics(torch.from_numpy(logits), labels, 0.5))
    assert np.median([metrics["slope"] or np.inf for metrics in found]) == pytest.approx(1, abs=0.25)
    assert np.median([metrics["intercept"] or 0 for metrics in found]) == pytest.approx(0, abs=0.25)


def test_folding_is_the_map_and_leaves_the_ranking() -> None:
    torch.manual_seed(0)
    images, net, plain = torch.rand(16, 3, 32, 32), GenderNet(None).eval(), resnet18(num_classes=1).eval()
    with torch.no_grad():
        before = net(images)
        calibration.fold(net.head, 0.83, -0.4)
        plain.load_state_dict(net.plain_state())
        folded = plain(images).squeeze(1).sigmoid()
    assert torch.allclose(folded, (0.83 * before - 0.4).sigmoid(), rtol=0, atol=1e-6)
    assert torch.equal(folded.argsort(), before.argsort())
    labels = torch.arange(16) % 2
    assert auroc(folded, labels) == auroc(before.sigmoid(), labels)


def test_the_ece_of_cases_done_by_hand() -> None:
    ece = calibration.expected_calibration_error
    labels = np.array([0, 1])  # a bin for each
    assert ece(np.array([0.2, 0.7]), labels, 0.5) == pytest.approx(0.5 * 0.2 + 0.5 * 0.3)
    assert ece(np.array([0.2, 0.7]), labels, 0.8) == pytest.approx(0.2 * 0.2 + 0.8 * 0.3)
    labels = np.tile((0, 1), 15)  # two images a bin, one of them male
    assert ece(np.full(30, 0.6), labels, 0.5) == pytest.approx(0.1)
    assert ece(np.full(30, 0.5), np.sort(labels), 0.5) == pytest.approx(0)  # in any order


def test_the_ece_of_a_perfect_model_is_noise_and_a_bias_is_not() -> None:
    found = [calibration.calibration_metrics(*drawn_logits(105, 317, seed), 0.5) for seed in range(40)]
    assert 0.02 < np.mean([metrics["ece"] for metrics in found]) < 0.06  # though it is perfect
    assert abs(np.mean([metrics["ece_debiased"] for metrics in found])) < 0.006
    assert np.mean([metrics["slope"] for metrics in found]) == pytest.approx(1, abs=0.1)
    assert np.mean([metrics["intercept"] for metrics in found]) == pytest.approx(0, abs=0.1)
    logits, labels = drawn_logits(105, 317)
    for shift in (-1.5, 1.5):
        biased = calibration.calibration_metrics(logits + shift, labels, 0.5)
        assert biased["ece_debiased"] > 0.05
        assert biased["intercept"] == pytest.approx(-shift, abs=0.4)
    overconfident = calibration.calibration_metrics(3 * logits, labels, 0.5)
    assert overconfident["slope"] == pytest.approx(1 / 3, abs=0.1)
    assert overconfident["ece_debiased"] > 0.04


def test_the_noise_floor_of_a_model_that_favors_one_class_is_no_excuse() -> None:
    labels = np.repeat((0, 1), (105, 317))
    always = calibration.calibration_metrics(
        torch.full((422,), 3.0).double() + drawn_logits(105, 317)[0] / 100, labels, 0.5
    )
    assert always["ece"] == pytest.approx(0.45, abs=0.03)  # 95 % male for every image
    assert (always["ece_debiased"] or 0) > 0.4


def test_another_prior_is_another_weight() -> None:
    logits, labels = drawn_logits(20_000, 20_000)
    moved = logits + calibration.log_odds(0.8)
    assert abs(calibration.calibration_metrics(moved, labels, 0.8)["ece_debiased"]) < 0.01
    assert calibration.calibration_metrics(moved, labels, 0.5)["ece_debiased"] > 0.05
    weights = calibration.class_weights(np.array([0, 0, 0, 1]), 0.8)
    assert weights.tolist() == pytest.approx([0.2 / 3] * 3 + [0.8])


def test_coverage_by_hand() -> None:
    logits, labels = torch.tensor([4.0, -3.0, 2.0, -1.0]), np.array([1, 0, 0, 1])  # the two most confident are right
    covered, wrong, confidence = curve = calibration.coverage(logits, labels, 0.5)
    assert covered.tolist() == pytest.approx([0.25, 0.5, 0.75, 1])
    assert wrong.tolist() == pytest.approx([0, 0, 1 / 3, 0.5])
    assert confidence.tolist() == pytest.approx(logits.double().abs().sigmoid().tolist())
    found = coverage_at(*curve, 0.01)
    assert (found["coverage"], found["confidence"]) == (0.5, pytest.approx(1 / (1 + math.exp(-3)), abs=1e-6))
    wrong_way = calibration.coverage(-logits, labels, 0.5)
    assert coverage_at(*wrong_way, 0.05) == {"error": 0.05, "coverage": 0.0, "confidence": None}
    tied = calibration.coverage(torch.tensor([2.0, 2.0, -2.0, 1.0]), np.array([1, 0, 0, 1]), 0.5)
    assert tied[0].tolist() == [0.75, 1]  # all of one confidence or none


def test_what_a_report_says_before_and_after_calibration() -> None:
    logits, labels = drawn_logits(100, 300)
    identities = [f"p{n // 2}" for n in range(400)]
    every = logits.expand(len(CONDITIONS), -1)
    found = measure_calibration(every, labels, identities, {"prior": 0.5, "slope": 0.5, "bias": 1.0})
    assert found
    assert found["model"]["clean"]["slope"] == pytest.approx(1, abs=0.2)
    assert found["uncalibrated"]["clean"]["slope"] == pytest.approx(0.5 * found["model"]["clean"]["slope"], rel=1e-3)
    assert found["uncalibrated"]["clean"]["ece_debiased"] > 0.05 > found["model"]["clean"]["ece_debiased"]
    assert list(found["coverage"]) == list(REPORTED)
    rows = found["bins"]["foggy"]
    assert len(rows) == 15
    assert sum(row["low"] <= row["share"] <= row["high"] for row in rows) >= 13  # a perfect model
    assert all(row["low"] <= row["p_male"] <= row["high"] for row in rows)
    off = measure_calibration(every + 2, labels, identities, None)
    assert off
    assert sum(row["low"] <= row["share"] <= row["high"] for row in off["bins"]["foggy"]) < 8
    assert measure_calibration(every[:, labels == 1], labels[labels == 1], identities[:300], None) is None


def test_images_of_an_identity_are_lucky_together() -> None:
    logits, labels = (values.repeat(5) for values in map(np.asarray, drawn_logits(40, 120)))
    every = torch.from_numpy(logits).expand(len(CONDITIONS), -1)

    def width(images: int) -> float:
        found = measure_calibration(every, labels, [f"p{n // images}" for n in range(len(labels))], None)
        assert found
        return sum(row["high"] - row["low"] for row in found["bins"]["clean"])

    assert width(5) > 1.4 * width(1)
