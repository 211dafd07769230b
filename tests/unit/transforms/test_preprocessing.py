import numpy as np
import pytest
from PIL import Image, ImageFilter

from gender_cls.errors import UserError
from gender_cls.transforms.preprocessing import MEDIAN_SIDE, Preprocessing, median_3x3


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


def test_a_crop_keeps_the_center_and_nothing_else() -> None:
    image = np.zeros((100, 80, 3), np.uint8)
    image[10:90, 8:72] = 255
    assert (Preprocessing(size=32, crop=0.8).pixels(Image.fromarray(image)) == 255).all()
    assert not (Preprocessing(size=32, crop=0.9).pixels(Image.fromarray(image)) == 255).all()
    assert Preprocessing(size=32, crop=0.1).pixels(Image.new("RGB", (1, 3000))).shape == (3, 32, 32)


def test_the_median_removes_grains_also_from_large_images() -> None:
    face = Image.new("RGB", (4 * MEDIAN_SIDE, 4 * MEDIAN_SIDE), "grey")
    grains = np.asarray(face.resize((200, 200))).copy()
    grains[::4, ::5] = 255
    clean = Preprocessing(median=True).pixels(face)
    assert np.array_equal(Preprocessing(median=True).pixels(Image.fromarray(grains)), clean)
    assert not np.array_equal(Preprocessing().pixels(Image.fromarray(grains)), clean)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", 0), ("size", 224.0), ("crop", 0), ("crop", 1.1), ("crop", "x"), ("median", 1),
        ("interpolation", "best"), ("mean", (0.5, 0.5)), ("mean", None), ("std", (1, 1, 0)), ("std", ("a", "b", "c")),
        ("std", (1, 1, float("nan"))),
    ],
)  # fmt: skip
def test_an_impossible_value_is_refused(key: str, value: object) -> None:
    with pytest.raises(UserError) as failure:
        Preprocessing(**{key: value})  # type: ignore[arg-type]
    assert failure.value.code == "bad-value"
    assert f"data.{key}=" in str(failure.value)


def test_numbers_from_a_configuration_become_equal_ones() -> None:
    listed = Preprocessing(crop=1, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])  # type: ignore[arg-type]
    assert listed == Preprocessing()
    assert isinstance(listed.crop, float)
