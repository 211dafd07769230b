"""Which files are images, by their first bytes and by their endings."""

import os
import threading
from io import BytesIO
from typing import IO, Any

import numpy as np
from PIL import Image

SIGNATURE = 512  # bytes that tell what a file is
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}  # brands
AVIF = {b"avif", b"avis"}  # which Pillow reads itself; its files may name the last two of HEIC as well
# tags with their usual values: NewSubfileType, BitsPerSample, PhotometricInterpretation, PlanarConfiguration
TIFF_TAGS = ((254, 0), (258, (1,)), (262, 1), (284, 1))
SAMPLE_FORMAT = 339
REFUSED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # that Pillow names without decoding, or by running a program

_opening = threading.Lock()
if hasattr(os, "register_at_fork"):  # else a process that is forked meanwhile would wait for ever
    os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_opening.release)


def is_heic(start: bytes) -> bool:
    """Return whether a file that starts so is an image as phones write them."""
    box = start[: int.from_bytes(start[:4], "big")] if start[4:8] == b"ftyp" else b""
    brands = {box[at : at + 4] for at in range(8, len(box), 4)}
    return bool(brands & HEIC) and not brands & AVIF


def open_any(stream: IO[bytes], formats: list[str] | None = None) -> Image.Image:
    """Open an image as Pillow does, but without Pillow's limit of pixels, which is one for the whole process."""
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(stream, formats=formats)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def tiff_trouble(image: Image.Image, start: bytes) -> str:
    """Return why the pixels that Pillow gives of a TIFF are not those of the photograph; empty if they are."""
    if image.format != "TIFF":
        return ""
    tags: Any = getattr(image, "tag_v2", {})
    small, bits, white_is_zero, planar = (tags.get(tag, usual) for tag, usual in TIFF_TAGS)
    if start[8:10] == b"CR" or small == 1:  # the first image is marked as a small version of another
        return "a camera's raw file, whose first image is a thumbnail; give it as JPEG"
    unsigned = max(tags.get(SAMPLE_FORMAT, (1,))) == 1
    read_well = set(bits) == {16} or (set(bits) == {32} and not unsigned)
    if max(bits) > 8 and (white_is_zero == 0 or planar == 2 or not read_well):
        return f"a TIFF of {max(bits)} bits of a kind that Pillow decodes wrongly; save it with 8 bits"
    return ""


def endings() -> set[str]:
    """Return the endings, such as `.jpg`, of the formats that can be decoded."""
    known = Image.registered_extensions()
    usable = {ending for ending, name in known.items() if name in (*Image.OPEN, "MPO") and name not in REFUSED}
    return usable | {".heic", ".heif", ".hif"}


def is_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as an image does, whatever its ending."""
    try:
        with open(path, "rb") as stream:
            return begins_as_image(stream)
    except OSError:
        return False


def begins_as_image(stream: IO[bytes]) -> bool:
    """Return whether a stream begins as an image does; formats without a signature do not count."""
    Image.init()
    signed = [name for name in Image.ID if Image.OPEN[name][1] and name not in REFUSED]
    start = stream.read(SIGNATURE)
    stream.seek(0)
    try:
        return is_heic(start) or not tiff_trouble(open_any(stream, signed), start)
    except Exception:  # of whatever was not an image
        return False


def is_encoded(values: np.ndarray) -> bool:
    """Return whether an array (H, W) or (H, W, C) of uint8 holds the bytes of an image file instead of pixels."""
    start = values.ravel()[:SIGNATURE].tobytes()
    jpeg = start.startswith(b"\xff\xd8\xff") and start[6:10] in (b"JFIF", b"Exif")
    if jpeg or start.startswith((b"\x89PNG\r\n\x1a\n", b"GIF8")) or (start[:4], start[8:12]) == (b"RIFF", b"WEBP"):
        return True
    thin = 1 in values.shape[:2]  # as OpenCV's imencode returns it
    return thin and begins_as_image(BytesIO(values.tobytes()))
