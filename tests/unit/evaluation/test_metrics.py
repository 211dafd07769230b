import numpy as np
import pytest
import torch

from gender_cls.evaluation.metrics import Evaluation, auroc, class_scores, confusion, metric_collection
from gender_cls.evaluation.tables import table


def f1_macro(counts: np.ndarray) -> np.ndarray:
    return class_scores(counts)["f1_macro"]


def f1_macro_interval(predictions: np.ndarray, labels: np.ndarray, identities: list[str]) -> list[float]:
    return Evaluation(torch.tensor(predictions)[None].float(), labels, identities).metrics(0)["f1_macro_ci95"]


def scores(probabilities: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Metrics of torchmetrics."""
    metrics = metric_collection()
    metrics.update((probabilities > 0.5).long(), labels.long())
    return {name: float(value) for name, value in metrics.compute().items()}


def test_scores_of_a_case_worked_by_hand() -> None:
    labels = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
    probabilities = torch.tensor([0.1, 0.2, 0.9, 0.4, 0.6, 0.7, 0.8, 0.95])
    found = scores(probabilities, labels)
    # predictions: 0 0 1 0 1 1 1 1; female: tp 2, fp 1, fn 1; male: tp 4, fp 1, fn 1
    assert found["precision_female"] == pytest.approx(2 / 3)
    assert found["recall_female"] == pytest.approx(2 / 3)
    assert found["f1_female"] == pytest.approx(2 / 3)
    assert found["f1_male"] == pytest.approx(4 / 5)
    assert found["f1_macro"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found["accuracy"] == pytest.approx(6 / 8)
    assert auroc(probabilities, labels) == pytest.approx(11 / 15, abs=1e-6)  # ordered pairs: 5, 5, 1 of 5 each


def test_half_is_female() -> None:
    assert Evaluation(torch.tensor([[0.5, 0.6]]), np.array([0, 1]), ["a", "b"]).metrics(0)["accuracy"] == 1


def test_metrics_are_torchmetrics_and_their_means() -> None:
    probabilities, labels = torch.rand(3, 40, generator=torch.Generator().manual_seed(0)), np.arange(40) % 3 // 2
    found = Evaluation(probabilities, labels, [str(n) for n in range(40)])
    for place, row in enumerate(probabilities):
        expected = scores(row, torch.from_numpy(labels))
        assert {name: found.metrics(place)[name] for name in expected} == pytest.approx(expected, abs=1e-5)
    both = found.metrics(0, 2)
    for name in ("f1_macro", "recall_female", "auroc"):
        assert both[name] == pytest.approx((found.metrics(0)[name] + found.metrics(2)[name]) / 2, abs=1e-5)
    assert "confusion" not in both


def test_metrics_are_right_again_after_a_reset() -> None:
    metrics = metric_collection()
    for predictions in ([1, 0, 1, 0], [0, 0, 1, 1]):
        labels = torch.tensor([1, 0, 0, 1])
        metrics.update(torch.tensor(predictions[:2]), labels[:2])
        metrics.update(torch.tensor(predictions[2:]), labels[2:])
        found = {name: float(value) for name, value in metrics.compute().items()}
        fresh = scores(torch.tensor(predictions).float(), labels)
        assert found == fresh
        metrics.reset()


def test_macro_f1_from_counts_is_torchmetrics() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels, predictions = rng.integers(0, 2, 30), rng.integers(0, 2, 30)
        ours = f1_macro(confusion(predictions, labels))
        assert ours == pytest.approx(scores(torch.tensor(predictions).float(), torch.tensor(labels))["f1_macro"])
    assert f1_macro(np.array([[0, 5], [0, 15]])) == pytest.approx((0 + 30 / 35) / 2)  # always male
    assert confusion(np.array([1, 0, 1]), np.array([1, 1, 0])).tolist() == [[0, 1], [1, 1]]


def test_the_interval_draws_identities_not_images() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(rng.integers(0, 2, 60), 10)  # 60 identities, ten images each
    predictions = np.where(np.repeat(rng.random(60) < 0.85, 10), labels, 1 - labels)  # right or wrong as a whole
    identities = [f"p{n // 10}" for n in range(600)]
    low, high = f1_macro_interval(predictions, labels, identities)
    value = float(f1_macro(confusion(predictions, labels)))
    assert low < value < high
    narrow = f1_macro_interval(predictions, labels, [str(n) for n in range(600)])
    assert (high - low) / (narrow[1] - narrow[0]) == pytest.approx(np.sqrt(10), rel=0.15)
    assert [low, high] == f1_macro_interval(predictions, labels, identities)  # seeded


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0  # of the true macro-F1, 0.85 where both classes are equal and 15 % of each are wrong
    for _ in range(100):
        labels = rng.integers(0, 2, 200)
        predictions = np.where(rng.random(200) < 0.85, labels, 1 - labels)
        low, high = f1_macro_interval(predictions, labels, [str(n) for n in range(200)])
        covered += low <= 0.85 <= high
    assert 88 <= covered <= 99


def test_a_table_lines_up() -> None:
    assert table(("name", "n"), [("a", 5), ("long", 0.25)]) == "name      n\na         5\nlong  0.250"
