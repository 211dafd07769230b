"""From an array or tensor to an image."""

from typing import Any

import numpy as np
from PIL import Image

from gender_cls.errors import ImageError
from gender_cls.transforms.formats import is_encoded

CHANNELS = (1, 3, 4)
TOLERANCE = 1e-4  # beyond 0 and 1, as a resize of floats leaves it


def array_image(given: Any, channels: str = "rgb") -> Image.Image:
    """Return the image of mode L, RGB or RGBA that an array or tensor holds.

    Args:
        given: Array (H, W) or (H, W, C), or tensor (H, W) or (C, H, W), of uint8 or of floats in 0..1, where C is
            1 (gray), 3, or 4 (with transparency).
        channels: Order of three or four channels: rgb or bgr.

    Raises:
        ImageError: It has another shape, type or range, or holds the bytes of a file.
    """
    tensor = hasattr(given, "detach")
    if tensor:
        given = given.detach().cpu()
        given = (given.float() if given.is_floating_point() else given).numpy()
    values = np.asarray(given)
    if values.dtype == object or not (values.ndim or hasattr(given, "ndim")):
        raise ImageError(f"not an image: {type(given).__name__}")
    what = f"{'a tensor' if tensor else 'an array'} of shape {tuple(values.shape)}"
    encoded = f"{what} that holds the bytes of a file; give them as bytes"
    if values.ndim == 1:
        raise ImageError(encoded)
    if values.ndim == 3 and tensor:
        values = np.moveaxis(values, 0, -1)
    if values.ndim not in (2, 3) or (values.ndim == 3 and values.shape[-1] not in CHANNELS) or 0 in values.shape:
        known = "(H, W) or (C, H, W)" if tensor else "(H, W) or (H, W, C)"
        raise ImageError(f"{what}; give {known}, where C is 1, 3 or 4")
    values = _as_bytes(values)
    if is_encoded(values):
        raise ImageError(encoded)
    if values.ndim == 3 and values.shape[-1] == 1:
        values = values[..., 0]
    elif values.ndim == 3 and channels == "bgr":
        values = values[..., [2, 1, 0, *range(3, values.shape[-1])]]
    return Image.fromarray(np.ascontiguousarray(values))


def _as_bytes(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind != "f":
        raise ImageError(f"holds {values.dtype}; give uint8, or floats in 0..1")
    if not np.isfinite(values).all():
        raise ImageError("holds values that are not finite")
    if values.min() < -TOLERANCE or values.max() > 1 + TOLERANCE:
        raise ImageError(f"holds {values.dtype} that is not in 0..1; give uint8, or floats in 0..1")
    return (255 * values.clip(0, 1)).round().astype(np.uint8)
