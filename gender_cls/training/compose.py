"""A run's parts from its configuration, and the rules that span them."""

import logging
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from pytorch_lightning.callbacks import Checkpoint, LearningRateMonitor, ProgressBar

from gender_cls.data.base import FaceDataModule
from gender_cls.errors import UserError, check_choice, check_integer, writing
from gender_cls.evaluation.tables import balance_note, describe_data
from gender_cls.files import user_path
from gender_cls.training.callbacks import ImageLogger
from gender_cls.training.module import GenderModule

# arguments of the trainer that the heads of calibration folds do not follow, with their usual values
REFUSED = {"accumulate_grad_batches": 1, "gradient_clip_val": None}
# arguments of the trainer that leave images out: of training and, the rest, of evaluation
PARTLY_TRAINED = ("fast_dev_run", "overfit_batches", "limit_train_batches")
LIMITS = (*PARTLY_TRAINED, "limit_val_batches", "limit_predict_batches")
# the head stays in fp32: stored features, calibration and export are made for it
PRECISIONS = ("32-true", "16-mixed", "bf16-mixed", "32", "16", "bf16")
QUIET = (
    ".*does not have many workers",  # more only helps where there are more cores
    ".*exists and is not empty",  # Hydra has just made the run folder
    ".*The number of training batches",  # few steps an epoch on small data
    ".*treespec, LeafSpec",  # Lightning's own use of torch
    "The dirpath has changed",  # a resumed run has a folder of its own
)


@dataclass(frozen=True)
class Run:
    """The composed parts of a run, and its configuration with a run_dir."""

    cfg: DictConfig
    data: FaceDataModule
    module: GenderModule
    trainer: pl.Trainer

    @property
    def cached(self) -> bool:
        """Whether it trains on stored features."""
        return self.data.caches(self.module.network)


def quieten() -> None:
    """Silence what Lightning and Pillow say of things that are meant to be so."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    for message in QUIET:
        warnings.filterwarnings("ignore", message)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; what matters is whether it decodes


def prepare(cfg: DictConfig) -> DictConfig:
    """Return a copy that names a folder and a precision, after checking what no constructor does."""
    cfg = cfg.copy()
    with open_dict(cfg):
        if cfg.run_dir is None:
            cfg.run_dir = f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        cfg.run_dir, cfg.ckpt_path = (path and user_path(path) for path in (cfg.run_dir, cfg.ckpt_path))
        if cfg.trainer.get("precision") == "auto":
            cfg.trainer.precision = "${auto_precision:${trainer.accelerator}}"
    for key in sorted(OmegaConf.missing_keys(cfg)):
        raise UserError("bad-value", f"{key} has no value; give {key}=...")
    check_choice("trainer.precision", str(cfg.trainer.get("precision", "32-true")), ("auto", *PRECISIONS))
    for key in ("limit_train_batches", "limit_predict_batches"):
        if cfg.trainer.get(key) == 0:
            raise UserError("bad-value", f"trainer.{key}=0 leaves no image; give a number of batches")
    for key in ("limit_val_batches", "limit_predict_batches"):
        if isinstance(value := cfg.trainer.get(key), float) and value != 1:  # of stored features there are few batches
            raise UserError("bad-value", f"trainer.{key}={value}: give a number of batches")
    partly = [f"trainer.{key}" for key in limits(cfg) if key in PARTLY_TRAINED]
    if partly and cfg.calibration.prior is not None:
        print(f"note: no calibration, since {partly[0]} trains on a part of the images")
        cfg.calibration.prior = None
    if cfg.trainer.get("fast_dev_run"):
        cfg.cached_views = 0  # one batch is not worth the features of all images
    check_choice("report", cfg.report, ("short", "full"))
    check_integer("trainer.max_epochs", cfg.trainer.max_epochs, 1)
    prior = cfg.calibration.prior
    if prior not in (None, "train") and not (isinstance(prior, int | float) and 0 < prior < 1):
        raise UserError("bad-value", f"calibration.prior={prior}: give a number above 0 and below 1, or train")
    with writing(f"run_dir={cfg.run_dir}", "give a folder that can be written"):
        Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
    return cfg


def limits(cfg: DictConfig) -> dict[str, Any]:
    """Return the arguments of the trainer that leave images out, with their values."""

    def leaves_out(key: str, value: Any) -> bool:
        if key.startswith("limit"):
            return value is not None and not (isinstance(value, float) and value == 1)  # the integer is one batch
        return bool(value)

    return {key: value for key in LIMITS if leaves_out(key, value := cfg.trainer.get(key))}


def compose_run(cfg: DictConfig) -> Run:
    """Instantiate data module, module and trainer, print what data there are, and check rules that span them."""
    calibrating = cfg.calibration.prior is not None
    cached = cfg.cached_views and cfg.model.trainable == "head"
    keys = [f"trainer.{key}" for key, usual in REFUSED.items() if cfg.trainer.get(key, usual) != usual]
    for key in keys + ["callbacks.average"] * ("average" in cfg.callbacks):
        if calibrating and cached:
            way_out = "give calibration=none, or cached_views=0"
            raise UserError("conflict", f"{key} is not supported by the heads of calibration folds; {way_out}")
    if "_target_" not in cfg.data:
        raise UserError("bad-value", "data has no _target_; give data=task_a, data=manifest or data=demo")
    data: FaceDataModule = instantiate(cfg.data)
    _ = data.faces, data.landmarks  # images are read before weights are downloaded
    if not cfg.sweep_job:  # a single run, or the first of a sweep
        print(describe_data(data.faces, data.landmarks))
        if not calibrating and data.balanced_sampler and cfg.model.class_weight and len(set(data.class_counts)) > 1:
            print(balance_note(*data.class_counts))
        if calibrating and cfg.sweep_job is not None:
            print("the jobs of a sweep keep their uncalibrated heads; the best one is calibrated when it is run again")
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    module: GenderModule = instantiate(cfg.model)
    return Run(cfg, data, module, make_trainer(cfg, brief=bool(cfg.sweep_job is not None and cached)))


def make_trainer(cfg: DictConfig, brief: bool) -> pl.Trainer:
    """Return Lightning's trainer with its callbacks and loggers; a brief run leaves metrics alone."""
    left_out: tuple[type, ...] = (Checkpoint, ImageLogger) if brief else ()
    left_out += () if cfg.trainer.enable_progress_bar else (ProgressBar,)
    left_out += () if cfg.logger else (LearningRateMonitor,)  # which refuses to run without a logger
    callbacks = [each for each in instantiate_all("callbacks", cfg.callbacks) if not isinstance(each, left_out)]
    saving = any(isinstance(callback, Checkpoint) for callback in callbacks)
    loggers = list(instantiate_all("logger", cfg.logger))
    try:
        trainer: pl.Trainer = instantiate(cfg.trainer, callbacks=callbacks, logger=loggers, enable_checkpointing=saving)
    except InstantiationException as error:  # an accelerator that is not there, or an argument that Lightning refuses
        raise UserError("bad-value", f"trainer: {' '.join(str(error.__cause__ or error).split())}") from error
    if trainer.world_size > 1:
        raise UserError("conflict", "trainer.devices must be 1: the order of draws is that of one device")
    return trainer


def instantiate_all(group: str, configs: DictConfig) -> Iterator[Any]:
    """Yield what the configurations of a group stand for; a missing package is a `UserError`."""
    for key, config in configs.items():
        try:
            yield instantiate(config)
        except InstantiationException as error:
            if not isinstance(error.__cause__, ModuleNotFoundError):
                raise
            hint = " ".join(str(error.__cause__).split())  # Lightning's own, with the command that installs it
            raise UserError("missing-package", f"{group}.{key!s}: {hint}") from error


def user_error(error: BaseException) -> UserError | None:
    """Return the error that the user can mend, below what Hydra and OmegaConf put around it; None if there is none."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, UserError):
        if isinstance(seen, MisconfigurationException):
            return UserError("bad-value", f"trainer: {' '.join(str(seen).split())}")
        if isinstance(seen, RuntimeError) and re.search("out of shared memory|torch_.*No space left", str(seen)):
            return out_of_shared_memory()
        seen = seen.__cause__ or (seen.__context__ if isinstance(seen, OmegaConfBaseException) else None)
    return seen


def out_of_shared_memory() -> UserError:
    """Return the error for workers whose batches find no place in shared memory, as in a container with 2 MB of it."""
    way_out = "give data.num_workers=0, or more of it, as by docker run --shm-size=1g"
    return UserError("no-shared-memory", f"data.num_workers: the workers have too little shared memory; {way_out}")
