"""LightningDataModules of a folder, a table and drawings."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gender_cls.data import drawn, sources
from gender_cls.data.base import FaceDataModule
from gender_cls.errors import check_integer, check_path
from gender_cls.files import user_path


class FolderDataModule(FaceDataModule):
    """Faces in a folder, `ROOT/{train,val}/{female,male}/`, as FACECOM Task A and torchvision's ImageFolder have them.

    `ROOT/{female,male}/` is split by identity.

    Args:
        root: The folder.
        **options: Further arguments, see `FaceDataModule`.
    """

    def __init__(self, root: str | os.PathLike[str] = "Task_A_Dataset", **options: Any) -> None:
        super().__init__(**options)
        check_path("data.root", root)
        self.source = Path(user_path(root))

    def list_faces(self) -> sources.Listed:
        """Return the faces of train and val."""
        return sources.folder(self.source, classes=self.labels)


class ManifestDataModule(FaceDataModule):
    """Faces in a table with the columns path and label and, where there are any, split, identity and a group.

    Args:
        csv: The CSV or Parquet file.
        group: Column whose values a report compares.
        **options: Further arguments, see `FaceDataModule`.
    """

    def __init__(self, csv: str | os.PathLike[str], group: str = "group", **options: Any) -> None:
        super().__init__(**options)
        check_path("data.csv", csv)
        self.source, self.group = Path(user_path(csv)), group

    def list_faces(self) -> sources.Listed:
        """Return the faces of the rows."""
        return sources.manifest(self.source, self.group, classes=self.labels)


class DemoDataModule(FolderDataModule):
    """Faces that the project draws itself, to learn and test on without any download.

    Args:
        root: Folder to draw to; what is there already is kept.
        train: Numbers of female and male images to train on.
        val: Numbers of female and male images to report on.
        side: Side of the images, in pixels.
        draw_seed: Seed of the drawings.
        **options: Further arguments, see `FaceDataModule`.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "demo_faces",
        *,
        train: Sequence[int] = (240, 960),
        val: Sequence[int] = (60, 240),
        side: int = 128,
        draw_seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(root, **options)
        check_integer("data.side", side, 1)
        check_integer("data.draw_seed", draw_seed, 0)
        self.numbers: dict[str, Sequence[int]] = {"train": list(train), "val": list(val)}
        self.side, self.draw_seed = side, draw_seed

    def list_faces(self) -> sources.Listed:
        """Draw the faces, if they are not there, and return them."""
        drawn.draw(self.source, self.numbers, self.side, self.draw_seed)
        return super().list_faces()
