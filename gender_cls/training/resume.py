"""Checks that a checkpoint fits a `GenderModule`, so that a resumed run ends as if it had never stopped."""

import os
from collections.abc import Mapping
from typing import Any

from gender_cls.errors import UserError
from gender_cls.models.weights import safe_load


def check_resume(ckpt_path: str, module: Any, settings: Mapping[str, Any], max_epochs: int) -> None:
    """Raise a `UserError` unless a run of these settings can go on from the file as if never stopped."""
    source = f"ckpt_path={ckpt_path}"
    if not os.path.isfile(ckpt_path):
        raise UserError("not-found", f"{source}: no such file; a run leaves last.ckpt in its folder after each epoch")
    checkpoint = safe_load(ckpt_path, source, "give the last.ckpt of a run folder")
    if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states", "loops", "epoch"} <= set(checkpoint):
        raise UserError("bad-model", f"{source} is no checkpoint of a run; give the last.ckpt of a run folder")
    check_shapes(checkpoint, module, source)
    check_settings(checkpoint, settings, source)
    done = checkpoint["epoch"] + 1
    if max_epochs < done:  # as many is right: what comes after the last epoch may be missing
        way_out = f"give trainer.max_epochs={done} or more"
        raise UserError("resume-mismatch", f"{source} has {done} epochs already; {way_out}")


def check_settings(checkpoint: Mapping[str, Any], settings: Mapping[str, Any], source: str) -> None:
    """Raise a `UserError` that names `source` unless the checkpoint's run had the same settings."""
    before = checkpoint.get("settings") or {}
    for key, value in settings.items():
        if before.get(key) != value:
            what = f"another {key} ({before.get(key)}, now {value})"
            way_out = "the images are others than then" if key == "data" else "give the overrides of that run"
            raise UserError("resume-mismatch", f"{source} was trained with {what}; {way_out}")


def check_shapes(checkpoint: Mapping[str, Any], module: Any, source: str) -> None:
    """Raise a `UserError` that names `source` unless the tensors of the checkpoint are those that are trained."""
    wanted, found = (
        {name: tuple(getattr(value, "shape", ())) for name, value in module.trained_part(state).items()}
        for state in (module.state_dict(), checkpoint["state_dict"])
    )
    if wanted != found:
        what = f"{_brief(found)}, not {_brief(wanted)}: another architecture"
        way_out = "give a last.ckpt of the same backbone and model.trainable"
        raise UserError("wrong-network", f"{source} holds {what}; {way_out}")


def check_backbone(checkpoint: Mapping[str, Any], module: Any, source: str) -> None:
    """Raise a `UserError` that names `source` unless its frozen backbone, which it does not hold, is the module's."""
    before = (checkpoint.get("settings") or {}).get("model.weights")
    if module.network.trainable != "all" and before != module.weights_hash:
        what = f"(hash {before}) than weights={module.hparams['weights']} (hash {module.weights_hash})"
        raise UserError("wrong-network", f"{source} was trained on another backbone {what}; give weights=PATH of that")


def _brief(shapes: Mapping[str, tuple[int, ...]]) -> str:
    text = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:2])
    return text + (", ..." if len(shapes) > 2 else "") or "nothing"
