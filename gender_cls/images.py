"""From a file to an upright 8-bit RGB picture, whatever the file holds."""

import hashlib
import os
import stat
from importlib.util import find_spec
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

HEIC = (".heic", ".heif")
WITHOUT_EXTRA = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif")
PICTURE_ENDINGS = (*WITHOUT_EXTRA, *HEIC)
MOST_PIXELS = 100_000_000  # of a picture; a small file may hold many more, and take all memory

Picture = Any  # str, os.PathLike, Image.Image, np.ndarray or torch.Tensor


class PictureError(Exception):
    """A file that gives no picture; the text says why and leaves the path to the caller."""


def content_digest(content: bytes) -> str:
    """Hash of a file's content, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def as_rgb(picture: Picture) -> Image.Image:
    """A picture of mode RGB of a file, a picture of Pillow, or an array or tensor; see `Predictor.predict`.

    Raises:
        PictureError: it is none.
    """
    if isinstance(picture, str | os.PathLike):
        return load_rgb(picture)
    try:
        if isinstance(picture, Image.Image):
            return _decoded(picture)
        if hasattr(picture, "detach"):  # a tensor, which has its channels first
            picture = picture.detach().cpu()
            picture = np.moveaxis((picture.float() if picture.is_floating_point() else picture).numpy(), 0, -1)
        values = np.asarray(picture)
        values = values[..., 0] if values.ndim == 3 and values.shape[-1] == 1 else values
        if values.dtype != np.uint8:
            if values.dtype.kind != "f" or not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
                raise PictureError(f"holds {values.dtype} that is not in 0..1; give uint8, or floats in 0..1")
            values = (255 * values).round().astype(np.uint8)
        return _decoded(Image.fromarray(values))
    except PictureError:
        raise
    except Exception as error:  # whatever was given
        shape = getattr(picture, "shape", "")
        raise PictureError(f"no picture: {type(picture).__name__} {tuple(shape) if shape else ''}".rstrip()) from error


def load_rgb(path: str | os.PathLike[str] | IO[bytes]) -> Image.Image:
    """Decode a whole picture file.

    EXIF orientation is applied, transparency is laid on white, 16-bit grey is scaled to 8 bit (Pillow's own
    `convert` clips it, which turns nearly every pixel white), float grey is read as 0..1 or, if it goes beyond, as
    0..255. Of an animation the first frame is taken.

    Returns:
        A fully decoded picture of mode RGB.

    Raises:
        PictureError: the file is missing, unreadable, truncated, no picture, or has more than `MOST_PIXELS`.
    """
    try:
        if isinstance(path, str | os.PathLike):
            mode = os.stat(path).st_mode
            if not stat.S_ISREG(mode):  # a pipe would be waited for for ever
                raise PictureError("is a directory" if stat.S_ISDIR(mode) else "no regular file")
            if os.fspath(path).lower().endswith(HEIC):
                _know_heic()
        with Image.open(path) as picture:
            return _decoded(picture)
    except PictureError:
        raise
    except MemoryError:
        raise PictureError("too large for this machine's memory") from None
    except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
        if isinstance(error, OSError) and error.strerror:
            raise PictureError(error.strerror.lower()) from error
        if isinstance(error, UnidentifiedImageError):
            raise PictureError("not a picture (no format that Pillow knows)") from error
        raise PictureError(str(error).splitlines()[0] if str(error) else type(error).__name__) from error


def _decoded(picture: Image.Image) -> Image.Image:
    pixels = picture.width * picture.height
    if not 0 < pixels <= MOST_PIXELS:
        raise PictureError(f"{picture.width} x {picture.height} pixels; give from 1 to {MOST_PIXELS:,} in all")
    picture.load()
    return _to_rgb(ImageOps.exif_transpose(picture))


def _know_heic() -> None:
    if not find_spec("pillow_heif"):
        raise PictureError('HEIC needs the extra `formats`: pip install -e ".[formats]"')
    import pillow_heif

    pillow_heif.register_heif_opener()


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # I;16, I;16B, and I as older Pillow reads 16-bit PNG
        values = np.asarray(picture).clip(0, 65535)
        eight_bit = picture.mode == "I" and values.max() <= 255  # a wide mode that holds 8-bit values
        picture = Image.fromarray((values / (1 if eight_bit else 257)).round().astype(np.uint8))
    elif picture.mode == "F":
        values = np.asarray(picture)
        if not np.isfinite(values).all():
            raise PictureError("holds values that are not finite")
        picture = Image.fromarray((values * (255 if values.max() <= 1 else 1)).clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def list_pictures(directory: str | os.PathLike[str]) -> list[str]:
    """All files below `directory` whose name ends like a picture's, sorted; hidden ones are left out.

    Among them are folders that can't be read, so that their pictures are not lost without a word.
    """
    found: list[str] = []
    unread: list[OSError] = []
    for where, folders, names in os.walk(directory, onerror=unread.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [
            os.path.join(where, name)
            for name in sorted(names)
            if name.lower().endswith(PICTURE_ENDINGS) and not name.startswith(".")
        ]
    return found + [error.filename for error in unread]
