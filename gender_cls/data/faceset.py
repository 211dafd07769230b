"""Checked faces by split, and their counts."""

from dataclasses import dataclass

import numpy as np

from gender_cls.data.sources import Splits
from gender_cls.features.landmarks import Landmarks
from gender_cls.features.store import DIGEST
from gender_cls.labels import CLASSES
from gender_cls.transforms.views import CLEAN


@dataclass(frozen=True)
class FaceSet:
    """Checked faces.

    Attributes:
        splits: Faces by split: train, dev (if identities were held out) and val.
        skipped: Path and reason of each image that was left out.
        notes: Warnings about the data that affect the metrics.
        fingerprint: Hash of the splits, labels and image contents as given; it does not depend on the place.
    """

    splits: Splits
    skipped: list[tuple[str, str]]
    notes: list[str]
    fingerprint: str

    def by_digest(self) -> dict[bytes, str]:
        """Return the path of each image by the digest of its content."""
        return {face.digest.encode(): face.path for faces in self.splits.values() for face in faces}

    def counts(self, landmarks: Landmarks | None = None) -> list[dict[str, str | int]]:
        """Count images and identities by split and class and, with landmarks, images of several faces and of none."""
        rows: list[dict[str, str | int]] = []
        for split, faces in self.splits.items():
            for label, name in enumerate(CLASSES):
                some = [face for face in faces if face.label == label]
                who = {face.identity for face in some}
                rows.append({"split": split, "class": name, "images": len(some), "identities": len(who)})
                if landmarks:
                    found = landmarks.counts(np.array([face.digest for face in some], dtype=DIGEST), CLEAN)
                    rows[-1] |= {"several faces": int((found > 1).sum()), "no face": int((found == 0).sum())}
        return rows
