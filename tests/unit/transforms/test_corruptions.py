from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gender_cls.transforms.corruptions import CORRUPTIONS, MAX_SIDE, SEVERITIES, corrupt
from gender_cls.transforms.decode import Decoder

names = pytest.mark.parametrize("name", CORRUPTIONS)


@pytest.fixture(scope="module")
def face(drawn: Path) -> np.ndarray:
    return np.asarray(Decoder().load(next((drawn / "val" / "male").iterdir())).resize((224, 224)))


def corrupted(image: np.ndarray, name: str, severity: int, seed: int = 0) -> np.ndarray:
    return CORRUPTIONS[name](image, severity, np.random.default_rng(seed))


@names
@pytest.mark.parametrize("shape", [(224, 224), (1, 1), (1, 256), (256, 3), (100, 160)])
@pytest.mark.parametrize("severity", SEVERITIES)
def test_shape_and_type_stay_and_the_image_is_not_touched(name: str, shape: tuple[int, int], severity: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    before = image.copy()
    found = corrupted(image, name, severity)
    assert (found.shape, found.dtype) == (image.shape, np.uint8)
    assert np.array_equal(image, before)


def test_values_do_not_wrap_around() -> None:
    black, white = (np.full((96, 96, 3), value, np.uint8) for value in (0, 255))
    for severity in SEVERITIES:
        for name in ("blurred", "resized"):
            assert (corrupted(black, name, severity) == 0).all()
            assert (corrupted(white, name, severity) == 255).all()
        assert corrupted(white, "sunny", severity).min() == 255
        assert corrupted(white, "rainy", severity).min() >= 0.86 * 235
        assert corrupted(black, "sunny", severity).max() == 255
        for seed in range(5):
            assert corrupted(white, "foggy", severity, seed).min() > 100
    assert corrupted(white, "foggy", 1).min() > 200
    assert np.unique(corrupted(white, "lowlight", 5)) == 33
    large = np.full((1600, 1600, 3), 250, np.uint8)
    assert (corrupted(large, "blurred", 5, 1) == 250).all()  # moved: the sum of many


@names
def test_there_are_five_severities(name: str, face: np.ndarray) -> None:
    for severity in (0, 6):
        with pytest.raises(ValueError, match="give 1 to 5"):
            corrupted(face, name, severity)


@names
def test_the_same_seed_gives_the_same_image(name: str, face: np.ndarray) -> None:
    assert np.array_equal(corrupted(face, name, 3), corrupted(face, name, 3))
    if name != "lowlight":  # in which nothing is random
        assert any(not np.array_equal(corrupted(face, name, 3), corrupted(face, name, 3, seed)) for seed in (1, 2, 3))


@names
def test_a_higher_severity_is_further_from_the_original(name: str, face: np.ndarray) -> None:
    def distance(severity: int) -> float:
        return float(np.mean([np.abs(corrupted(face, name, severity, s).astype(int) - face).mean() for s in range(20)]))

    distances = [distance(severity) for severity in SEVERITIES]
    assert distances == sorted(distances)
    assert distances[4] > 1.3 * distances[0] > 0


def test_severity_3_is_what_facecoms_organizers_did() -> None:
    grey = np.full((224, 224, 3), 200, np.uint8)
    assert np.unique(corrupted(grey, "lowlight", 3)) == 58  # x 0.29
    noisy = corrupted(grey, "noisy", 3)[..., 0]
    assert np.mean(noisy != 200) == pytest.approx(0.1, abs=0.01)
    assert np.mean(noisy == 255) == pytest.approx(0.05, abs=0.01)
    black = np.zeros((224, 224, 3), np.uint8)
    fog = [corrupted(black, "foggy", 3, seed).mean() for seed in range(20)]
    assert np.mean(fog) == pytest.approx(105, abs=8)
    disc = [np.mean(corrupted(black, "sunny", 3, seed) == 255) for seed in range(20)]
    assert max(disc) < 0.205
    assert np.median(disc) > 0.14  # a part of it may be outside of the image
    few = np.mean([np.mean(corrupted(black, "rainy", 3, seed)[..., 0] > 0) for seed in range(5)])
    assert 0.04 < few < 0.07


def test_a_large_image_is_made_smaller_first() -> None:
    generator = np.random.default_rng(0)
    assert corrupt(Image.new("RGB", (1000, 500)), generator, ("noisy", 3)).size == (MAX_SIDE, MAX_SIDE // 2)
    assert corrupt(Image.new("RGB", (100, 50)), generator, ("noisy", 3), ("foggy", 1)).size == (100, 50)
