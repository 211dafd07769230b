"""What `Predictor.predict` is given: one image or many, each as it is when it is read."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

from PIL import Image

from gender_cls.errors import ImageError, reason
from gender_cls.transforms.content import is_content, read_content


def is_one_image(given: Any) -> bool:
    """Return whether something is one image, good or bad, and not an iterable of images."""
    if isinstance(given, str | os.PathLike | Image.Image | Mapping) or is_content(given):
        return True
    dimensions, kind = getattr(given, "ndim", None), getattr(getattr(given, "dtype", None), "kind", "")
    if dimensions is None:
        return not hasattr(given, "__iter__") or hasattr(given, "__array__") or hasattr(given, "__array_interface__")
    names = kind in ("O", "U", "S", "T") or (dimensions == 1 and not len(given))  # paths in an array or a Series
    return dimensions in (0, 2, 3) or (dimensions == 1 and not names)


def as_read(images: Iterable[Any], failures: list[Exception]) -> Iterator[Any]:
    """Yield images as they are when they are read, since an iterator may change or close one before the next.

    An exception of the iterable ends it and is added to `failures`. Of a file object its bytes are yielded, or the
    `ImageError` that says why there are none.
    """
    try:
        for image in images:
            if hasattr(image, "read") and not isinstance(image, os.PathLike):
                yield _read(image)
            elif isinstance(images, Sequence) or isinstance(image, str | os.PathLike | bytes):
                yield image
            else:
                yield _copied(image)
    except Exception as error:
        failures.append(error)


def _read(file: Any) -> Any:
    try:
        return read_content(file)
    except ImageError as error:
        return error
    except Exception as error:  # of whatever object
        return ImageError(f"not an image: {type(file).__name__} ({reason(error)})")


def _copied(image: Any) -> Any:
    with suppress(Exception):  # which decoding will say
        if isinstance(image, bytearray | memoryview):
            return bytes(image)
        if isinstance(image, Image.Image) or hasattr(image, "ndim"):
            return image.clone() if hasattr(image, "clone") else image.copy()
    return image
