"""What a run does: compose, fit, calibrate, evaluate, save."""

import logging
import os
import shlex
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from pytorch_lightning.callbacks import Checkpoint, ProgressBar

from gender_cls.data.base import FaceDataModule
from gender_cls.errors import UserError, check_choice, check_integer, check_share
from gender_cls.evaluation import report, tables
from gender_cls.evaluation.metrics import Evaluation
from gender_cls.evaluation.robustness import check_regex, predict_conditions
from gender_cls.inference.arguments import command
from gender_cls.inference.export import save_model, write_json
from gender_cls.inference.predictor import MODEL_NAME
from gender_cls.training.callbacks import ImageLogger, log_final
from gender_cls.training.crossfit import HeldOut, calibrate, one_thread
from gender_cls.training.module import GenderModule

UNSUPPORTED = {  # by the heads of the calibration folds
    "accumulate_grad_batches": 1,
    "gradient_clip_val": None,
    "limit_train_batches": 1.0,
    "overfit_batches": 0.0,
}


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while training.

    Attributes:
        ckpt_path: Checkpoint of the last whole epoch, or None if there is none yet.
    """

    def __init__(self, where: str, ckpt_path: str | None) -> None:
        super().__init__(where)
        self.ckpt_path = ckpt_path


@dataclass(frozen=True)
class Run:
    """The composed parts of a run.

    Attributes:
        cfg: The configuration, with its run_dir.
        data: The data module.
        module: What is trained.
        trainer: Lightning's trainer.
    """

    cfg: DictConfig
    data: FaceDataModule
    module: GenderModule
    trainer: pl.Trainer

    @property
    def folder(self) -> Path:
        """Where the run writes."""
        return Path(self.cfg.run_dir)

    @property
    def in_sweep(self) -> bool:
        """Whether this is a job of a sweep, which keeps the uncalibrated head and writes no report."""
        return self.cfg.sweep_job is not None

    @property
    def brief(self) -> bool:
        """Whether only metrics are written: of a sweep over heads, the best is trained again in seconds."""
        return self.in_sweep and self.data.caches(self.module.network)


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, calibrate, evaluate and save, as a configuration says; nothing global of Hydra is read.

    Args:
        cfg: As `conf/train.yaml` composes it, by the command line or `hydra.compose`.

    Returns:
        What metrics.json holds: the metrics of dev, where identities are held out, and val; `objective`, which sweeps
        maximise (dev/f1_macro, or val/f1_macro without dev); facts of the fit, the data and the calibration.

    Raises:
        UserError: Something that the user can mend.
        Interrupted: Ctrl-C while training.
    """
    quieten()
    cfg = prepare(cfg)
    run = compose_run(cfg)
    prior = None if run.in_sweep else cfg.calibration.prior
    held_out = None if prior is None else HeldOut(run.data, run.module.network)
    started = time.monotonic()
    with resumable(run.trainer, cfg.ckpt_path):
        fit(run)
        fitted = {"epochs": run.trainer.current_epoch, "seconds": round(time.monotonic() - started, 1)}
        with one_thread(run.data.caches(run.module.network)):
            calibrated = None if held_out is None else calibrate(held_out, run.module, cfg.calibration.prior)
    metrics = evaluate(run)
    split = run.data.eval_splits[0]
    faces = run.data.faces
    facts = {"fingerprint": faces.fingerprint, "counts": faces.counts(), "skipped": faces.skipped}
    about = {"data": facts, "calibration": calibrated}
    objective = {"name": f"{split}/f1_macro", "value": metrics[split]["f1_macro"]}
    found = {**metrics, "objective": objective, "fit": fitted, **about}
    write_json(run.folder / "metrics.json", found)
    show(metrics, calibrated)
    if not run.brief:
        save(run, {**about, "metrics": metrics})
        images = ImageLogger()
        images.log_metrics(run.trainer, metrics)
        if cfg.report == "full" and not run.in_sweep:
            images.log_plots(run.trainer, write_report(run, calibrated).plots)
    settings = {"max_epochs": cfg.trainer.max_epochs, "calibration.prior": str(cfg.calibration.prior)}
    log_final(run.trainer, {**settings, **run.module.settings()}, metrics)
    return found


def prepare(cfg: DictConfig) -> DictConfig:
    """Return a copy with a folder to write to and Lightning's precision, after checking what no constructor does.

    Raises:
        UserError: A key has no value, or one out of its range.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        if cfg.run_dir is None:
            cfg.run_dir = f"runs/{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
        if cfg.trainer.get("precision") == "auto":
            cfg.trainer.precision = "${auto_precision:${trainer.accelerator}}"
    missing = sorted(OmegaConf.missing_keys(cfg))
    if missing:
        raise UserError("bad-value", f"{missing[0]} has no value; give {missing[0]}=...")
    check_choice("report", cfg.report, ("short", "full"))
    check_integer("trainer.max_epochs", cfg.trainer.max_epochs, 1)
    check_regex(cfg.data.report_exclude)
    prior = cfg.calibration.prior
    if prior not in (None, "train"):
        check_share("calibration.prior", prior)
    Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
    return cfg


def compose_run(cfg: DictConfig) -> Run:
    """Instantiate data module, module and trainer, say what there is, and check the rules that span them.

    Raises:
        UserError: Parts do not go together, or one of them refuses its arguments.
    """
    data: FaceDataModule = instantiate(cfg.data)
    if not cfg.sweep_job:  # a single run, or the first of a sweep
        introduce(cfg, data)
    data.faces  # noqa: B018 - read before weights are downloaded
    module: GenderModule = instantiate(cfg.model)
    run = Run(cfg, data, module, None)  # type: ignore[arg-type]
    if cfg.calibration.prior is not None and data.caches(module.network):
        unsupported = [key for key, usual in UNSUPPORTED.items() if cfg.trainer.get(key, usual) != usual]
        keys = [f"trainer.{key}" for key in unsupported] + ["callbacks.average"] * ("average" in cfg.callbacks)
        if keys:
            raise UserError(
                "conflict",
                f"{keys[0]}: calibration trains its heads without; give calibration=none, or cached_views=0",
            )
    return Run(cfg, data, module, make_trainer(cfg, checkpoints=not run.brief))


def make_trainer(cfg: DictConfig, checkpoints: bool) -> pl.Trainer:
    """Return Lightning's trainer with its callbacks and loggers.

    Raises:
        UserError: A package is missing, or more than one device is asked for.
    """
    try:
        callbacks = [instantiate(callback) for callback in cfg.callbacks.values()]
        left_out = (() if checkpoints else (Checkpoint,)) + (() if cfg.trainer.enable_progress_bar else (ProgressBar,))
        callbacks = [callback for callback in callbacks if not isinstance(callback, left_out)]
        loggers = [instantiate(logger) for logger in cfg.logger.values()]
        saving = any(isinstance(callback, Checkpoint) for callback in callbacks)
        trainer: pl.Trainer = instantiate(
            cfg.trainer, callbacks=callbacks, logger=loggers, enable_checkpointing=saving
        )
    except Exception as error:
        cause = error.__cause__
        if not isinstance(cause, ModuleNotFoundError):
            raise
        key = str(getattr(error, "full_key", "")) or "callbacks or logger"
        raise UserError("missing-package", f"{key}: {' '.join(str(cause).split())}") from error
    if trainer.world_size > 1:
        raise UserError("conflict", "trainer.devices must be 1: the order of draws is that of one device")
    return trainer


def introduce(cfg: DictConfig, data: FaceDataModule) -> None:
    """Print what data there are, and what the confidence will be."""
    print(tables.describe_data(data.faces))
    calibrating = cfg.calibration.prior is not None
    if not calibrating and cfg.data.balanced_sampler and cfg.model.class_weight:
        print(tables.balance_note(*data.class_counts))
    if calibrating and cfg.sweep_job is not None:
        print("the jobs of a sweep keep their uncalibrated heads; the best one is calibrated when it is run again")


def fit(run: Run) -> None:
    """Train.

    Raises:
        UserError: What was trained is no longer finite.
    """
    run.trainer.fit(run.module, run.data, ckpt_path=run.cfg.ckpt_path)
    if not all(parameter.isfinite().all() for parameter in run.module.parameters() if parameter.requires_grad):
        raise UserError("diverged", "the training diverged: weights are not finite; lower model.optimizer.lr")


def evaluate(run: Run) -> dict[str, dict[str, Any]]:
    """Return the metrics of each evaluation split under the final head.

    Raises:
        UserError: The images of a split have disappeared.
    """
    metrics = {}
    for split in run.data.eval_splits:
        batches: Any = run.trainer.predict(run.module, run.data.eval_dataloader(split))
        p_male = torch.cat([batch["p_male"] for batch in batches])
        if not len(p_male):
            raise UserError("not-found", f"no image of {split} can be read any more; are the files still there?")
        indices = torch.cat([batch["index"] for batch in batches]).tolist()
        faces = [run.data.faces.splits[split][index] for index in indices]
        labels = np.array([face.label for face in faces])
        metrics[split] = Evaluation(p_male[None], labels, [face.identity for face in faces]).metrics(0)
    return metrics


def show(metrics: dict[str, dict[str, Any]], calibrated: dict[str, Any] | None) -> None:
    """Print the tables of a finished run."""
    if calibrated:
        print(f"\n{tables.calibration_report(calibrated)}")
    for split, values in metrics.items():
        print(f"\n{tables.classification_report(split, values)}")


def save(run: Run, about: dict[str, Any]) -> None:
    """Write the model, and print how to predict with it."""
    hparams = run.module.hparams
    weights = {"name": hparams["weights"], "hash": run.module.weights_hash, "trainable": hparams["trainable"]}
    facts = {"features": asdict(run.data.feature_options), "report": run.data.report_settings(), "weights": weights}
    model = save_model(run.folder, run.module.network, run.data.views.preprocessing, {**facts, **about})
    image = run.data.faces.splits["val"][0].path
    again = [*command("predict").split(), f"model={shown_path(model)}", f"img={shown_path(image)}"]
    print(f"\nsaved {shown_path(model)}\n{shlex.join(again)}")


def write_report(run: Run, calibrated: dict[str, Any] | None) -> report.Report:
    """Write the report on val, clean and corrupted, and return it."""
    data, network = run.data, run.module.network
    predictions = predict_conditions(
        network, data.views.preprocessing, data.faces.splits["val"], data.extractor(network), data.num_workers
    )
    model = shown_path(run.folder / MODEL_NAME)
    weights = run.module.hparams["weights"]
    full = report.build(predictions, model, data.source_name, weights, data.report_exclude, calibrated)
    full.save(run.folder / "report")
    print(f"\n{tables.corruption_report(full.metrics)}\n{shown_path(run.folder / 'report' / report.PAGE)}")
    return full


def quieten() -> None:
    """Silence what Lightning says of things that are meant to be so."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training")  # that is the frozen part
    warnings.filterwarnings("ignore", ".*does not have many workers")  # more only helps where there are more cores
    warnings.filterwarnings("ignore", ".*exists and is not empty")  # Hydra has just made the run folder
    warnings.filterwarnings("ignore", ".*The number of training batches")  # few steps an epoch on small data
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; what matters is whether it decodes
    warnings.filterwarnings("ignore", "The dirpath has changed")  # a resumed run has a folder of its own


def shown_path(path: str | Path) -> str:
    """Return the path as a person would give it from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


@contextmanager
def resumable(trainer: pl.Trainer, ckpt_path: str | None) -> Iterator[None]:
    """Turn Ctrl-C into `Interrupted`, with the checkpoint to go on from."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:  # the latter is Lightning's reaction to Ctrl-C
        epoch = trainer.current_epoch + 1
        where = f"in epoch {epoch}" if epoch <= int(trainer.max_epochs or 0) else "after the last epoch"
        last = getattr(trainer.checkpoint_callback, "best_model_path", "") or ckpt_path
        raise Interrupted(where, last or None) from stop
