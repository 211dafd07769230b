"""Optimizers and schedulers from plain configuration, and what a run adds to them."""

import inspect
import math
from collections.abc import Iterable, Mapping
from typing import Any

import pytorch_lightning as pl
from hydra.utils import instantiate
from torch import nn
from torch.optim import Optimizer

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
    try:
        optimizer: Optimizer = instantiate(config, _partial_=True)(parameters)
        return optimizer
    except (TypeError, ValueError) as error:
        raise UserError("bad-value", f"model.optimizer: {error}") from error


def make_scheduler(config: Mapping[str, Any], optimizer: Optimizer, trainer: pl.Trainer) -> dict[str, Any]:
    """Return Lightning's dictionary with the scheduler in it, up to the rates of `optimizer` and as long as the run."""
    wanted = from_run(config)
    given: dict[str, Any] = {}
    if "max_lr" in wanted:
        given["max_lr"] = [group["lr"] for group in optimizer.param_groups]
    if "total_steps" in wanted:
        given["total_steps"] = _length(trainer, config.get("interval", "epoch"))
    try:
        return {**config, "scheduler": instantiate(config["scheduler"], _partial_=True)(optimizer, **given)}
    except ZeroDivisionError as error:  # of OneCycleLR
        few = f"{given['total_steps']} steps are too few"
        raise UserError("bad-value", f"model.scheduler: {few}; give more trainer.max_epochs") from error
    except (TypeError, ValueError) as error:
        raise UserError("bad-value", f"model.scheduler: {error}") from error


def from_run(config: Mapping[str, Any]) -> set[str]:
    """Return which of `total_steps` and `max_lr` the scheduler's signature has and the configuration leaves open."""
    make = instantiate(config["scheduler"], _partial_=True)
    signature = inspect.signature(make.func).parameters
    return {name for name in ("total_steps", "max_lr") if name in signature and name not in make.keywords}


def _length(trainer: Any, interval: str) -> int:
    # Lightning's own estimate starts to read before a checkpoint has said which epoch comes
    if interval == "epoch":
        return int(trainer.max_epochs)
    if trainer.datamodule is None:
        return int(trainer.estimated_stepping_batches)
    batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
    batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
    return math.ceil(batches / trainer.accumulate_grad_batches) * int(trainer.max_epochs)
