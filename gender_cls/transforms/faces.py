"""Faces in an image: what finds them, with five landmarks each, and aligning one to the network's input."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from PIL import Image

# Eyes, nose and corners of the mouth, left to right in the image, of a face in a square of side 1: the template of
# InsightFace (Deng et al., 2019, "ArcFace"), which is given for 112 pixels.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
TEMPLATE /= 112
FRAME = 2.0  # side of FACECOM's images as a multiple of the height of the face's box: the median of its training images


@dataclass(frozen=True, eq=False)
class Face:
    """A face in an image; lengths are pixels of the image, from its upper left corner.

    Attributes:
        box: Left, top, width and height.
        landmarks: Eyes, nose and corners of the mouth, left to right in the image, (5, 2) as x and y.
        score: How sure the detector is, in 0..1.
    """

    box: tuple[float, float, float, float]
    landmarks: np.ndarray
    score: float

    @property
    def side(self) -> float:
        """Longer side of the box, in pixels."""
        return max(self.box[2:])


class Detector(Protocol):
    """Something that finds faces.

    Attributes:
        facts: Everything that decides what it finds, as JSON values; it names stores and is written beside models.
    """

    @property
    def facts(self) -> dict[str, Any]:
        """See above."""

    def find_faces(self, image: Image.Image) -> list[Face]:
        """Return the faces in an RGB image, left to right."""


def main_face(faces: list[Face], size: tuple[int, int]) -> Face | None:
    """Return the face that an image of a width and height is of: large, and near its middle; None if there is none."""

    def weight(face: Face) -> float:
        left, top, width, height = face.box
        off = max(abs(2 * (left + width / 2) / size[0] - 1), abs(2 * (top + height / 2) / size[1] - 1))
        return width * height * max(0.0, 1 - off) ** 2

    return max(faces, key=weight, default=None)


def align(
    image: Image.Image,
    landmarks: np.ndarray,
    size: int,
    zoom: float,
    clean: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Image.Image:
    """Return a face, turned upright and cut out, RGB (size, size); what lies outside the image repeats its edge.

    The similarity transform that takes `TEMPLATE` nearest to the landmarks (least squares; Umeyama, 1991) is applied
    in one interpolation. Where it makes a face smaller, blocks of pixels are averaged first, up to its size in the
    result, and four points are averaged for each pixel.

    Args:
        image: RGB image.
        landmarks: Landmarks of the face (5, 2), in pixels of the image, see `Face`.
        size: Side of the result, in pixels.
        zoom: Share of the side that the template takes, above 0; it lies in the middle.
        clean: Function of pixels, uint8 (H, W, 3), that removes noise; it is given those around the face, after blocks
            are averaged, as a grain is one pixel of a small image, and before anything is interpolated.
    """
    turn, shift = similarity(zoom * (TEMPLATE - 0.5), landmarks)
    reach = np.abs(turn).sum(1) / 2 + 1
    shift = shift.clip(-reach, np.array(image.size) + reach)  # farther away it is the same edge
    block = max(1, int(np.hypot(*turn[0]) / size))
    low, high = np.floor(shift - reach).astype(int) - 2 * block, np.ceil(shift + reach).astype(int) + 2 * block
    start = low.clip(0, np.array(image.size) - 1)
    patch = image.crop((*start.tolist(), *high.clip(start + 1, image.size).tolist()))
    pixels = np.asarray(patch.reduce(block) if block > 1 else patch)
    pixels = clean(pixels) if clean else pixels
    first, last = np.floor((low - start) / block).astype(int), np.ceil((high - start) / block).astype(int)
    columns, rows = (np.arange(*ends).clip(0, side - 1) for *ends, side in zip(first, last, pixels.shape[1::-1]))
    pixels = pixels[rows][:, columns]
    factor = 2 if np.hypot(*turn[0]) > size else 1
    matrix = turn / (block * factor * size)
    origin = (shift - turn.sum(1) / 2 - start) / block - first
    data = (*matrix[0], origin[0], *matrix[1], origin[1])
    side = (factor * size,) * 2
    moved = Image.fromarray(pixels).transform(side, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return moved.reduce(factor) if factor > 1 else moved


def cut_box(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Return the square around a face's box that FACECOM's images show, RGB; beyond the image its edge is repeated."""
    left, top, width, height = box
    half, middle = FRAME * height / 2, np.array([left + width / 2, top + height / 2])
    middle = middle.clip(-half, np.array(image.size) + half)  # farther away it is the same edge
    low, high = np.floor(middle - half).astype(int), np.ceil(middle + half).astype(int)
    columns, rows = (np.arange(*ends).clip(0, side - 1) for *ends, side in zip(low, high, image.size))
    patch = image.crop((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return Image.fromarray(np.asarray(patch)[rows - rows[0]][:, columns - columns[0]])


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix (2, 2) and shift (2) of the similarity that takes source points (N, 2) nearest to target ones."""
    a, b = source - source.mean(0), target - target.mean(0)
    along, across = (a * b).sum(), (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    turn = np.array([[along, -across], [across, along]]) / (a**2).sum()
    return turn, target.mean(0) - turn @ source.mean(0)
