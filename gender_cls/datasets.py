"""Batches of views, computed as they are asked for, or of stored features."""

import logging
import os
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset, default_collate

from gender_cls.images import PictureError, load_rgb
from gender_cls.sources import Face
from gender_cls.store import Store
from gender_cls.views import CLEAN, Views

log = logging.getLogger(__name__)

Key = int | tuple[int, int]  # index in the split and, of a training view, the number of the draw
Item = tuple[torch.Tensor, float, int]  # view (3, size, size), label 0.0 or 1.0, index in the split
Batch = list[torch.Tensor]  # views (N, 3, size, size) or features (N, F), labels (N), indices (N); N may be 0


class FaceDataset(Dataset[Item | None]):
    """Views of the faces of one split.

    Paths and labels are arrays, not a million Python objects that each worker would copy on reading.

    Args:
        faces: Of the split.
        views: Of each.
    """

    def __init__(self, faces: Sequence[Face], views: Views) -> None:
        self.paths = np.array([os.fsencode(face.path) for face in faces])
        self.digests = np.array([face.digest.encode() for face in faces])
        self.labels = np.array([face.label for face in faces], dtype=np.int8)
        self.views = views

    def __len__(self) -> int:
        return len(self.paths)

    def by_digest(self) -> dict[bytes, str]:
        """The path of each picture, by the digest of its content."""
        return dict(zip(self.digests.tolist(), map(os.fsdecode, self.paths.tolist())))

    def __getitem__(self, key: Key) -> Item | None:
        """The view of that number, or for an index alone the clean one; None if the file has become unreadable."""
        index, number = key if isinstance(key, tuple) else (key, CLEAN)
        path = os.fsdecode(self.paths[index])
        try:
            picture = load_rgb(path)
        except PictureError as error:
            log.warning("left out: %s: %s", path, error)
            return None
        view = self.views(picture, self.digests[index].decode(), [number])[0]
        return self.views.preprocessing.normalize(view), float(self.labels[index]), index


def collate(items: Sequence[Item | None]) -> Batch:
    """A batch of the items that could be read."""
    read = [item for item in items if item is not None]
    if not read:
        return [torch.empty(0, 3, 1, 1), torch.empty(0), torch.empty(0, dtype=torch.int64)]
    views, labels, indices = default_collate(read)
    return [views, labels.float(), indices]


class FeatureDataset(Dataset[Item]):
    """Stored features in the place of the views of `FaceDataset`; draw d reads training view d mod K.

    Args:
        faces: Whose features these are.
        store: That holds them.
        number: K, of stored training views; 1 where it is the clean evaluation view.
    """

    def __init__(self, faces: FaceDataset, store: Store, number: int) -> None:
        self.labels = torch.from_numpy(faces.labels).float()
        self.store = store
        self.places = np.stack([store.find(faces.digests, column) for column in range(number)], axis=1)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, keys: Sequence[Key]) -> Batch:
        """A whole batch at once, of those that are stored: what could not be read is not."""
        draws = [key if isinstance(key, tuple) else (key, CLEAN) for key in keys]
        indices, columns = np.array(draws).T
        places = self.places[indices, columns % self.places.shape[1]]
        stored = torch.from_numpy(indices[places >= 0])
        features = self.store.read(places[places >= 0]) if len(stored) else torch.empty(0, 0)
        return [features, self.labels[stored], stored]
