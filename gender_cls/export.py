"""The artifact: a plain torchvision resnet18 state dict, and a JSON beside it that says what it is."""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from gender_cls import CLASSES
from gender_cls.network import GenderNet
from gender_cls.transforms import Preprocessing

MODEL_NAME = "Binary_Classification_model.pth"
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "pillow")


def save_model(folder: Path, network: GenderNet, preprocessing: Preprocessing, about: Mapping[str, Any]) -> Path:
    """Write the state dict and its JSON, each whole or not at all.

    Args:
        folder: Where to.
        network: Its `resnet18_state` is saved.
        preprocessing: What the network was trained with.
        about: Further facts for the JSON.

    Returns:
        The path of the `.pth`.
    """
    path = folder / MODEL_NAME
    unfinished = path.with_suffix(".part")
    torch.save(network.resnet18_state(), unfinished)
    facts = {
        "backbone": "resnet18",
        "classes": CLASSES,
        "answer": "male where sigmoid(logit) > 0.5, else female",
        "preprocessing": asdict(preprocessing),
        **about,
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }
    write_json(path.with_suffix(".json"), facts)
    os.replace(unfinished, path)
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside, then rename."""
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")  # ASCII in fact: others are escaped
    os.replace(unfinished, path)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_commit() -> str | None:
    """Commit of this project's checkout, with a + if files were changed since; None outside of one."""
    here = Path(__file__).parent

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", here, *words], capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != here.parent.resolve():
            return None  # installed below somebody else's repository
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
