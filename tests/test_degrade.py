from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gender_cls.degrade import DEGRADATIONS, LARGEST, SEVERITIES, degrade
from gender_cls.errors import UserError
from gender_cls.images import load_rgb
from gender_cls.transforms import Preprocessing
from gender_cls.views import CONDITIONS, Degrading, EvaluationViews, TrainingViews

names = pytest.mark.parametrize("name", DEGRADATIONS)


@pytest.fixture(scope="module")
def face(drawn: Path) -> np.ndarray:
    return np.asarray(load_rgb(next((drawn / "val" / "male").iterdir())).resize((224, 224)))


def degraded(image: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    return DEGRADATIONS[name](image, severity, np.random.default_rng(seed))


@names
@pytest.mark.parametrize("shape", [(224, 224), (1, 1), (1, 256), (256, 3), (100, 160)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_shape_and_type_stay_and_the_image_is_not_touched(name: str, shape: tuple[int, int], severity: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    found = degraded(image, name, severity)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    assert np.array_equal(image, before)


def test_values_do_not_wrap_around() -> None:
    black, white = (np.full((96, 96, 3), value, np.uint8) for value in (0, 255))
    for severity in SEVERITIES:
        for name in ("blurred", "resized"):
            assert (degraded(black, name, severity) == 0).all()
            assert (degraded(white, name, severity) == 255).all()
        assert degraded(white, "sunny", severity).min() == 255
        assert degraded(white, "rainy", severity).min() >= 0.86 * 235
        assert degraded(black, "sunny", severity).max() == 255
        for seed in range(5):
            assert degraded(white, "foggy", severity, seed).min() > 100
    assert degraded(white, "foggy", 1).min() > 200
    assert np.unique(degraded(white, "lowlight", 5)) == 33
    large = np.full((1600, 1600, 3), 250, np.uint8)
    assert (degraded(large, "blurred", 5, 1) == 250).all()  # moved: the sum of many


@names
def test_there_are_five_severities(name: str, face: np.ndarray) -> None:
    for severity in (0, 6):
        with pytest.raises(ValueError, match="give 1 to 5"):
            degraded(face, name, severity)


@names
def test_the_same_seed_gives_the_same_picture(name: str, face: np.ndarray) -> None:
    assert np.array_equal(degraded(face, name, 3), degraded(face, name, 3))
    if name != "lowlight":  # in which nothing is random
        assert any(not np.array_equal(degraded(face, name, 3), degraded(face, name, 3, seed)) for seed in (1, 2, 3))


@names
def test_a_higher_severity_is_further_from_the_original(name: str, face: np.ndarray) -> None:
    def distance(severity: int) -> float:
        return float(np.mean([np.abs(degraded(face, name, severity, s).astype(int) - face).mean() for s in range(20)]))

    distances = [distance(severity) for severity in SEVERITIES]
    assert distances == sorted(distances)
    assert distances[4] > 1.3 * distances[0] > 0


def test_severity_3_is_what_facecoms_organisers_did() -> None:
    grey = np.full((224, 224, 3), 200, np.uint8)
    assert np.unique(degraded(grey, "lowlight", 3)) == 58  # x 0.29
    noisy = degraded(grey, "noisy", 3)[..., 0]
    assert np.mean(noisy != 200) == pytest.approx(0.1, abs=0.01)
    assert np.mean(noisy == 255) == pytest.approx(0.05, abs=0.01)
    black = np.zeros((224, 224, 3), np.uint8)
    fog = [degraded(black, "foggy", 3, seed).mean() for seed in range(20)]
    assert np.mean(fog) == pytest.approx(105, abs=8)
    disc = [np.mean(degraded(black, "sunny", 3, seed) == 255) for seed in range(20)]
    assert max(disc) < 0.205
    assert np.median(disc) > 0.14  # a part of it may be outside of the picture
    few = np.mean([np.mean(degraded(black, "rainy", 3, seed)[..., 0] > 0) for seed in range(5)])
    assert 0.04 < few < 0.07


def test_a_large_picture_is_made_smaller_first() -> None:
    generator = np.random.default_rng(0)
    assert degrade(Image.new("RGB", (1000, 500)), generator, ("noisy", 3)).size == (LARGEST, LARGEST // 2)
    assert degrade(Image.new("RGB", (100, 50)), generator, ("noisy", 3), ("foggy", 1)).size == (100, 50)


def test_evaluation_views_are_degraded_before_the_crop_always_alike(face: np.ndarray) -> None:
    picture = Image.fromarray(face)
    whole, cropped = (EvaluationViews(Preprocessing(size=224, crop=crop)) for crop in (1.0, 0.5))
    number = CONDITIONS.index(("noisy", 3))
    one, other = (views(picture, "digest", [number])[0] for views in (whole, cropped))
    middle = Image.fromarray(one[:, 56:168, 56:168].permute(1, 2, 0).numpy())  # 224 is not resized
    assert torch.equal(other, Preprocessing().resize(middle))
    assert not torch.equal(one, whole(picture, "another", [number])[0])


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_training_views_is_degraded(share: float, face: np.ndarray) -> None:
    views = TrainingViews(Preprocessing(size=64), 0, (0, 0, 0), 0, Degrading(share, kinds=["lowlight"], severities=[5]))
    found = views(Image.fromarray(face), "digest", range(200))
    dark = (found.float().mean((1, 2, 3)) < 60).float().mean()
    assert float(dark) == pytest.approx(share, abs=0.1 * (0 < share < 1))


def test_whether_and_how_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    """What decides that a view is degraded leaves the degradation its whole range."""
    factors = []
    monkeypatch.setitem(
        DEGRADATIONS, "resized", lambda image, _, generator: (factors.append(generator.uniform(5, 8)), image)[1]
    )
    views = TrainingViews(Preprocessing(size=8), 0, (0, 0, 0), 0, Degrading(0.5, kinds=["resized"], severities=[3]))
    views(Image.new("RGB", (8, 8)), "digest", range(400))
    assert len(factors) == pytest.approx(200, abs=40)
    assert np.mean(factors) == pytest.approx(6.5, abs=0.2)
    assert min(factors) < 5.2 < 7.8 < max(factors)


def test_twice_means_two_kinds() -> None:
    draws = [Degrading(1.0, 0.5).draw(np.random.default_rng(seed)) for seed in range(400)]
    twice = [steps for steps in draws if len(steps) == 2]
    assert len(twice) / len(draws) == pytest.approx(0.5, abs=0.07)
    assert all(steps[0][0] != steps[1][0] for steps in twice)
    assert {steps[0] for steps in draws} == set(CONDITIONS[1:])


@pytest.mark.parametrize(
    "values",
    [
        {"share": 1.1},
        {"twice": -1},
        {"kinds": ["misty"]},
        {"severities": [0]},
        {"kinds": []},
        {"share": "x"},
        {"severities": 3},
    ],
)
def test_an_impossible_degradation_is_one_line(values: dict[str, object]) -> None:
    with pytest.raises(UserError, match=r"^degrade\.\w+=.*: give "):
        Degrading(**values)
