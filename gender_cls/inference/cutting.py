"""Which faces of an image are predicted, and how they are cut out for a model."""

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass

import numpy as np
from PIL import Image

from gender_cls.errors import UserError, check_choice, check_extra, check_integer
from gender_cls.transforms.centerface import NEEDED, CenterFace
from gender_cls.transforms.faces import Face, cut_box, main_face
from gender_cls.transforms.preprocessing import Preprocessing

MIN_FACE = 24  # pixels
NO_FACE, TOO_SMALL = "no face", "too small"  # what is given in the place of a label


@dataclass(frozen=True)
class Cut:
    """One input of the network, or the reason why there is none.

    Attributes:
        number: Number of the face in its image, from 1, left to right; 0 if the image is one face, or has none.
        count: Number of faces in the image.
        face: The face; None if none was looked for or found.
        pixels: Input of the network, uint8 (3, size, size); None if `instead` says why.
        instead: `NO_FACE` or `TOO_SMALL`; empty if there are pixels.
    """

    number: int
    count: int
    face: Face | None
    pixels: np.ndarray | None
    instead: str = ""


class Cutter:
    """Cuts images for a model, by one detector that threads may share.

    Args:
        preprocessing: Preprocessing of the model.
        faces: all, largest (the face that training takes of an image: large and near its middle, see `main_face`), or
            none: the image is one face. None is all for a model that aligns faces and where `cut` is given, else none.
        cut: box, for a model that was trained on whole images: each face is cut as FACECOM's images are cut around
            theirs. It is the only way for such a model, so it may be left out where `faces` is given.
        min_face: Longer side of the smallest face that is predicted, in pixels. Below 24 it is looked for as well.
        min_score: Least score of a face, in (0, 1); None is the model's.
        threads: Threads that look for the faces of one image.

    Attributes:
        faces: As given, or what None stands for.

    Raises:
        UserError: A value is out of its range.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        faces: str | None = None,
        cut: str | None = None,
        min_face: int = MIN_FACE,
        min_score: float | None = None,
        threads: int = 1,
    ) -> None:
        aligned = preprocessing.faces == "align"
        if cut is not None:
            check_choice("cut", cut, ("box",))
            if aligned:
                raise UserError("conflict", f"cut={cut} is for models trained on whole images; this one aligns faces")
        self.faces = ("all" if aligned or cut else "none") if faces is None else faces
        check_choice("faces", self.faces, ("all", "largest", "none"))
        check_integer("min_face", min_face, 1)
        if self.faces == "none" and cut:
            raise UserError("conflict", f"cut={cut} needs faces=all or faces=largest, not faces=none")
        self.preprocessing, self.aligned, self.min_face = preprocessing, aligned, min_face
        score = preprocessing.min_score if min_score is None else min_score
        self.detector = CenterFace(score, min(min_face, MIN_FACE), threads)

    def with_threads(self, threads: int) -> "Cutter":
        """Return a copy whose detector computes one image by some threads."""
        other = copy(self)
        other.detector = CenterFace(self.detector.min_score, self.detector.min_face, threads)
        return other

    def facts(self) -> tuple[object, ...]:
        """Return what decides the cuts, besides the model."""
        return (self.faces, self.aligned, self.min_face, self.detector.facts if self.faces != "none" else None)

    def check(self) -> None:
        """Raise a `UserError` if faces are to be found and the extra is not installed."""
        if self.faces != "none":
            why = "a model that aligns faces" if self.aligned else f"faces={self.faces}"
            check_extra(why, "faces", *NEEDED, way_out=", or give faces=none for images of one face each")

    def cut(self, image: Image.Image) -> Iterator[Cut]:
        """Yield the cuts of an RGB image, left to right, at least one."""
        if self.faces == "none":
            yield Cut(0, 0, None, self.preprocessing.pixels(image))
            return
        found = self.detector.find_faces(image)
        if not found:
            yield Cut(0, 0, None, None, NO_FACE)
        elif self.faces == "largest":
            found = [face for face in (main_face(found, image.size),) if face]
        for number, face in enumerate(found, 1):
            small = face.side < self.min_face
            yield Cut(number, len(found), face, None if small else self._pixels(image, face), TOO_SMALL * small)

    def _pixels(self, image: Image.Image, face: Face) -> np.ndarray:
        if self.aligned:
            return self.preprocessing.pixels(image, face.landmarks)
        return self.preprocessing.pixels(cut_box(image, face.box))
