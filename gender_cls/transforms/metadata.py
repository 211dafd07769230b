"""What is read of an image's metadata: its orientation and its color profile. Nothing else can cost the pixels."""

from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from typing import IO, Any

from PIL import Image

from gender_cls.transforms.content import MAX_BYTES

ORIENTATION = 0x0112  # tag of EXIF
ZEROS = 64  # bytes at the end of a file
TURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PROFILED = {"L": "GRAY", "RGB": "RGB ", "CMYK": "CMYK"}  # modes that are converted, with the color space of the profile


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its orientation says; one that can't be read counts as absent."""
    try:
        turn = TURNED.get(image.getexif().get(ORIENTATION, 1))
    except Exception:  # of whatever a camera or an editor wrote
        return image
    return image if turn is None else image.transpose(turn)


def in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Return an L, RGB or CMYK image as sRGB in mode RGB if its color profile is another one and can be used."""
    if profile and image.mode in PROFILED:
        with suppress(Exception):  # a broken profile counts as absent
            if transform := _to_srgb(profile, image.mode):
                return transform.apply(image)
    return image


@lru_cache(maxsize=16)
def _to_srgb(profile: bytes, mode: str) -> Any:
    """Return the transform from a profile to sRGB, or None where there is nothing to convert."""
    from PIL import ImageCms  # few images need it

    source = ImageCms.ImageCmsProfile(BytesIO(profile))
    if source.profile.xcolor_space != PROFILED[mode] or "sRGB" in ImageCms.getProfileDescription(source):
        return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")


def has_metadata(start: bytes) -> bool:
    """Return whether `without_metadata` can make something of a file that starts so."""
    return start.startswith((b"\xff\xd8", b"\x89PNG"))


def ends_in_zeros(stream: IO[bytes]) -> bool:
    """Return whether a JPEG has no end and zeros in its place, as a copy that crashed leaves it; libjpeg takes them."""
    size = stream.seek(0, 2)
    stream.seek(max(0, size - ZEROS))
    zeros = stream.read() == bytes(ZEROS)
    stream.seek(0)
    if not zeros or size > MAX_BYTES:
        return False
    content = stream.read()
    stream.seek(0)
    return b"\xff\xd9" not in content[_first_scan(content) :]


def without_metadata(content: bytes) -> list[bytes]:
    """Return a JPEG or PNG without what only describes it, in copies with ever less of it; [] for other formats."""
    if content.startswith(b"\xff\xd8"):
        return [_bare_jpeg(content, keep_exif) for keep_exif in (True, False)]
    if content.startswith(b"\x89PNG"):
        return [_bare_png(content, keep) for keep in ((b"tRNS", b"eXIf"), (b"tRNS",), ())]
    return []


def _bare_jpeg(content: bytes, keep_exif: bool) -> bytes:
    kept, at = [content[:2]], 2
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":  # up to the first scan
        if content[at + 1 : at + 2] == b"\xff":  # fills up
            at += 1
            continue
        marker, end = content[at + 1], at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        adobe = marker == 0xEE and end - at >= 16  # names the color transform
        exif = marker == 0xE1 and keep_exif and content[at + 4 : at + 10] == b"Exif\0\0"
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE) or adobe or exif:  # APP0 to APP15 and comments
            kept.append(content[at:end])
        at = end
    return b"".join([*kept, content[at:]])


def _first_scan(content: bytes) -> int:
    at = 2
    while content[at : at + 1] == b"\xff" and content[at + 1 : at + 2] != b"\xda":
        at += 1 if content[at + 1 : at + 2] == b"\xff" else 2 + int.from_bytes(content[at + 2 : at + 4], "big")
    return at


def _bare_png(content: bytes, keep: tuple[bytes, ...]) -> bytes:
    kept, at = [content[:8]], 8
    while at < len(content):
        kind, end = content[at + 4 : at + 8], at + 12 + int.from_bytes(content[at : at + 4], "big")
        if kind[:1].isupper() or kind in keep:  # upper case: a chunk that the pixels need
            kept.append(content[at:end])
        at = end
    return b"".join(kept)
