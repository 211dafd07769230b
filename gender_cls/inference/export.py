"""Saving of a trained model as a plain state dict, and its export for other runtimes.

  python -m gender_cls.inference.export to=model.onnx                    the newest model
  python -m gender_cls.inference.export model=FILE to=model.onnx         for ONNX Runtime, OpenVINO, browsers, phones
  python -m gender_cls.inference.export model=FILE to=model.safetensors  the state dict, in a file that can hold no code

model.onnx takes `image`, float32 (N, 3, size, size), RGB from 0 to 1, and returns `p_male` and `logit`, float32 (N).
The steps before (crop, median and resize, or the places of an aligned face's landmarks) are named in its metadata. It
is compared with torch in ONNX Runtime before it is written. Both formats hold classes, preprocessing, calibration and
data in their metadata under `facts`, and predict.py takes both. ONNX needs the extra: pip install -e ".[onnx]"
"""

import json
import os
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from gender_cls.errors import UserError, check_extra, printable, writing
from gender_cls.files import replacing, user_path, write_text
from gender_cls.inference.arguments import parse_arguments, run_main, shell_line, start_of
from gender_cls.inference.model_card import model_card
from gender_cls.inference.predictor import MODEL_NAME, Predictor, newest_model
from gender_cls.inference.runtimes import OnnxRuntime
from gender_cls.labels import CLASSES
from gender_cls.models.backbones import folded
from gender_cls.models.network import GenderNet
from gender_cls.transforms.centerface import CenterFace
from gender_cls.transforms.faces import TEMPLATE
from gender_cls.transforms.preprocessing import Preprocessing

COMMAND = "python -m gender_cls.inference.export"
TOLERANCE = 1e-4  # of the probability, between torch and ONNX Runtime
OPSET = 20
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "torchmetrics", "pillow")


def save_model(folder: Path, network: GenderNet, preprocessing: Preprocessing, about: Mapping[str, Any]) -> Path:
    """Write the state dict, its JSON and its model card, each whole or not at all, and return the path of the first.

    `about` holds further facts for the JSON and the card: data, weights, metrics and calibration.
    """
    path = folder / MODEL_NAME
    versions: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    facts = {
        "backbone": network.backbone_name,
        "classes": CLASSES,
        "prediction": "male where sigmoid(logit) > 0.5, else female",
        "preprocessing": asdict(preprocessing),
        **({"alignment": alignment(preprocessing)} if preprocessing.faces == "align" else {}),
        **about,
        "versions": versions,
        "git_commit": _git_commit(),
    }
    write_model(path, network, facts, model_card(facts))
    return path


def write_model(path: Path, network: GenderNet, facts: Mapping[str, Any], card: str) -> None:
    """Write a state dict and, beside it, the JSON of its facts and its model card, each whole or not at all."""
    with replacing(path) as unfinished:
        with open(unfinished, "wb") as file:  # given a path, torch would store its name in the file
            torch.save(network.plain_state(), file)
        write_json(path.with_suffix(".json"), facts)
    write_text(path.with_suffix(".md"), card)


def alignment(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what finds a face, and where its landmarks come to lie, in pixels of the network's input."""
    size, zoom = preprocessing.size, preprocessing.zoom
    places = size * (zoom * (TEMPLATE - 0.5) + 0.5)
    return {**CenterFace(preprocessing.min_score).facts, "landmarks": places.round(2).tolist()}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


class _OnnxModule(nn.Module):
    """Normalization, network and sigmoid, as they go into an ONNX file."""

    def __init__(self, predictor: Predictor) -> None:
        super().__init__()
        self.backbone, self.head = folded(predictor.network.backbone), predictor.network.head
        self.mean = nn.Buffer(torch.tensor(predictor.preprocessing.mean).view(3, 1, 1))
        self.std = nn.Buffer(torch.tensor(predictor.preprocessing.std).view(3, 1, 1))

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logit = self.head(self.backbone((image - self.mean) / self.std)).squeeze(1)
        return logit.sigmoid(), logit


def to_onnx(predictor: Predictor, path: Path) -> None:
    """Write an ONNX file whose predictions in ONNX Runtime are those of torch, or raise a `UserError`."""
    check_extra(f"to={path}", "onnx", "onnx", "onnxscript", "onnxruntime")
    size = predictor.preprocessing.size
    program = torch.onnx.export(
        _OnnxModule(predictor).eval(),
        (torch.zeros(2, 3, size, size),),
        dynamo=True,
        opset_version=OPSET,
        input_names=["image"],
        output_names=["p_male", "logit"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        verbose=False,
    )
    assert program
    for node in program.model.graph:
        node.metadata_props.clear()  # where in which file of this machine it comes from
    program.model.metadata_props["facts"] = json.dumps(predictor.facts)
    with replacing(path) as unfinished:
        program.save(unfinished)
        _compare(predictor, OnnxRuntime(unfinished, f"to={path}").session, path)


def _compare(predictor: Predictor, session: Any, path: Path) -> None:
    size, generator = predictor.preprocessing.size, np.random.default_rng(0)
    for batch in (1, 2, 5):
        pixels = generator.integers(0, 256, (batch, 3, size, size)).astype(np.uint8)
        with torch.inference_mode():
            logit = predictor.network(predictor.preprocessing.normalize(torch.from_numpy(pixels)))
        found_p, found_logit = session.run(["p_male", "logit"], {"image": pixels.astype(np.float32) / 255})
        expected = logit.sigmoid().numpy()
        gap = max(float(np.abs(found - expected).max()) for found in (found_p, 1 / (1 + np.exp(-found_logit))))
        if not gap < TOLERANCE:
            raise UserError("bad-model", f"to={path}: ONNX Runtime and torch differ by {gap:.1e} for {batch} images")


def to_safetensors(predictor: Predictor, path: Path) -> None:
    """Write the state dict and the facts as safetensors."""
    check_extra(f"to={path}", "formats", "safetensors")
    from safetensors.torch import save

    with replacing(path) as unfinished:
        unfinished.write_bytes(save(predictor.network.plain_state(), {"facts": json.dumps(predictor.facts)}))


def main(arguments: list[str]) -> int:
    """Export as the arguments ask for it and return the exit code."""
    if not arguments or "-h" in arguments or "--help" in arguments:
        print(__doc__)
        return 0
    given = parse_arguments(arguments, ("model", "to"), (), COMMAND)
    path = Path(*map(user_path, given["to"]))
    if path.suffix not in (".onnx", ".safetensors"):
        raise UserError("bad-value", f"give to=FILE that ends in .onnx or .safetensors; see {COMMAND} --help")
    model = given["model"][0] if given["model"] else newest_model()
    predictor = Predictor(model)
    if predictor.assumed_preprocessing:
        raise UserError("bad-model", f"model={model} has no JSON with its preprocessing; put it beside the model")
    print(f"model: {printable(model)}{predictor.note}")
    with writing(f"to={path}"):
        (to_onnx if path.suffix == ".onnx" else to_safetensors)(predictor, path)
    print(shell_line([*start_of("predict"), f"model={path}", "img=photo.jpg"]))
    return 0


def _git_commit() -> str | None:
    """Return the commit of this project's checkout, with a + if files were changed since; None outside of one."""
    project = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(project), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    alone = {**os.environ, "GIT_CEILING_DIRECTORIES": str(project.parent)}  # not one that it is installed below
    try:
        return subprocess.check_output(command, stderr=subprocess.DEVNULL, text=True, env=alone).strip()
    except (OSError, subprocess.CalledProcessError):
        return None


if __name__ == "__main__":
    run_main(main)
