"""Landmarks of the face of each image, found once for each content and condition, and stored."""

import os
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image

from gender_cls.errors import check_extra
from gender_cls.features.filling import Wanted, Work, complete
from gender_cls.features.store import DIGEST, Store
from gender_cls.files import cache_folder
from gender_cls.models.backbones import Backbone
from gender_cls.transforms.centerface import NEEDED, CenterFace
from gender_cls.transforms.corruptions import CORRUPTIONS_HASH
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.faces import main_face
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import CLEAN, in_condition

COUNT, LANDMARKS = 0, slice(1, 11)  # columns of a row: number of faces, and landmarks as shares of the image's sides


class Landmarks:
    """The face that each image is of, see `main_face`, in conditions by number; a `Find` for views.

    Args:
        folder: Folder of the stores.
        preprocessing: What says how sure the detector must be.
        decoder: How images are decoded.

    Raises:
        UserError: The extra `faces` is not installed, or the store can't be written.
    """

    def __init__(self, folder: str | os.PathLike[str], preprocessing: Preprocessing, decoder: Decoder) -> None:
        check_extra("aligning faces", "faces", *NEEDED)
        self.detector = CenterFace(preprocessing.min_score)
        self.facts = self.detector.facts
        self.store = Store(folder, {"of": "faces", **self.facts, "degradations": CORRUPTIONS_HASH})
        self.decoder = decoder

    def compute(self, images: dict[bytes, str], wanted: Wanted, num_workers: int = 0) -> None:
        """Look for the faces that are wanted and not stored yet; the arguments are those of `Extractor.compute`."""
        cpu, name = torch.device("cpu"), "landmarks of {} views"
        work = Work(self._rows, _as_they_are, self.decoder, cpu, torch.float32, name)
        complete(self.store, work, images, wanted, num_workers)

    def find(self, paths: Mapping[bytes, str], num_workers: int = 0) -> None:
        """Look for the faces of clean images, given as paths by digest."""
        self.compute(dict(paths), dict.fromkeys(paths, (CLEAN,)), num_workers)

    def __call__(self, image: Image.Image, digest: str, number: int) -> np.ndarray | None:
        """Return the landmarks (5, 2) of the face of an image that is in a condition; None if it has none."""
        (place,) = self.store.find(np.array([digest.encode()], dtype=DIGEST), number)
        row = self._row(image) if place < 0 else self.store.read(np.array([place]))[0].double().numpy()
        return row[LANDMARKS].reshape(5, 2) * image.size if row[COUNT] else None

    def counts(self, digests: np.ndarray, number: int) -> np.ndarray:
        """Return how many faces were found in images (N) that are in a condition; -1 of those that were not read."""
        places = self.store.find(digests, number)
        found = np.full(len(digests), -1)
        if (places >= 0).any():
            found[places >= 0] = self.store.read(places[places >= 0])[:, COUNT].int().numpy()
        return found

    def _rows(self, image: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        rows = [self._row(in_condition(image, digest, number)) for number in numbers]
        return torch.from_numpy(np.array(rows, dtype=np.float32))

    def _row(self, image: Image.Image) -> np.ndarray:
        faces = self.detector.find_faces(image)
        face = main_face(faces, image.size)
        points = np.zeros((5, 2)) if face is None else face.landmarks / image.size
        return np.array([len(faces), *points.ravel()])


def landmarks_of(
    preprocessing: Preprocessing, folder: str | os.PathLike[str] | None, decoder: Decoder
) -> Landmarks | None:
    """Return the landmarks that views of a preprocessing are cut by, in a folder or the usual one; None if by none."""
    if preprocessing.faces == "none":
        return None
    return Landmarks(folder or cache_folder(), preprocessing, decoder)


def _as_they_are() -> Backbone:
    return torch.Tensor.float
