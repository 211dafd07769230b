"""Train a head on a frozen ResNet-18, or more of it, evaluate and save it (`python train.py --help` shows how)."""

import io
import logging
import math
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import hydra
import numpy as np
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Checkpoint

from gender_cls import cache_folder, dashboard, metrics, report, tables
from gender_cls.answers import ask, check_pattern
from gender_cls.backbones import best_precision
from gender_cls.checks import check
from gender_cls.datamodule import FaceDataModule
from gender_cls.errors import UserError
from gender_cls.export import save_model, write_json
from gender_cls.features import Extractor
from gender_cls.folds import HeldOut, calibrate
from gender_cls.module import GenderModule, by_step, check_checkpoint
from gender_cls.network import GenderNet
from gender_cls.predictor import MODEL_NAME
from gender_cls.sources import Splits
from gender_cls.sweep import ERROR_FILE
from gender_cls.transforms import Preprocessing
from gender_cls.views import Degrading, TrainingViews
from gender_cls.weights import inputs_of

MODEL_KEYS = ("backbone", "trainable", "class_weight", "backbone_lr", "label_smoothing", "optimizer", "scheduler")
DATA_KEYS = ("holdout", "batch_size", "size", "crop", "median", "balanced_sampler", "augment")  # that decide a head


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Run one job: an error ends in one line, and a failed job of a sweep does not end the sweep."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    error_file = run_dir / ERROR_FILE
    error_file.unlink(missing_ok=True)  # of an earlier sweep in the same folder
    try:
        return train(cfg, run_dir)
    except KeyboardInterrupt:
        sys.exit("stopped")
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        line = one_line(error)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            error_file.write_text(line + "\n", encoding="utf-8", errors="backslashreplace")
            print(f"this job failed: {line}", file=sys.stderr)
            return math.nan
        sys.exit(f"error: {line}")


def one_line(error: BaseException) -> str:
    """What went wrong, without the layers around it; of an unforeseen error also its type and how to see more."""
    while error.__cause__ is not None and not isinstance(error, UserError):  # Hydra wraps what its targets raise
        error = error.__cause__
    text = " ".join(str(error).split())
    if isinstance(error, UserError):
        return text
    return f"{type(error).__name__}: {text} (HYDRA_FULL_ERROR=1 shows where)"


def train(cfg: DictConfig, run_dir: Path) -> float:
    """Compose, fit, evaluate, save.

    Args:
        cfg: As `conf/train.yaml` composes it.
        run_dir: Where everything is written.

    Returns:
        dev/f1_macro, or val/f1_macro where no people are held out, after the last epoch.
    """
    quieten()
    check_values(cfg)
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    splits = instantiate(cfg.data.source)
    network = GenderNet(cfg.model.weights, cfg.model.backbone, cfg.model.trainable)
    views = cfg.views if cfg.model.trainable == "head" else 0  # what is trained makes other features at each step
    check_size(cfg, network)
    data = make_data(cfg, splits)
    in_sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    words = HydraConfig.get().overrides.task
    calibrating = cfg.calibration.prior is not None
    if not in_sweep or HydraConfig.get().job.num == 0:
        introduce(cfg, data, calibrating, in_sweep)
    short = in_sweep and views > 0  # the best head is had again in seconds, so only figures are written
    trainer = make_trainer(cfg, run_dir, checkpoints=not short)
    extractor = make_extractor(cfg, network, trainer)
    module = make_module(cfg, network, data, settings(cfg, data, extractor, views))
    if cfg.ckpt_path:
        check_checkpoint(cfg.ckpt_path, module, cfg.trainer.max_epochs)
    if views:
        data.compute_features(extractor, views)
    held_out = HeldOut(data, extractor) if calibrating and not in_sweep else None
    if not short:
        dashboard.show_views(trainer, data)
    started = time.monotonic()
    with threads_for(data), resumable(trainer, cfg.ckpt_path, words):
        fit(trainer, module, data, cfg.ckpt_path)
        fitted = {"epochs": trainer.current_epoch, "seconds": round(time.monotonic() - started, 1)}
        calibrated = calibrate(held_out, module, trainer.global_step, cfg.calibration.prior) if held_out else None
    figures = evaluate(trainer, module, data)
    split = data.eval_splits[0]
    objective = {"name": f"{split}/f1_macro", "value": figures[split]["f1_macro"]}
    facts = {"fingerprint": data.faces.fingerprint, "counts": data.faces.counts(), "skipped": data.faces.skipped}
    about = {"data": facts, "calibration": calibrated}
    write_json(run_dir / "metrics.json", {**figures, "objective": objective, "fit": fitted, **about})
    show(figures, calibrated)
    if not short:
        dashboard.show_confusion(trainer, figures)
        weights = {"name": cfg.model.weights, "hash": module.weights_hash, "trainable": cfg.model.trainable}
        save(cfg, run_dir, network, data, {"weights": weights, **about, "metrics": figures})
        if cfg.report == "full" and not in_sweep:
            report_in_full(cfg, run_dir, network, data, trainer, extractor, calibrated)
    dashboard.show_figures(trainer, hyper_parameters(cfg, views), figures)
    return float(objective["value"])


def introduce(cfg: DictConfig, data: FaceDataModule, calibrating: bool, in_sweep: bool) -> None:
    """Say what there is, and what the confidence will be."""
    print(tables.describe_data(data.faces))
    if not calibrating and cfg.data.balanced_sampler and cfg.model.class_weight:
        print(tables.balance_note(*data.class_counts))
    if calibrating and in_sweep:
        print("the jobs of a sweep keep their raw heads; the best one again is calibrated")


def save(cfg: DictConfig, run_dir: Path, network: GenderNet, data: FaceDataModule, about: dict[str, Any]) -> None:
    """Write the model, and say how to ask it."""
    choices = {key: cfg.data.get(key, usual) for key, usual in report.USUAL.items()}
    facts = {"features": plain(cfg.features), "report": choices, **about}
    model = save_model(run_dir, network, data.views.preprocessing, facts)
    command = ["python", "predict.py", f"model={shown(model)}", f"img={shown(data.faces.splits['val'][0].path)}"]
    print(f"\nsaved {shown(model)}\n{shlex.join(command)}")


def report_in_full(
    cfg: DictConfig,
    run_dir: Path,
    network: GenderNet,
    data: FaceDataModule,
    trainer: pl.Trainer,
    extractor: Extractor,
    calibrated: dict[str, Any] | None,
) -> None:
    """Write the report on val, clean and degraded."""
    answers = ask(network, data.views.preprocessing, data.faces.splits["val"], extractor, data.num_workers)
    source = Path(cfg.data.get("csv") or cfg.data.root).resolve().name
    model = shown(run_dir / MODEL_NAME)
    full = report.build(answers, model, source, cfg.model.weights, cfg.data.without, calibrated)
    full.save(run_dir / "report")
    dashboard.show_report(trainer, full)
    print(f"\n{tables.degraded_report(full.numbers)}\n{shown(run_dir / 'report' / 'report.html')}")


def check_values(cfg: DictConfig) -> None:
    """Refuse early what would end deep inside of a library.

    Raises:
        UserError: a key without its value, or a number out of its range.
    """
    if OmegaConf.is_missing(cfg.data, "csv"):
        raise UserError("data.csv has no value; give data.csv=FILE")
    least = {
        "seed": 0,
        "views": 0,
        "data.batch_size": 1,
        "data.num_workers": 0,
        "data.size": 1,
        "trainer.max_epochs": 1,
    }
    for key, low in least.items():
        value = OmegaConf.select(cfg, key)
        if key in ("data.num_workers", "data.size") and value is None:
            continue
        if not isinstance(value, int) or value < low:
            raise UserError(f"{key}={value}: give a whole number of at least {low}")
    if not isinstance(cfg.data.crop, int | float) or not 0 < cfg.data.crop <= 1:
        raise UserError(f"data.crop={cfg.data.crop}: give a share above 0, up to 1")
    if not isinstance(cfg.data.median, bool):
        raise UserError(f"data.median={cfg.data.median}: give true or false")
    check_pattern(cfg.data.without)
    prior = cfg.calibration.prior
    if prior not in (None, "train") and not (isinstance(prior, int | float) and 0 < prior < 1):
        raise UserError(f"calibration.prior={prior!r}: give a share of men above 0 and below 1, or train")
    if prior is not None and cfg.views and cfg.model.trainable == "head":
        for key, usual in (("accumulate_grad_batches", 1), ("gradient_clip_val", None), ("limit_train_batches", 1.0)):
            if cfg.trainer.get(key, usual) != usual:
                raise UserError(
                    f"trainer.{key}: calibration trains its heads without; give calibration=none, or views=0"
                )
    if not isinstance(cfg.model.label_smoothing, int | float) or not 0 <= cfg.model.label_smoothing < 1:
        raise UserError(f"model.label_smoothing={cfg.model.label_smoothing}: give a share of at least 0, below 1")
    if prior is not None and cfg.views and cfg.model.trainable == "head" and cfg.callbacks.get("average"):
        raise UserError("callbacks.average: calibration trains its heads without; give calibration=none, or views=0")
    rates = {f"optimizer.{key}": value for key, value in (cfg.model.optimizer or {}).items() if key == "lr"}
    rates |= {} if cfg.model.backbone_lr is None else {"backbone_lr": cfg.model.backbone_lr}
    for key, rate in rates.items():
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not rate > 0:
            raise UserError(f"model.{key}={rate}: give a learning rate above 0")
    if cfg.model.backbone_lr is not None and cfg.model.trainable == "head":
        raise UserError("model.backbone_lr is for a backbone that is trained; give model.trainable=layer4 or all, too")
    if cfg.report not in ("short", "full"):
        raise UserError(f"report={cfg.report}: give short or full")
    choices = {"precision": ("auto", "bf16", "fp32"), "dtype": ("float16", "float32"), "engine": ("torch", "openvino")}
    for key, known in choices.items():
        if cfg.features[key] not in known:
            raise UserError(f"features.{key}={cfg.features[key]}: give {' or '.join(known)}")


def check_size(cfg: DictConfig, network: GenderNet) -> None:
    """Refuse pictures that a network can't take.

    Raises:
        UserError: it is a ViT, and they are of another size than its own.
    """
    side = getattr(network.backbone, "image_size", None)
    size = cfg.data.size or inputs_of(cfg.model.backbone, cfg.model.weights)["size"]
    if side and {size, cfg.data.augment.size or side} != {side}:
        raise UserError(f"a {cfg.model.backbone} takes {side} alone; give data.size={side} data.augment.size=null")


def quieten() -> None:
    """Leave out what Lightning says of things that are meant to be so."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training")  # that is the frozen part
    warnings.filterwarnings("ignore", ".*does not have many workers")  # more only helps where there are more cores
    warnings.filterwarnings("ignore", ".*exists and is not empty")  # Hydra has just made the run folder
    warnings.filterwarnings("ignore", ".*The number of training batches")  # few steps an epoch on small data
    warnings.filterwarnings("ignore", ".*treespec, LeafSpec")  # Lightning's own use of torch
    warnings.filterwarnings("ignore", module=r"PIL\.")  # odd metadata; what matters is whether it decodes
    warnings.filterwarnings("ignore", "The dirpath has changed")  # a resumed run has a folder of its own


def make_data(cfg: DictConfig, splits: Splits) -> FaceDataModule:
    """Check and split the faces and make the loaders."""
    faces = check(splits, cfg.data.identity, cfg.data.val_share, cfg.data.holdout, cfg.data.split_seed)
    made_for = inputs_of(cfg.model.backbone, cfg.model.weights)
    made_for |= {} if cfg.data.size is None else {"size": cfg.data.size}
    preprocessing = Preprocessing(**made_for, crop=float(cfg.data.crop), median=cfg.data.median)
    degrading = Degrading(**plain(cfg.degrade))
    views = TrainingViews(preprocessing, **plain(cfg.data.augment), degrading=degrading, seed=cfg.data.view_seed)
    return FaceDataModule(faces, views, cfg.data.batch_size, cfg.data.num_workers, cfg.data.balanced_sampler, cfg.seed)


def make_extractor(cfg: DictConfig, network: GenderNet, trainer: pl.Trainer) -> Extractor:
    """What computes and stores the frozen features, on the trainer's device."""
    how = {key: cfg.features[key] for key in ("precision", "dtype", "engine")}
    folder = cfg.features.dir or cache_folder()
    return Extractor(network, folder, **how, device=trainer.strategy.root_device)


def make_module(cfg: DictConfig, network: GenderNet, data: FaceDataModule, shared: dict[str, Any]) -> GenderModule:
    """What is trained; `shared` is what a resumed run must have in common with this one."""
    return GenderModule(
        network,
        instantiate(cfg.model.optimizer),
        instantiate(cfg.model.scheduler),
        class_counts=data.class_counts,
        class_weight=cfg.model.class_weight,
        backbone_lr=cfg.model.backbone_lr,
        label_smoothing=cfg.model.label_smoothing,
        eval_splits=data.eval_splits,
        settings=shared,
    )


def settings(cfg: DictConfig, data: FaceDataModule, extractor: Extractor, views: int) -> dict[str, Any]:
    """What decides the order, the views, who is held out and how a step is taken: a resumed run must share it."""
    keys = ("split_seed", "view_seed", *DATA_KEYS)
    return {
        "data": data.faces.fingerprint,
        "seed": cfg.seed,
        "views": views,
        "features": extractor.how if views else None,
        **{f"data.{key}": plain(cfg.data)[key] for key in keys},
        "degrade": plain(cfg.degrade),
        **{f"model.{key}": plain(cfg.model)[key] for key in MODEL_KEYS},
        "trainer.precision": precision(cfg),
        "callbacks.average": plain(cfg.callbacks).get("average"),
        **({"trainer.max_epochs": cfg.trainer.max_epochs} if by_step(instantiate(cfg.model.scheduler)) else {}),
    }


def hyper_parameters(cfg: DictConfig, views: int) -> dict[str, Any]:
    """What TensorBoard compares runs by."""
    data = {key: plain(cfg.data)[key] for key in DATA_KEYS}
    of_run = {"seed": cfg.seed, "max_epochs": cfg.trainer.max_epochs, "views": views}
    of_run["calibration.prior"] = str(cfg.calibration.prior)
    return {**of_run, "model": plain(cfg.model), "data": data, "degrade": plain(cfg.degrade)}


def plain(node: DictConfig) -> dict[str, Any]:
    """Python's own dicts and lists, which a checkpoint may hold and TensorBoard can show."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))


def make_trainer(cfg: DictConfig, run_dir: Path, checkpoints: bool) -> pl.Trainer:
    """Lightning's trainer.

    Raises:
        UserError: more than one device is asked for.
    """
    callbacks = [c for c in instantiate(cfg.callbacks).values() if checkpoints or not isinstance(c, Checkpoint)]
    trainer = instantiate(
        cfg.trainer,
        callbacks=callbacks,
        logger=instantiate(cfg.logger),
        default_root_dir=run_dir,
        enable_checkpointing=checkpoints,
        precision=precision(cfg),
    )
    if trainer.world_size > 1:
        raise UserError("trainer.devices must be 1: the order of the draws is one device's")
    return trainer


def precision(cfg: DictConfig) -> str:
    """Of the training; auto is bf16 where the hardware computes with it."""
    if cfg.trainer.precision != "auto":
        return str(cfg.trainer.precision)
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if best_precision(torch.device("cuda" if on_gpu else "cpu")) == "bf16" else "32-true"


@contextmanager
def threads_for(data: FaceDataModule) -> Iterator[None]:
    """One thread for stored features: a batch is too little to share, and threads wait where a core is busy."""
    threads = torch.get_num_threads()
    if data.features:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def resumable(trainer: pl.Trainer, ckpt_path: str | None, words: list[str]) -> Iterator[None]:
    """On Ctrl-C say how to go on from the last whole epoch."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):  # the latter is Lightning's answer to Ctrl-C
        epoch = trainer.current_epoch + 1
        where = f"in epoch {epoch}" if epoch <= cast(int, trainer.max_epochs) else "after the last epoch"
        last = getattr(trainer.checkpoint_callback, "best_model_path", "") or ckpt_path
        if last:
            again = [word for word in words if not word.startswith(("ckpt_path=", "hydra.run.dir="))]
            command = shlex.join(["python", "train.py", *again, f"ckpt_path={quoted(shown(last))}"])
            print(f"\nstopped {where}; to go on from the last whole epoch:\n{command}")
        else:
            print(f"\nstopped {where}; no checkpoint is saved yet to go on from")
        raise


def fit(trainer: pl.Trainer, module: GenderModule, data: FaceDataModule, ckpt_path: str | None) -> None:
    """Train.

    Raises:
        UserError: what was trained is no longer finite.
    """
    trainer.fit(module, data, ckpt_path=ckpt_path)
    if not all(parameter.isfinite().all() for parameter in module.parameters() if parameter.requires_grad):
        raise UserError("the training diverged: weights are not finite any more; lower model.optimizer.lr")


def shown(path: str | Path) -> str:
    """The path as a person would give it from here."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative


def quoted(value: str) -> str:
    """In Hydra's quotes, where its grammar needs them."""
    return value if re.fullmatch(r"[\w./:-]+", value) else "'" + value.replace("'", "\\'") + "'"


def evaluate(trainer: pl.Trainer, module: GenderModule, data: FaceDataModule) -> dict[str, dict[str, Any]]:
    """Figures of each evaluation split under the final head.

    Raises:
        UserError: the pictures of a split have disappeared.
    """
    outputs: Any = trainer.predict(module, data)
    if len(data.eval_splits) == 1:  # Lightning leaves out the outer list then
        outputs = [outputs]
    figures = {}
    for split, batches in zip(data.eval_splits, outputs):
        probabilities = torch.cat([p for p, _ in batches])
        if not len(probabilities):
            raise UserError(f"not one picture of {split} can be read any more; are the files still there?")
        indices = torch.cat([i for _, i in batches]).tolist()
        faces = [data.faces.splits[split][index] for index in indices]
        labels = np.array([face.label for face in faces])
        people = [face.identity for face in faces]
        figures[split] = metrics.Evaluation(probabilities[None], labels, people).figures(0)
    return figures


def show(figures: dict[str, dict[str, Any]], calibrated: dict[str, Any] | None) -> None:
    """The tables of a finished run."""
    if calibrated:
        print(f"\n{tables.calibration_report(calibrated)}")
    for split, values in figures.items():
        print(f"\n{tables.classification_report(split, values)}")


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        cast(io.TextIOWrapper, stream).reconfigure(errors="backslashreplace")  # names that are not UTF-8 end no run
    main()
