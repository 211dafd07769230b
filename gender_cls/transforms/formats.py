"""Which files are images, by their first bytes and by their endings."""

import os

from PIL import Image

SIGNATURE = 512  # bytes that tell what a file is
HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}  # brands
AVIF = {b"avif", b"avis"}  # which Pillow reads itself; its files may name the last two of HEIC as well
REFUSED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # that Pillow names without decoding, or by running a program


def is_heic(start: bytes) -> bool:
    """Return whether a file that starts so is an image as phones write them."""
    box = start[: int.from_bytes(start[:4], "big")] if start[4:8] == b"ftyp" else b""
    brands = {box[at : at + 4] for at in range(8, len(box), 4)}
    return bool(brands & HEIC) and not brands & AVIF


def is_raw(image: Image.Image, start: bytes) -> bool:
    """Return whether it is a camera's raw file: a TIFF whose first image is marked as a small version of another."""
    reduced = 254  # the tag NewSubfileType
    return image.format == "TIFF" and (start[8:10] == b"CR" or getattr(image, "tag_v2", {}).get(reduced) == 1)


def endings() -> set[str]:
    """Return the endings, such as `.jpg`, of the formats that can be decoded."""
    known = Image.registered_extensions()
    usable = {ending for ending, name in known.items() if name in (*Image.OPEN, "MPO") and name not in REFUSED}
    return usable | {".heic", ".heif", ".hif"}


def is_image(path: str | os.PathLike[str]) -> bool:
    """Return whether a file begins as an image does, whatever its ending; formats without a signature do not count."""
    Image.init()
    signed = [name for name in Image.ID if Image.OPEN[name][1] and name not in REFUSED]
    try:
        with open(path, "rb") as stream:
            start = stream.read(SIGNATURE)
            stream.seek(0)
            return is_heic(start) or not is_raw(Image.open(stream, formats=signed), start)
    except Image.DecompressionBombError:
        return True
    except Exception:
        return False
