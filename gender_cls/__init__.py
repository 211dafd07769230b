"""Female or male in face pictures: a frozen ResNet-18 and one linear layer on top."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gender_cls.predictor import Predictor as Predictor

CLASSES = ("female", "male")  # the index is the label, as ImageFolder sorts the folders


def cache_folder() -> Path:
    """Where things are kept that can be computed again: `$XDG_CACHE_HOME/gender_cls`, or below `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "gender_cls"


def __getattr__(name: str) -> Any:  # `from gender_cls import Predictor`, and nothing heavy before
    if name == "Predictor":
        from gender_cls.predictor import Predictor

        return Predictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
