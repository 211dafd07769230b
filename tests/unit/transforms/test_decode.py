import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gender_cls.transforms.decode import ImageError, list_images, load_rgb


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "1", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.new(mode, (5, 4)).save(path)
    image = load_rgb(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, -1)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    found = np.asarray(load_rgb(tmp_path / "ramp.png"))[0, :, 0]
    assert np.array_equal(found, np.arange(256))


def test_wide_modes_may_hold_8_bit_values(tmp_path: Path) -> None:
    Image.new("I", (2, 2), 128).save(tmp_path / "i.tif")
    assert load_rgb(tmp_path / "i.tif").getpixel((0, 0)) == (128, 128, 128)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert load_rgb(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2))
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert load_rgb(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    upright = load_rgb(tmp_path / "turned.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_not_an_image_is_an_image_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError) as error:
        load_rgb(tmp_path / "x.jpg")
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_truncated_missing_and_oversized_are_image_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.jpg")
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="truncated"):
        load_rgb(tmp_path / "half.jpg")
    with pytest.raises(ImageError, match="no such file or directory"):
        load_rgb(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="is a directory"):
        load_rgb(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="decompression bomb"):
        load_rgb(tmp_path / "x.jpg")


def test_float_gray(tmp_path: Path) -> None:
    for top, expected in ((1.0, 255), (200.0, 200)):
        Image.fromarray(np.full((2, 2), top, dtype=np.float32)).save(tmp_path / "f.tif")
        assert load_rgb(tmp_path / "f.tif").getpixel((0, 0)) == (expected,) * 3
    Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match="not finite"):
        load_rgb(tmp_path / "nan.tif")


@pytest.mark.skipif(not find_spec("pillow_heif"), reason="the extra `formats` is not installed")
def test_heic_is_read_by_a_process_that_has_seen_none(tmp_path: Path) -> None:
    """As by a worker process, from a path or from content."""
    import pillow_heif

    pillow_heif.from_pillow(Image.new("RGB", (64, 32))).save(tmp_path / "x.HEIC")
    for content in ("", ", open(sys.argv[1], 'rb').read()"):
        code = (
            f"import sys; from gender_cls.transforms.decode import load_rgb as f; print(f(sys.argv[1]{content}).size)"
        )
        command = [sys.executable, "-c", code, str(tmp_path / "x.HEIC")]
        assert subprocess.run(command, capture_output=True, text=True).stdout == "(64, 32)\n"


def test_list_images_goes_by_the_suffix_and_leaves_out_hidden_files(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png", "c.txt", ".hidden.jpg", "deep/d.jpeg", ".git/e.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [str(Path(path).relative_to(tmp_path)) for path in list_images(tmp_path)]
    assert found == ["a.png", "b.JPG", "deep/d.jpeg"]
