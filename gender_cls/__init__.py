"""Female or male in face images: a frozen ResNet-18 and one linear layer on top.

Importing this package imports nothing heavy; its public names are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gender_cls.data.datamodule import DemoDataModule, FolderDataModule, ManifestDataModule
    from gender_cls.inference.predictor import Predictor
    from gender_cls.models.network import GenderNet
    from gender_cls.training.module import GenderModule

__all__ = ["DemoDataModule", "FolderDataModule", "GenderModule", "GenderNet", "ManifestDataModule", "Predictor"]

_MODULES = {
    "DemoDataModule": "gender_cls.data.datamodule",
    "FolderDataModule": "gender_cls.data.datamodule",
    "GenderModule": "gender_cls.training.module",
    "GenderNet": "gender_cls.models.network",
    "ManifestDataModule": "gender_cls.data.datamodule",
    "Predictor": "gender_cls.inference.predictor",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
