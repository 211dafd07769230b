"""From a decoded image to the network's input: the only place that resizes to the network's size and normalizes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from gender_cls.errors import UserError, check_boolean, check_choice, check_integer, check_number, check_share
from gender_cls.transforms.faces import align

if TYPE_CHECKING:
    import torch  # prediction by ONNX does without

MEDIAN_SIDE = 256  # longer side, in pixels, above which an image is made smaller before the median


@dataclass(frozen=True)
class Preprocessing:
    """The steps between an RGB image and the network's input, saved beside the model; bad values raise a `UserError`.

    Attributes:
        size: Side of the square input, in pixels; the aspect ratio is not kept.
        crop: Share of the image's width and height, around the center, that is kept before the resize, in (0, 1]; of
            an image in which a face is looked for, only where there is none.
        median: Whether to take the median of 3 x 3 pixels before the resize, which removes grains and thin streaks.
        interpolation: Pillow's filter for the resize, which runs on 8-bit images with antialiasing. An aligned face is
            interpolated linearly.
        mean: Mean that is subtracted from each channel of RGB in 0..1.
        std: Standard deviation that each channel is then divided by.
        faces: How a face is cut: align, by its landmarks, see `align`; or none, as the image was.
        zoom: Share of the side that an aligned face takes, from forehead to chin, above 0; see `align`.
        min_score: Least score of a face, see `CenterFace`.
    """

    size: int = 224
    crop: float = 1.0
    median: bool = False
    interpolation: str = "bilinear"
    mean: Sequence[float] = (0.485, 0.456, 0.406)
    std: Sequence[float] = (0.229, 0.224, 0.225)
    faces: str = "none"
    zoom: float = 0.62
    min_score: float = 0.55

    def __post_init__(self) -> None:
        check_integer("data.size", self.size, 1)
        check_share("data.crop", self.crop, one=True)
        check_boolean("data.median", self.median)
        check_choice("data.interpolation", self.interpolation, [member.name.lower() for member in Image.Resampling])
        check_choice("data.faces", self.faces, ("align", "none"))
        check_number("data.zoom", self.zoom)
        check_share("data.min_score", self.min_score)
        for key in ("crop", "zoom"):
            object.__setattr__(self, key, float(getattr(self, key)))  # 1 and 1.0 name the same feature store
        for key in ("mean", "std"):
            value = getattr(self, key)
            try:
                channels = tuple(map(float, value))
            except (TypeError, ValueError):
                channels = ()
            if len(channels) != 3 or not np.isfinite(channels).all() or (key == "std" and min(channels) <= 0):
                raise UserError("bad-value", f"data.{key}={value}: give three numbers{', above 0' * (key == 'std')}")
            object.__setattr__(self, key, channels)

    def values(self) -> dict[str, Any]:
        """Return the values by key, without new ones that are not used: the names of older stores lack them."""
        unused = () if self.faces == "align" else ("faces", "zoom", "min_score")
        return {key: value for key, value in asdict(self).items() if key not in unused}

    def pixels(self, image: Image.Image, landmarks: np.ndarray | None = None) -> np.ndarray:
        """Return the RGB image at the network's size, uint8 (3, size, size).

        Args:
            image: The image.
            landmarks: Landmarks of a face (5, 2), which is cut out by them, see `align`; None for the whole image.
        """
        if landmarks is not None:
            aligned = align(image, landmarks, self.size, self.zoom, median_3x3 if self.median else None)
            return np.ascontiguousarray(np.asarray(aligned).transpose(2, 0, 1))
        if self.crop < 1:
            sides = [max(1, round(self.crop * length)) for length in image.size]
            left, top = (round((length - side) / 2) for length, side in zip(image.size, sides))
            image = image.crop((left, top, left + sides[0], top + sides[1]))
        if self.median:
            image = image.copy()  # a grain is one pixel of a small image
            image.thumbnail((MEDIAN_SIDE, MEDIAN_SIDE), Image.Resampling.BILINEAR)  # never makes it larger
            image = Image.fromarray(median_3x3(np.asarray(image)))
        resized = image.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()])
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    def normalize(self, views: "torch.Tensor") -> "torch.Tensor":
        """Return uint8 views (..., 3, size, size) as the network takes them, float32."""
        scaled = views.float().mul_(1 / 255)
        mean, std = (scaled.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return scaled.sub_(mean).div_(std)


def median_3x3(image: np.ndarray) -> np.ndarray:
    """Return the median of each pixel and its eight neighbors by channel, uint8 (H, W, 3); edges are replicated.

    Each column of three is sorted first. The median of the nine is then the median of three values: the largest of
    the minima, the median of the medians and the smallest of the maxima (Paeth, 1990, "Median finding on a 3 x 3
    grid"). It takes a twentieth of the time of Pillow's filter, which would be most of the time of a view.
    """

    def middle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))

    height, width = image.shape[:2]
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    above, here, below = (wide[row : row + height] for row in range(3))
    low, high = np.minimum(above, here), np.maximum(above, here)
    ranked = np.minimum(low, below), middle(above, here, below), np.maximum(high, below)
    minima, medians, maxima = ([column[:, at : at + width] for at in range(3)] for column in ranked)
    return middle(np.maximum.reduce(minima), middle(*medians), np.minimum.reduce(maxima))
