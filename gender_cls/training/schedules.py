"""Optimizers and schedulers from plain configuration, and what a run adds to them."""

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any, cast

import pytorch_lightning as pl
from hydra.utils import get_class
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from gender_cls.errors import UserError


def check_rate(key: str, rate: object) -> None:
    """Raise a `UserError` unless `rate` is a learning rate."""
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
        raise UserError("bad-value", f"{key}={rate}: give a learning rate above 0")


def check_monitor(key: str, monitor: str | None, splits: Iterable[str]) -> None:
    """Raise a `UserError` where `monitor` is a metric of val, which is only reported, or of a dev that is not there."""
    split = (monitor or "").partition("/")[0]
    if split == "val":
        raise UserError("conflict", f"{key}={monitor}: val is only reported, so nothing is chosen by it; give dev/loss")
    if split == "dev" and "dev" not in splits:
        raise UserError("conflict", f"{key}={monitor}: no identities are held out as dev; give data.holdout=0.1")


def make_optimizer(
    config: Mapping[str, Any], parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]]
) -> Optimizer:
    """Return the optimizer that `config` names by `_target_`; a `UserError` says which argument it refuses."""
    kind = _find("model.optimizer", config, Optimizer)
    try:
        return kind(parameters, **_arguments(config))
    except (TypeError, ValueError) as error:
        raise UserError("bad-value", f"model.optimizer: {error}") from error


def make_scheduler(config: Mapping[str, Any], optimizer: Optimizer, trainer: pl.Trainer) -> dict[str, Any]:
    """Return Lightning's dictionary with the scheduler in it, up to the rates of `optimizer` and as long as the run."""
    kind = _find("model.scheduler", config["scheduler"], LRScheduler)
    arguments, wanted = _arguments(config["scheduler"]), from_run(config)
    if "max_lr" in wanted:
        arguments["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    if "total_steps" in wanted:
        arguments["total_steps"] = _length(trainer, config.get("interval", "epoch"))
    try:
        return {**config, "scheduler": kind(optimizer, **arguments)}
    except ZeroDivisionError as error:  # of OneCycleLR
        few = f"{arguments['total_steps']} steps are too few"
        raise UserError("bad-value", f"model.scheduler: {few}; give more trainer.max_epochs") from error
    except (TypeError, ValueError) as error:
        raise UserError("bad-value", f"model.scheduler: {error}") from error


def from_run(config: Mapping[str, Any]) -> set[str]:
    """Return which of `total_steps` and `max_lr` the scheduler's signature has and the configuration leaves open."""
    known = inspect.signature(_find("model.scheduler", config["scheduler"], LRScheduler)).parameters
    return {name for name in ("total_steps", "max_lr") if name in known and name not in config["scheduler"]}


def _find(key: str, config: Mapping[str, Any], base: type) -> Any:
    """The class that `_target_` names; nothing else is ever called, also not what a checkpoint's values say."""
    try:
        kind = get_class(config["_target_"])
    except Exception as error:  # Hydra's own kinds
        raise UserError("bad-value", f"{key}._target_={config.get('_target_')}: no such class") from error
    if not issubclass(kind, base):
        raise UserError("bad-value", f"{key}._target_={config['_target_']}: give a {base.__name__} of torch")
    return kind


def _arguments(config: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in ("_target_", "_partial_")}


def _length(trainer: Any, interval: str) -> int:
    # Lightning's own estimate starts to read before a checkpoint has said which epoch comes
    if interval == "epoch":
        return int(trainer.max_epochs)
    if trainer.datamodule is None:
        return int(trainer.estimated_stepping_batches)
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * int(trainer.max_epochs)
    return min(steps, trainer.max_steps) if trainer.max_steps > 0 else steps


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as Python's own dicts and lists, which a checkpoint can hold."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.create(dict(config)), resolve=True))
