"""Whether a checkpoint fits: what does not go on as if never stopped is refused."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from gender_cls.errors import UserError
from gender_cls.models.weights import safe_load

if TYPE_CHECKING:
    from gender_cls.training.module import GenderModule


def check_resume(ckpt_path: str, module: "GenderModule") -> None:
    """Refuse a checkpoint that a run can't go on from.

    Raises:
        UserError: The file is missing, damaged, a pickle, no checkpoint, of a run with other settings, or has more
            epochs than the run is to have.
    """
    source = f"ckpt_path={ckpt_path}"
    if not os.path.isfile(ckpt_path):
        raise UserError("not-found", f"{source}: no such file; a run leaves last.ckpt in its folder after each epoch")
    checkpoint = safe_load(ckpt_path, source)
    if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states", "loops", "epoch"} <= set(checkpoint):
        raise UserError("bad-model", f"{source} is no checkpoint of a run; give the last.ckpt of a run folder")
    check_shapes(checkpoint, module, source)
    before = checkpoint.get("settings") or {}
    for key, value in module.settings().items():
        if before.get(key) != value:
            raise UserError(
                "resume-mismatch",
                f"{source} was trained with another {key} ({before.get(key)}, now {value}); "
                "resume with the overrides of that run",
            )
    done, epochs = checkpoint["epoch"] + 1, module.trainer.max_epochs
    if epochs is not None and 0 <= epochs < done:  # as many is right: what comes after the last epoch may be missing
        raise UserError(
            "resume-mismatch", f"{source} has {done} epochs already; give trainer.max_epochs={done} or more to go on"
        )


def check_shapes(checkpoint: Mapping[str, Any], module: "GenderModule", source: str) -> None:
    """Raise a `UserError` that names `source` unless the tensors of the checkpoint are those that are trained."""
    wanted, found = (
        {name: tuple(getattr(value, "shape", ())) for name, value in module.trained_part(state).items()}
        for state in (module.state_dict(), checkpoint["state_dict"])
    )
    if wanted != found:
        raise UserError(
            "wrong-network",
            f"{source} holds {_brief(found)}, not {_brief(wanted)}: it is of another architecture; "
            "give the last.ckpt of a run of this one",
        )


def check_backbone(checkpoint: Mapping[str, Any], module: "GenderModule", source: str) -> None:
    """Raise a `UserError` that names `source` unless its frozen backbone, which it does not hold, is the module's."""
    before = (checkpoint.get("settings") or {}).get("model.weights")
    if module.network.trainable != "all" and before != module.weights_hash:
        weights = module.hparams["weights"]
        raise UserError(
            "wrong-network",
            f"{source} was trained on another backbone (hash {before}) than weights={weights} (hash "
            f"{module.weights_hash}); give weights=PATH of that one",
        )


def _brief(shapes: Mapping[str, tuple[int, ...]]) -> str:
    text = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:2])
    return text + (", ..." if len(shapes) > 2 else "") or "nothing"
