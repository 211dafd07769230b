"""From an image file, of any mode and format, to an upright 8-bit RGB image."""

import hashlib
import os
from importlib.util import find_spec
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gender_cls.errors import reason

HEIC_SUFFIXES = (".heic", ".heif")
IMAGE_SUFFIXES = (
    ".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", *HEIC_SUFFIXES
)  # fmt: skip
MAX_PIXELS = 100_000_000  # of one image; a small file can hold many more and take all memory


class ImageError(Exception):
    """A file or value that can't be decoded; the message says why and leaves the path to the caller."""


def content_digest(content: bytes) -> str:
    """Return the digest that stands for a file's content, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def as_rgb(image: Any) -> Image.Image:
    """Return an image of mode RGB, or raise an `ImageError`.

    Args:
        image: Path, Pillow image, array (H, W) or (H, W, C), or tensor (C, H, W), of uint8 or of floats in 0..1.
    """
    if isinstance(image, str | os.PathLike):
        return load_rgb(image)
    try:
        if isinstance(image, Image.Image):
            return _decoded(image)
        if hasattr(image, "detach"):  # a tensor, with its channels first
            image = image.detach().cpu()
            image = np.moveaxis((image.float() if image.is_floating_point() else image).numpy(), 0, -1)
        values = np.asarray(image)
        values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
        if values.dtype != np.uint8:
            if values.dtype.kind != "f" or not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
                raise ImageError(f"holds {values.dtype} that is not in 0..1; give uint8, or floats in 0..1")
            values = (255 * values).round().astype(np.uint8)
        return _decoded(Image.fromarray(values))
    except ImageError:
        raise
    except Exception as error:  # of whatever was given
        shape = getattr(image, "shape", "")
        raise ImageError(f"not an image: {type(image).__name__} {tuple(shape) if shape else ''}".rstrip()) from error


def load_rgb(path: str | os.PathLike[str], content: bytes | None = None) -> Image.Image:
    """Decode an image file, or its `content` if that was already read, to mode RGB.

    EXIF orientation is applied, transparency is laid on white, 16-bit gray is scaled to 8 bit (Pillow's own
    `convert` clips it, which turns nearly every pixel white), and float gray is read as 0..1 or, if it goes beyond,
    as 0..255. An animation gives its first frame.

    Raises:
        ImageError: The file is missing, unreadable, truncated, not an image, or has more than `MAX_PIXELS`.
    """
    try:
        if content is None and os.path.exists(path) and not os.path.isfile(path):  # reading a pipe would never end
            raise ImageError("is a directory" if os.path.isdir(path) else "not a regular file")
        if os.fspath(path).lower().endswith(HEIC_SUFFIXES):
            if not find_spec("pillow_heif"):
                raise ImageError('HEIC needs the extra `formats`: pip install -e ".[formats]"')
            from pillow_heif import register_heif_opener

            register_heif_opener()  # also in worker processes
        with Image.open(path if content is None else BytesIO(content)) as image:
            return _decoded(image)
    except ImageError:
        raise
    except MemoryError:
        raise ImageError("too large for this machine's memory") from None
    except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
        if isinstance(error, UnidentifiedImageError):
            raise ImageError("not an image (no format that Pillow knows)") from error
        raise ImageError(reason(error)) from error


def _decoded(image: Image.Image) -> Image.Image:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        raise ImageError(f"{image.width} x {image.height} pixels; give from 1 to {MAX_PIXELS:,} in all")
    image.load()
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # I;16, I;16B, and I as older Pillow reads 16-bit PNG
        values = np.asarray(image).clip(0, 65535)
        eight_bit = image.mode == "I" and values.max() <= 255  # a wide mode that holds 8-bit values
        image = Image.fromarray((values / (1 if eight_bit else 257)).round().astype(np.uint8))
    elif image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all():
            raise ImageError("holds values that are not finite")
        image = Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """Return the files below `folder` that end in one of `IMAGE_SUFFIXES`, sorted, without hidden ones.

    Folders that can't be read are listed too, so that the images in them are reported rather than lost.
    """
    found: list[str] = []
    unread: list[OSError] = []
    for parent, children, names in os.walk(folder, onerror=unread.append):
        children[:] = sorted(name for name in children if not name.startswith("."))
        shown = sorted(name for name in names if not name.startswith("."))
        found += [os.path.join(parent, name) for name in shown if name.lower().endswith(IMAGE_SUFFIXES)]
    return found + [error.filename for error in unread]
