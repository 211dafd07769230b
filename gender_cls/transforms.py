"""From a decoded picture to the network's input; the only place that resizes to the network and normalises."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    import torch  # prediction by ONNX does without

MEDIAN_SIDE = 256  # longer side, in pixels, above which a picture is made smaller before the median


@dataclass(frozen=True)
class Preprocessing:
    """What the network expects; it is saved beside the model, and its defaults are the recipe's.

    Attributes:
        size: Side of the square input, in pixels; the aspect ratio is not kept.
        crop: Share of the picture's width and height, in the middle, that is kept before the resize, in (0, 1].
        median: Take the median of 3 x 3 pixels before the resize, which removes grains and thin streaks.
        interpolation: Of the resize, done by Pillow (with its antialiasing) on 8-bit pictures.
        mean: Subtracted from each channel of RGB in 0..1.
        std: Then divided by.
    """

    size: int = 224
    crop: float = 1.0
    median: bool = False
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def pixels(self, picture: Image.Image) -> np.ndarray:
        """The RGB picture as the network's size has it, uint8 (3, size, size)."""
        if self.crop < 1:
            sides = [max(1, round(self.crop * length)) for length in picture.size]
            left, top = (round((length - side) / 2) for length, side in zip(picture.size, sides))
            picture = picture.crop((left, top, left + sides[0], top + sides[1]))
        if self.median:
            if max(picture.size) > MEDIAN_SIDE:  # a grain is a pixel of a small picture
                picture = picture.copy()
                picture.thumbnail((MEDIAN_SIDE, MEDIAN_SIDE), Image.Resampling.BILINEAR)
            picture = Image.fromarray(median_3x3(np.asarray(picture)))
        resized = picture.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()])
        return np.ascontiguousarray(np.asarray(resized).transpose(2, 0, 1))

    def resize(self, picture: Image.Image) -> "torch.Tensor":
        """`pixels` as a tensor."""
        import torch

        return torch.from_numpy(self.pixels(picture))

    def normalize(self, views: "torch.Tensor") -> "torch.Tensor":
        """What the network takes, float32, of uint8 views (..., 3, size, size)."""
        scaled = views.float().mul_(1 / 255)
        mean, std = (scaled.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return scaled.sub_(mean).div_(std)


def median_3x3(image: np.ndarray) -> np.ndarray:
    """The median of each pixel and its eight neighbours, by channel, uint8 (H, W, 3); the edge is repeated outwards.

    Columns of three are sorted first; the median of nine is the median of the largest of the least, the middle of the
    middle and the least of the largest (Paeth, 1990, "Median finding on a 3 x 3 grid"). It takes a twentieth of the
    time of Pillow's filter, which would be most of the time of a view.
    """

    def middle(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
        return np.maximum(np.minimum(a, b), np.minimum(np.maximum(a, b), c))

    height, width = image.shape[:2]
    wide = np.pad(image, ((1, 1), (1, 1), (0, 0)), mode="edge")
    above, here, below = (wide[row : row + height] for row in range(3))
    low, high = np.minimum(above, here), np.maximum(above, here)
    ranked = np.minimum(low, below), middle(above, here, below), np.maximum(high, below)
    least, median, largest = ([column[:, at : at + width] for at in range(3)] for column in ranked)
    return middle(np.maximum.reduce(least), middle(*median), np.minimum.reduce(largest))


def derive_seed(*parts: object) -> int:
    """A seed in 0..2**63 - 1 from anything that prints, the same on every machine."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
