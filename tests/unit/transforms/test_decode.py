import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile, ImageOps

from gender_cls.errors import ImageError
from gender_cls.transforms import decode
from gender_cls.transforms.decode import Decoder


@pytest.mark.parametrize("mode", ["L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "1", "I;16", "I", "F"])
def test_every_mode_becomes_rgb(mode: str, tmp_path: Path) -> None:
    path = tmp_path / "x.tif"
    Image.new(mode, (5, 4)).save(path)
    image = Decoder().load(path)
    assert (image.mode, image.size) == ("RGB", (5, 4))


def test_16_bit_gray_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(1, -1)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    found = np.asarray(Decoder().load(tmp_path / "ramp.png"))[0, :, 0]
    assert np.array_equal(found, np.arange(256))


def test_wide_modes_may_hold_8_bit_values(tmp_path: Path) -> None:
    Image.new("I", (2, 2), 128).save(tmp_path / "i.tif")
    assert Decoder().load(tmp_path / "i.tif").getpixel((0, 0)) == (128, 128, 128)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    assert Decoder().load(tmp_path / "clear.png").getpixel((0, 0)) == (255, 255, 255)
    palette = Image.new("P", (2, 2))
    palette.putpalette([10, 20, 30])
    palette.save(tmp_path / "palette.png", transparency=0)
    assert Decoder().load(tmp_path / "palette.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 2))
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    upright = Decoder().load(tmp_path / "turned.png")
    assert upright.size == (2, 4)
    assert upright.getpixel((1, 0)) == (255, 255, 255)


@pytest.mark.parametrize("content", [b"", b"text", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"])
def test_what_is_not_an_image_is_an_image_error(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError) as error:
        Decoder().load(tmp_path / "x.jpg")
    assert "\n" not in str(error.value)
    assert str(tmp_path) not in str(error.value)


def test_truncated_missing_and_oversized_are_image_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.jpg")
    whole = (tmp_path / "x.jpg").read_bytes()
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="truncated"):
        Decoder().load(tmp_path / "half.jpg")
    with pytest.raises(ImageError, match="no such file or directory"):
        Decoder().load(tmp_path / "gone.jpg")
    with pytest.raises(ImageError, match="is a directory"):
        Decoder().load(tmp_path)
    Image.effect_noise((64, 64), 50).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="64 x 64 pixels are more than max_pixels=4095"):
        Decoder(max_pixels=4095).load(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    assert Decoder().load(tmp_path / "x.png").size == (64, 64)  # whatever the limit of the process is
    assert Image.MAX_IMAGE_PIXELS == 100


def test_float_gray(tmp_path: Path) -> None:
    for top, expected in ((1.0, 255), (200.0, 200)):
        Image.fromarray(np.full((2, 2), top, dtype=np.float32)).save(tmp_path / "f.tif")
        assert Decoder().load(tmp_path / "f.tif").getpixel((0, 0)) == (expected,) * 3
    Image.fromarray(np.full((2, 2), np.nan, dtype=np.float32)).save(tmp_path / "nan.tif")
    with pytest.raises(ImageError, match="not finite"):
        Decoder().load(tmp_path / "nan.tif")


@pytest.mark.skipif(not find_spec("pillow_heif"), reason="the extra `formats` is not installed")
def test_heic_is_read_by_a_process_that_has_seen_none(tmp_path: Path) -> None:
    """As by a worker process, from a path or from content."""
    import pillow_heif

    pillow_heif.from_pillow(Image.new("RGB", (64, 32))).save(tmp_path / "x.HEIC")
    for call in ("load(sys.argv[1])", "convert(open(sys.argv[1], 'rb').read())"):
        code = f"import sys; from gender_cls.transforms.decode import Decoder as D; print(D().{call}.size)"
        command = [sys.executable, "-c", code, str(tmp_path / "x.HEIC")]
        assert subprocess.run(command, capture_output=True, text=True).stdout == "(64, 32)\n"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


NOISE = Image.effect_noise((60, 40), 60).convert("RGB")
GARBAGE = bytes(range(200))


@pytest.mark.skipif(not find_spec("pillow_heif"), reason="the extra `formats` is not installed")
def test_the_format_is_that_of_the_content(tmp_path: Path) -> None:
    """HEIC named .jpg, AVIF named .heic, brands in another order, with other readers registered or not."""
    import pillow_heif

    buffer = io.BytesIO()
    pillow_heif.from_pillow(NOISE).save(buffer, format="HEIF")
    heic = buffer.getvalue()
    mif1 = heic[:8] + b"mif1" + heic[12:]
    (tmp_path / "phone.jpg").write_bytes(heic)
    before = np.asarray(Decoder().load(tmp_path / "phone.jpg"))
    assert np.abs(before.astype(int) - np.asarray(NOISE)).mean() < 30
    assert np.array_equal(before, Decoder().convert(mif1))
    avif = encoded(NOISE, "AVIF")
    (tmp_path / "web.heic").write_bytes(avif)
    assert np.array_equal(Decoder().load(tmp_path / "web.heic"), Decoder().convert(avif[:8] + b"mif1" + avif[12:]))
    (tmp_path / "x.png").write_bytes(encoded(NOISE, "JPEG"))
    assert Decoder().load(tmp_path / "x.png").size == NOISE.size
    known = dict(Image.OPEN)
    pillow_heif.register_heif_opener()  # as another library may
    try:
        assert np.array_equal(before, Decoder().load(tmp_path / "phone.jpg"))
    finally:
        Image.OPEN.clear()
        Image.OPEN.update(known)
        Image.ID.remove("HEIF")


def test_heic_without_its_reader_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "find_spec", lambda _: None)
    with pytest.raises(ImageError, match="HEIC needs the extra `formats`"):
        Decoder().convert(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic")


def png_chunk(kind: bytes, body: bytes, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) if crc is None else crc)
    )


EXIF = {
    "garbage": GARBAGE,
    "empty": b"",
    "text": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x04\0\0\0006\0\0\0\0\0\0\0",  # an orientation of type ASCII
    "far": b"II*\0\x08\0\0\0\x01\0\x12\x01\x05\0\x01\0\0\0\xff\xff\xff\x7f\0\0\0\0",  # its value is not there
    "many": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\xff\xff\x7f\x01\0\0\0\0\0\0\0",  # and has 2**31 - 1 values
    "loop": b"II*\0\x08\0\0\0\x01\0\x69\x87\x04\0\x01\0\0\0\x08\0\0\0\0\0\0\0",  # a directory in itself
    "none": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x63\0\0\0\0\0\0\0",  # orientation 99
}
SEGMENTS = {
    **{f"exif {name}": (0xE1, b"Exif\0\0" + body) for name, body in EXIF.items()},
    **{f"garbage {marker:X}": (marker, GARBAGE) for marker in (*range(0xE0, 0xF0), 0xFE)},
    **{f"empty {marker:X}": (marker, b"") for marker in range(0xE0, 0xF0)},
    "short JFIF": (0xE0, b"JFIF"),
    "short profile": (0xE2, b"ICC_PROFILE\0"),
    "half a profile": (0xE2, b"ICC_PROFILE\0\2\3" + GARBAGE),
    "broken MPF": (0xE2, b"MPF\0" + GARBAGE),
    "short Adobe": (0xEE, b"Adobe"),
    "broken Photoshop": (0xED, b"Photoshop 3.0\x008BIM\x04\x04" + GARBAGE),
    "broken XMP": (0xE1, b"http://ns.adobe.com/xap/1.0/\0" + GARBAGE),
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_metadata_never_cost_the_pixels_of_a_jpeg(name: str) -> None:
    plain = encoded(NOISE, "JPEG")
    marker, body = SEGMENTS[name]
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body
    assert np.array_equal(Decoder().convert(plain[:2] + segment + plain[2:]), Decoder().convert(plain))


@pytest.mark.parametrize(
    "kind", [b"iCCP", b"zTXt", b"iTXt", b"tEXt", b"pHYs", b"gAMA", b"cHRM", b"sRGB", b"eXIf", b"acTL"]
)
def test_metadata_never_cost_the_pixels_of_a_png(kind: bytes) -> None:
    plain = encoded(NOISE, "PNG")
    bomb = b"a\0\0" + zlib.compress(b"0" * 3_000_000)
    for body in (b"", b"a", GARBAGE, b"a\0\0" + GARBAGE, bomb, *EXIF.values()):
        for crc in (None, 1):
            chunk = png_chunk(kind, body, crc)
            for content in (plain[:33] + chunk + plain[33:], plain[:-12] + chunk + plain[-12:]):
                assert np.array_equal(Decoder().convert(content), np.asarray(NOISE)), (kind, body[:9], crc)


@pytest.mark.parametrize("name", EXIF)
def test_exif_that_can_not_be_read_counts_as_absent(name: str) -> None:
    profile = b"Raw profile type exif\0\0" + zlib.compress(
        b"\nexif\n%8d\n" % len(EXIF[name]) + EXIF[name].hex().encode()
    )
    png = encoded(NOISE, "PNG")
    contents = [encoded(NOISE, "WEBP", lossless=True, exif=b"Exif\0\0" + EXIF[name])]
    contents += [png[:33] + png_chunk(b"zTXt", profile) + png[33:]]
    for content in contents:
        assert np.array_equal(Decoder().convert(content), np.asarray(NOISE))
        assert np.array_equal(Decoder().convert(Image.open(io.BytesIO(content))), np.asarray(NOISE))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_in_every_format(kind: str, orientation: int) -> None:
    image = Image.new("L", (16, 8))
    image.paste(255, (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(image.convert("RGB"), kind, exif=exif)
    upright = Decoder().convert(content)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(content)))
    assert np.array_equal(upright, expected)
    assert np.array_equal(Decoder().convert(upright), expected)  # and it is not turned again


def test_a_color_profile_is_converted_and_a_broken_one_ignored() -> None:
    """The profile swaps red and blue, which no rounding can hide."""
    from PIL import ImageCms

    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = bytearray(srgb)
    tags = {bytes(srgb[at : at + 4]): at for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132], "big"), 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    swapped[red : red + 4], swapped[blue : blue + 4] = b"bXYZ", b"rXYZ"
    swapped = bytearray(
        bytes(swapped).replace("sRGB built-in".encode("utf-16-be"), "swapped Names".encode("utf-16-be"))
    )
    color = Image.new("RGB", (4, 4), (250, 10, 10))
    for kind in ("PNG", "TIFF", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        plain = np.asarray(Decoder().convert(encoded(color, kind, icc_profile=srgb, **options)))
        assert np.array_equal(plain, np.asarray(color))
        found = np.asarray(Decoder().convert(encoded(color, kind, icc_profile=bytes(swapped), **options)))[0, 0]
        assert found[2] > 240
        assert found[0] < 20
        for broken in (GARBAGE, bytes(swapped[:140]), b""):
            assert np.array_equal(Decoder().convert(encoded(color, kind, icc_profile=broken, **options)), plain)
    gray = Image.new("L", (4, 4), 77)  # the profile is one of RGB
    assert np.all(np.asarray(Decoder().convert(encoded(gray, "PNG", icc_profile=bytes(swapped)))) == 77)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_truncated_file_is_refused_or_kept_whatever_the_process_has_set(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = encoded(Image.effect_noise((200, 200), 60), kind)
    half = content[: len(content) // 2]
    for others in (False, True):
        monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", others)
        with pytest.raises(ImageError, match="truncated"):
            Decoder().convert(half)
        kept = Decoder("keep").convert(half)
        assert kept.info["truncated"]
        rows = np.asarray(kept)[:64], np.asarray(Decoder().convert(content))[:64]
        assert np.array_equal(*rows)  # what is there
        assert "truncated" not in Decoder("keep").convert(content).info
        assert bool(ImageFile.LOAD_TRUNCATED_IMAGES) is others  # as others set it
    with pytest.raises(ImageError):
        Decoder("keep").convert(content[:30])


def test_truncated_files_in_many_threads() -> None:
    content = encoded(Image.effect_noise((200, 200), 60), "JPEG")
    half = content[: len(content) // 2]

    def one(number: int) -> bool:
        try:
            return bool(Decoder("keep" if number % 2 else "refuse").convert(half).info.get("truncated"))
        except ImageError:
            return False

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(200))) == [bool(number % 2) for number in range(200)]


def test_more_pixels_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    image = Image.new("RGB", (80, 50), (10, 99, 200))
    large = encoded(image, "JPEG")
    assert Decoder(max_pixels=1000).convert(large).size == (40, 25)  # by libjpeg itself
    for side, expected in ((8, 4), (16, 8)):
        wide = encoded(Image.new("RGB", (side * 20, side * 10), (10, 99, 200)), "JPEG")
        found = Decoder(max_pixels=1000).convert(wide)
        assert found.size == (side * 20 // expected, side * 10 // expected)
        assert found.getpixel((3, 3))[2] > 190
    with pytest.raises(ImageError, match="80 x 50 pixels are more than max_pixels=900"):
        Decoder(max_pixels=900).convert(large)
    for kind, options in (("PNG", {}), ("JPEG", {"progressive": True}), ("WEBP", {}), ("TIFF", {})):
        content = encoded(image, kind, **options)
        with pytest.raises(ImageError, match="80 x 50 pixels are more than max_pixels=1000 "):
            Decoder(max_pixels=1000).convert(content)
        assert Decoder(max_pixels=4000).convert(content).size == (40, 25)  # and then made smaller
    with pytest.raises(ImageError, match="80 x 50 pixels are more than max_pixels=1000"):
        Decoder(max_pixels=1000).convert(image)


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"<!DOCTYPE html><p>404", "a web page"),
        (b"\n<html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS"),
        (b"%PDF-1.7", "a PDF"),
        (b"PK\x03\x04", "a damaged zip archive"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0", "a video"),
        (b"<svg xmlns=''>", "a drawing or text in XML"),
        (b"\x1f\x8b\x08", "compressed by gzip"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "can be decoded (EPS)"),
        (b"", "is empty"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(content: bytes, kind: str, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError) as failure:
        Decoder().load(tmp_path / "x.jpg")
    assert kind in str(failure.value)


def test_a_cameras_raw_file_is_no_thumbnail() -> None:
    with pytest.raises(ImageError, match="raw file"):
        Decoder().convert(encoded(NOISE, "TIFF", tiffinfo={254: 1}))
    with pytest.raises(ImageError, match="a URL is not fetched"):
        Decoder().load("https://example.org/x.jpg")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="has no fork")
def test_a_process_that_is_forked_while_threads_decode() -> None:
    content, half = encoded(NOISE, "PNG"), encoded(NOISE, "PNG")[:900]
    stop = threading.Event()

    def decode_on() -> None:
        while not stop.is_set():
            with suppress(ImageError):
                Decoder("keep").convert(content)
                Decoder("keep").convert(half)

    threads = [threading.Thread(target=decode_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            child = os.fork()
            if not child:
                os._exit(Decoder().convert(content).size != NOISE.size or bool(ImageFile.LOAD_TRUNCATED_IMAGES))
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert ImageFile.LOAD_TRUNCATED_IMAGES is False
