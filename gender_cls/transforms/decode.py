"""From an image of any format and mode to an upright 8-bit image in sRGB."""

import hashlib
import math
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import IO, Any

import numpy as np
from PIL import Image, JpegImagePlugin, UnidentifiedImageError

from gender_cls.errors import ImageError, check_choice, check_integer, reason
from gender_cls.files import stream_kind, user_path
from gender_cls.transforms.arrays import array_image
from gender_cls.transforms.content import MAX_BYTES, is_content, read_content
from gender_cls.transforms.formats import REFUSED, SIGNATURE, is_heic, open_any, tiff_trouble
from gender_cls.transforms.metadata import PROFILED, ends_in_zeros, has_metadata, in_srgb, upright, without_metadata
from gender_cls.transforms.truncated import TRUNCATED

FILLED = 0.95  # share of rows that are like the last one, above which hardly anything was decoded
MAX_PIXELS = 100_000_000  # of one image; a small file can hold many more and take all memory


def content_digest(content: bytes) -> str:
    """Return the digest that stands for a file's content, 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class Decoder:
    """How images are decoded: by their content, whatever they are named and whatever else the process did.

    The orientation is applied, a color profile other than sRGB is converted, transparency is laid on white, 16-bit gray
    is scaled to 8 bit (Pillow's own `convert` clips it, which turns nearly every pixel white), and float gray is read
    as 0..1 or, if it goes beyond, as 0..255. An animation gives its first frame. What has more than `MAX_PIXELS` is
    made smaller. Equal content gives equal pixels; the options only decide what is refused.

    Attributes:
        truncated: refuse or keep: what becomes of a file that ends too early. What is there of one that is kept is
            decoded, and `info["truncated"]` of the image is true.
        max_pixels: Number of pixels above which an image is refused. A JPEG of more than `MAX_PIXELS`, unless it is
            progressive, is first decoded at a smaller scale, which takes no more memory.

    Raises:
        UserError: A value is out of its range.
    """

    truncated: str = "refuse"
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        check_choice("truncated", self.truncated, ("refuse", "keep"))
        check_integer("max_pixels", self.max_pixels, 1)

    def load(self, path: str | os.PathLike[str]) -> Image.Image:
        """Decode an image file to mode RGB.

        Raises:
            ImageError: The file is missing, unreadable, truncated, not an image, or has more than `max_pixels`.
        """
        given = user_path(path)
        try:
            if os.path.exists(given) and not os.path.isfile(given):  # reading a pipe would never end
                raise ImageError("is a directory" if os.path.isdir(given) else "not a regular file")
            with open(given, "rb") as stream:
                return self._read(stream)
        except (OSError, ValueError) as error:  # the latter of a NUL in the path
            url = re.match(r"(https?|file)://|data:", os.fsdecode(path))
            raise ImageError("a URL is not fetched; give the file or its bytes" if url else reason(error)) from error

    def convert(self, image: Any, channels: str = "rgb") -> Image.Image:
        """Return an image of mode RGB, or raise an `ImageError`.

        Args:
            image: Path; content of an image file, as bytes, another buffer of one dimension, or a file object that is
                open for reading bytes; Pillow image; or array or tensor as `array_image` takes it.
            channels: Order of the channels of arrays and tensors: rgb or bgr.
        """
        try:
            if isinstance(image, str | os.PathLike):
                return self.load(image)
            if isinstance(image, Image.Image):
                return self._lazy(image)
            if isinstance(image, ImageError):  # of what could not be read
                raise image
            if image is None:
                raise ImageError("None: readers such as cv2.imread return it for a file that they can't find or read")
            if is_content(image):
                return self._read(BytesIO(read_content(image)))
            return self._decoded(array_image(image, channels))
        except ImageError:
            raise
        except MemoryError:
            raise ImageError("too large for this machine's memory") from None
        except Exception as error:  # of whatever was given
            raise ImageError(f"not an image: {type(image).__name__} ({reason(error)})") from error

    def _lazy(self, image: Image.Image) -> Image.Image:
        keep = bool(image.info.get("truncated"))  # it was given before, and kept
        try:
            if keep and self.truncated == "refuse":
                raise OSError("image file is truncated")
            return self._decoded(image, keep)
        except OSError as error:  # of one that Pillow has not read to its end yet
            if self.truncated == "refuse":
                raise ImageError(_way_out(reason(error))) from error
            image.info["truncated"] = True
            return self._decoded(image, keep=True)

    def _read(self, stream: IO[bytes]) -> Image.Image:
        try:
            return self._decoded(self._open(stream))
        except ImageError:
            raise
        except MemoryError:
            raise ImageError("too large for this machine's memory") from None
        except Exception as error:  # Pillow's plugins raise nearly everything on damaged files
            stream.seek(0)
            content = stream.read(SIGNATURE)
            if has_metadata(content) or self.truncated == "keep":
                content += stream.read(MAX_BYTES)
            bare = without_metadata(content)
            keep = [content, *bare] if self.truncated == "keep" else []
            for some, kept in [*((each, False) for each in bare), *((each, True) for each in keep)]:
                with suppress(Exception):
                    return self._decoded(self._open(BytesIO(some), kept), kept)
            raise ImageError(_reason(error, content)) from error

    def _open(self, stream: IO[bytes], keep: bool = False) -> Image.Image:
        start = stream.read(SIGNATURE)
        stream.seek(0)
        if not start:
            raise ImageError("is empty")
        if is_heic(start):
            return self._open_heic(stream)
        if start.startswith(b"\xff\xd8\xff"):
            if not keep and ends_in_zeros(stream):
                raise OSError("image file is truncated: it ends in zeros")
            return self._open_jpeg(stream)
        image = open_any(stream)
        if image.format in REFUSED:
            raise ImageError(f"not an image that can be decoded ({image.format})")
        if not isinstance(image.info.get("xmp"), bytes):
            image.info.pop("xmp", None)  # of a TIFF, on which Pillow would fail
        if trouble := tiff_trouble(image, start):
            raise ImageError(trouble)
        return image

    def _open_jpeg(self, stream: IO[bytes]) -> Image.Image:
        image = JpegImagePlugin.JpegImageFile(stream)  # Image.open has a limit for the whole process
        (width, height), scale = image.size, 1
        while image.width * image.height > MAX_PIXELS and scale < 8 and "progressive" not in image.info:
            scale *= 2
            stream.seek(0)
            image = JpegImagePlugin.JpegImageFile(stream)
            image.draft(None, (width // scale, height // scale))
        if image.width * image.height > self.max_pixels:
            raise self._too_large(f"{width} x {height}")
        return image

    def _open_heic(self, stream: IO[bytes]) -> Image.Image:
        if not find_spec("pillow_heif"):
            raise ImageError('HEIC needs the extra `formats`: pip install -e ".[formats]"')
        import pillow_heif  # not registered with Pillow, which would hold for the whole process

        heic = pillow_heif.open_heif(stream)
        self._check_size(*heic.size)
        return heic.to_pillow()

    def _decoded(self, image: Image.Image, keep: bool = False) -> Image.Image:
        self._check_size(*image.size)
        with TRUNCATED.only(keep):
            image.load()
        image = _rgb(image)
        if keep:
            values = np.asarray(image)
            if (values == values[-1]).all((1, 2)).mean() > FILLED:
                raise ImageError("hardly anything of it can be decoded")
            image.info["truncated"] = True
        return image

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self.max_pixels:
            raise self._too_large(f"{width} x {height}")
        if not width * height:
            raise ImageError("has no pixels")

    def _too_large(self, size: str) -> ImageError:
        limit = f"max_pixels={self.max_pixels} (in training data.max_pixels)"
        return ImageError(f"{size} pixels are more than {limit}, which may be raised")


def _rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    image = upright(image)
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
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = in_srgb(image if image.mode in PROFILED else image.convert("RGB"), profile).convert("RGB")
    image.info = {}  # what has been applied
    excess = math.ceil(math.sqrt(image.width * image.height / MAX_PIXELS))
    return image.reduce(excess) if excess > 1 else image


def _reason(error: Exception, content: bytes) -> str:
    if isinstance(error, UnidentifiedImageError | SyntaxError):
        kind = stream_kind(BytesIO(content)) or ("" if content.strip(b"\0") else "a file of zeros")
        if not kind and (content[4:8] == b"ftyp" or content.startswith((b"II*\0", b"MM\0*"))):
            return "damaged, cut off, or of a kind that Pillow does not know"
        return f"not an image but {kind}" if kind else "not an image (no format that Pillow knows)"
    return _way_out(reason(error))


def _way_out(said: str) -> str:
    if "image file is truncated" not in said:
        return said
    plain = re.sub(r" \(\d+ bytes not processed\)", "", said)  # of a buffer, not of the file
    return f"{plain}; truncated=keep (in training data.truncated=keep) takes what is there"
