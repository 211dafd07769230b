"""Batches of views, computed as they are drawn, or of stored features."""

import logging
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from gender_cls.data.sources import Face
from gender_cls.errors import ImageError, printable
from gender_cls.features.store import Store
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.views import CLEAN, Views

log = logging.getLogger(__name__)

Key = int | tuple[int, int]  # index in the split and, of a training view, the number of the draw
Item = tuple[torch.Tensor, float, int]  # view (3, size, size), label 0.0 or 1.0, index in the split


class FaceDataset(Dataset[Item | None]):
    """Views of the faces of one split.

    Paths and labels are arrays, not a million Python objects that each worker would copy on reading.

    Args:
        faces: Faces of the split.
        views: Views of each face.
        decoder: How images are decoded.
    """

    def __init__(self, faces: Sequence[Face], views: Views, decoder: Decoder = Decoder()) -> None:
        self.paths = np.array([os.fsencode(face.path) for face in faces])
        self.digests = np.array([face.digest.encode() for face in faces])
        self.labels = np.array([face.label for face in faces], dtype=np.int8)
        self.views, self.decoder = views, decoder

    def __len__(self) -> int:
        return len(self.paths)

    def by_digest(self) -> dict[bytes, str]:
        """Return the path of each image by the digest of its content."""
        return dict(zip(self.digests.tolist(), map(os.fsdecode, self.paths.tolist())))

    def __getitem__(self, key: Key) -> Item | None:
        """Return the view of that number, for an index alone view 0; None if the file has become unreadable."""
        index, number = key if isinstance(key, tuple) else (key, CLEAN)
        path = os.fsdecode(self.paths[index])
        try:
            image = self.decoder.load(path)
        except ImageError as error:
            log.warning("left out: %s: %s", printable(path), error)
            return None
        view = self.views(image, self.digests[index].decode(), [number])[0]
        return self.views.preprocessing.normalize(view), float(self.labels[index]), index


def collate(items: Sequence[Item | None]) -> list[torch.Tensor]:
    """Return a batch of the items that could be read: views (N, 3, size, size), labels (N), indices (N); N may be 0."""
    read = [item for item in items if item is not None]
    if not read:
        return [torch.empty(0, 3, 1, 1), torch.empty(0), torch.empty(0, dtype=torch.int64)]
    views, labels, indices = default_collate(read)
    return [views, labels.float(), indices]


class FeatureDataset(Dataset[Item]):
    """Stored features in the place of the views of a `FaceDataset`; draw d reads training view d mod K.

    Args:
        faces: Faces whose features these are.
        store: Store that holds them.
        number: K, the number of stored training views; 1 for the clean evaluation view.
    """

    def __init__(self, faces: FaceDataset, store: Store, number: int) -> None:
        self.labels = torch.from_numpy(faces.labels).float()
        self.store = store
        self.places = np.stack([store.find(faces.digests, column) for column in range(number)], axis=1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key]) -> list[torch.Tensor]:
        """Return a batch as `collate` does, with features (N, F); images that could not be read have none."""
        draws = [key if isinstance(key, tuple) else (key, CLEAN) for key in keys]
        indices, columns = np.array(draws).T
        places = self.places[indices, columns % self.places.shape[1]]
        stored = torch.from_numpy(indices[places >= 0])
        features = self.store.read(places[places >= 0]) if len(stored) else torch.empty(0, 0)
        return [features, self.labels[stored], stored]
