"""The artifact: a plain state dict of the backbone's network, and what it can be made into for other runtimes.

  python -m gender_cls.export to=model.onnx                    the newest model
  python -m gender_cls.export model=FILE to=model.onnx         for ONNX Runtime, OpenVINO, browsers, phones
  python -m gender_cls.export model=FILE to=model.safetensors  the state dict, in a file that can hold no code

model.onnx takes `image`, float32 (N, 3, size, size), RGB in 0..1, and gives `p_male` and `logit`, float32 (N); what
comes before (crop, median, resize) is named in its metadata. It is checked against torch in ONNX Runtime before it is
there. Both files hold classes, preprocessing, calibration and data in their metadata, under `facts`, and predict.py
takes both. ONNX needs the extra: pip install -e ".[onnx]"
"""

import json
import os
import subprocess
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gender_cls import CLASSES
from gender_cls.backbones import folded
from gender_cls.card import model_card
from gender_cls.errors import UserError
from gender_cls.network import GenderNet
from gender_cls.predictor import MODEL_NAME, Predictor, newest_model
from gender_cls.runtimes import OnnxRuntime
from gender_cls.transforms import Preprocessing
from gender_cls.words import printable, read_words, run_command

NEAR = 1e-4  # in probability
OPSET = 20
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "pillow")


def save_model(folder: Path, network: GenderNet, preprocessing: Preprocessing, about: Mapping[str, Any]) -> Path:
    """Write the state dict, its JSON and its model card, each whole or not at all.

    Args:
        folder: Where to.
        network: Its `plain_state` is saved.
        preprocessing: What the network was trained with.
        about: Further facts for the JSON.

    Returns:
        The path of the `.pth`.
    """
    path = folder / MODEL_NAME
    unfinished = path.with_suffix(".part")
    torch.save(network.plain_state(), unfinished)
    facts = {
        "backbone": network.name,
        "classes": CLASSES,
        "answer": "male where sigmoid(logit) > 0.5, else female",
        "preprocessing": asdict(preprocessing),
        **about,
        "versions": {name: _version(name) for name in PACKAGES},
        "git_commit": _git_commit(),
    }
    write_json(path.with_suffix(".json"), facts)
    os.replace(unfinished, path)
    _write_text(path.with_suffix(".md"), model_card(facts))
    return path


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write beside, then rename."""
    _write_text(path, json.dumps(content, indent=2) + "\n")  # ASCII in fact: others are escaped


def _write_text(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".part")
    unfinished.write_text(text, encoding="utf-8", errors="backslashreplace")
    os.replace(unfinished, path)


class _Whole(nn.Module):
    """What goes into an ONNX file: normalisation, network and sigmoid."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.backbone, self.head = folded(predictor.network.backbone), predictor.network.head
        self.mean: torch.Tensor
        self.std: torch.Tensor
        mean, std = (
            torch.tensor(values).view(3, 1, 1) for values in (predictor.preprocessing.mean, predictor.preprocessing.std)
        )
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logit = self.head(self.backbone((image - self.mean) / self.std)).squeeze(1)
        return logit.sigmoid(), logit


def to_onnx(predictor: Predictor, path: Path) -> None:
    """Write an ONNX file that ONNX Runtime answers with as torch does; see the module.

    Raises:
        UserError: the extra is missing, or the answers differ.
    """
    if not all(map(find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        raise UserError(f'to={path} needs the extra `onnx`: pip install -e ".[onnx]"')
    side = predictor.preprocessing.size
    whole = _Whole(predictor).eval()
    example = torch.zeros(2, 3, side, side)
    program = torch.onnx.export(
        whole,
        (example,),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["p_male", "logit"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program
    program.model.metadata_props["facts"] = json.dumps(predictor.facts)
    unfinished = path.with_name(f".{path.stem}.part.onnx")  # whose ending says what it is
    try:
        program.save(unfinished)
        session = OnnxRuntime(unfinished, f"to={path}").session
        generator = np.random.default_rng(0)
        for batch in (1, 2, 5):
            pixels = generator.integers(0, 256, (batch, 3, side, side)).astype(np.uint8)
            with torch.inference_mode():
                logit = predictor.network(predictor.preprocessing.normalize(torch.from_numpy(pixels)))
            image = {"image": pixels.astype(np.float32) / 255}
            p_male, again = session.run(["p_male", "logit"], image)
            wanted = logit.sigmoid().numpy()
            gap = max(float(np.abs(found - wanted).max()) for found in (p_male, 1 / (1 + np.exp(-again))))
            if not gap < NEAR:
                raise UserError(
                    f"to={path}: ONNX Runtime answers otherwise than torch, by {gap:.1e} with {batch} pictures"
                )
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def to_safetensors(predictor: Predictor, path: Path) -> None:
    """Write the state dict with its facts."""
    if not find_spec("safetensors"):
        raise UserError(f'to={path} needs the extra `formats`: pip install -e ".[formats]"')
    from safetensors.torch import save

    unfinished = path.with_name(path.name + ".part")
    try:
        unfinished.write_bytes(save(predictor.network.plain_state(), {"facts": json.dumps(predictor.facts)}))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def main(words: list[str]) -> int:
    """Make what `words` name; returns the exit code."""
    if not words or "-h" in words or "--help" in words:
        print(__doc__)
        return 0
    command = "python -m gender_cls.export"
    given = {key: values[0] for key, values in read_words(words, ("model", "to"), (), command).items() if values}
    if Path(given.get("to", "")).suffix not in (".onnx", ".safetensors"):
        raise UserError(f"give to=FILE that ends in .onnx or .safetensors; see {command} --help")
    model, path = given.get("model") or newest_model(), Path(given["to"])
    predictor = Predictor(model)
    if predictor.assumed_preprocessing:
        raise UserError(
            f"model={model} has no JSON that says its preprocessing, which the file is to hold; put it beside"
        )
    print(f"model: {printable(model)}{predictor.note}")
    try:
        (to_onnx if path.suffix == ".onnx" else to_safetensors)(predictor, path)
    except OSError as error:
        raise UserError(
            f"to={path}: {(error.strerror or str(error)).lower()}; give a file that can be written"
        ) from error
    print(f"python predict.py model={path} img=photo.jpg")
    return 0


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


if __name__ == "__main__":
    run_command(main)
