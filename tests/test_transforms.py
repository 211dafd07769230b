import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from gender_cls.transforms import MEDIAN_SIDE, Preprocessing, median_3x3


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("shape", [(40, 30), (3, 3), (1, 1), (1, 7)])
def test_the_median_is_that_of_the_nine(shape: tuple[int, int]) -> None:
    image = noise(*shape)
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(wide, (3, 3), axis=(0, 1))
    assert np.array_equal(median_3x3(image), np.median(windows, axis=(-2, -1)))
    pillow = np.asarray(Image.fromarray(image).filter(ImageFilter.MedianFilter(3)))
    assert np.array_equal(median_3x3(image)[1:-1, 1:-1], pillow[1:-1, 1:-1])


def test_the_middle_is_kept_and_nothing_else() -> None:
    image = np.zeros((100, 80, 3), np.uint8)
    image[10:90, 8:72] = 255
    assert (Preprocessing(size=32, crop=0.8).resize(Image.fromarray(image)) == 255).all()
    assert not (Preprocessing(size=32, crop=0.9).resize(Image.fromarray(image)) == 255).all()
    assert Preprocessing(size=32, crop=0.1).resize(Image.new("RGB", (1, 3000))).shape == (3, 32, 32)


def test_the_median_removes_grains_also_of_large_pictures() -> None:
    face = Image.new("RGB", (4 * MEDIAN_SIDE, 4 * MEDIAN_SIDE), "grey")
    grains = np.asarray(face.resize((200, 200))).copy()
    grains[::4, ::5] = 255
    clean = Preprocessing(median=True).resize(face)
    assert torch.equal(Preprocessing(median=True).resize(Image.fromarray(grains)), clean)
    assert not torch.equal(Preprocessing().resize(Image.fromarray(grains)), clean)
