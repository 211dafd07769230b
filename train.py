"""Train a head on the frozen ResNet-18, evaluate it and save it. `python train.py --help` shows the commands."""

import logging
import math
import os
import shlex
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import TensorBoardLogger

from gender_cls import report
from gender_cls.checks import check
from gender_cls.datamodule import FaceDataModule
from gender_cls.errors import UserError
from gender_cls.export import save_model, write_json
from gender_cls.module import GenderModule
from gender_cls.network import GenderNet, safe_load
from gender_cls.sources import Splits
from gender_cls.sweep import ERROR_FILE
from gender_cls.transforms import Preprocessing

log = logging.getLogger(__name__)


@hydra.main(version_base="1.3", config_path="conf", config_name="train")
def main(cfg: DictConfig) -> float:
    """Run one job; what the user can mend ends in one line, and a failed job of a sweep does not end the sweep."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    try:
        return train(cfg, run_dir)
    except Exception as error:
        mendable = _user_error(error)
        text = str(mendable) if mendable else f"{type(error).__name__}: {error}"
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            (run_dir / ERROR_FILE).write_text(" ".join(text.split()) + "\n")
            log.error("this job failed: %s", text, exc_info=None if mendable else error)
            return math.nan
        if mendable is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.exit(f"error: {text}")


def _user_error(error: BaseException | None) -> UserError | None:
    """The project's own error, also where Hydra or a worker process has wrapped it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def train(cfg: DictConfig, run_dir: Path) -> float:
    """Compose, fit, evaluate, save.

    Args:
        cfg: As `conf/train.yaml` composes it.
        run_dir: Where everything is written.

    Returns:
        dev/f1_macro, or val/f1_macro where no people are held out, after the last epoch.
    """
    quieten()
    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    splits = instantiate(cfg.data.source)
    network = GenderNet(cfg.model.weights)
    data = make_data(cfg, splits)
    if HydraConfig.get().mode == RunMode.RUN or HydraConfig.get().job.num == 0:  # once in a sweep
        print(report.describe_data(data.faces))
    module = GenderModule(
        network,
        instantiate(cfg.model.optimizer),
        instantiate(cfg.model.scheduler),
        class_counts=data.class_counts,
        class_weight=cfg.model.class_weight,
        eval_splits=data.eval_splits,
    )
    trainer = instantiate(
        cfg.trainer,
        callbacks=list(instantiate(cfg.callbacks).values()),
        logger=instantiate(cfg.logger),
        default_root_dir=run_dir,
    )
    if trainer.world_size > 1:
        raise UserError("trainer.devices must be 1: the order of the draws is one device's; use a sweep for more")
    if cfg.ckpt_path:
        check_checkpoint(cfg.ckpt_path, module)
    log_start(trainer, data)
    started = time.monotonic()
    fit(trainer, module, data, cfg.ckpt_path, run_dir)
    fitted = {"epochs": trainer.current_epoch, "seconds": round(time.monotonic() - started, 1)}
    figures = evaluate(trainer, module, data)
    log_end(trainer, cfg, figures)
    return save(cfg, run_dir, data, network, figures, fitted)


def quieten() -> None:
    """Leave out what Lightning says of things that are meant to be so."""
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training")  # that is the frozen part
    warnings.filterwarnings("ignore", ".*does not have many workers")  # more only helps where there are more cores
    warnings.filterwarnings("ignore", ".*exists and is not empty")  # Hydra has just made the run folder
    warnings.filterwarnings("ignore", ".*The number of training batches")  # few steps an epoch on small data
    warnings.filterwarnings("ignore", "The dirpath has changed")  # a resumed run has a folder of its own


def make_data(cfg: DictConfig, splits: Splits) -> FaceDataModule:
    """Check the faces, hold people out and make the loaders."""
    faces = check(splits, cfg.data.identity).hold_out(cfg.data.holdout, cfg.data.split_seed)
    return FaceDataModule(
        faces,
        Preprocessing(size=cfg.data.size),
        cfg.data.augment,
        batch_size=cfg.data.batch_size,
        num_workers=cfg.data.num_workers,
        balanced_sampler=cfg.data.balanced_sampler,
        seed=cfg.seed,
        view_seed=cfg.data.view_seed,
    )


def check_checkpoint(ckpt_path: str, module: GenderModule) -> None:
    """Refuse what can't be resumed before any work is done.

    Raises:
        UserError: the file is missing, damaged, a pickle, no checkpoint, or another network's.
    """
    source = f"ckpt_path={ckpt_path}"
    if not os.path.isfile(ckpt_path):
        raise UserError(f"{source}: no such file; a run leaves last.ckpt in its folder after each epoch")
    checkpoint = safe_load(ckpt_path, source)
    if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states", "loops"} <= set(checkpoint):
        raise UserError(f"{source} is no checkpoint of a run; give the last.ckpt of a run folder")
    module.on_load_checkpoint(checkpoint)


def fit(trainer: pl.Trainer, module: GenderModule, data: FaceDataModule, ckpt_path: str | None, run_dir: Path) -> None:
    """Train; on Ctrl-C say how to go on from the last whole epoch."""
    try:
        trainer.fit(module, data, ckpt_path=ckpt_path)
    except SystemExit:  # Lightning's answer to Ctrl-C
        last = run_dir / "last.ckpt"
        if last.exists():
            words = [w for w in HydraConfig.get().overrides.task if not w.startswith("ckpt_path=")]
            command = shlex.join(["python", "train.py", *words, f"ckpt_path={last}"])
            print(f"\nstopped in epoch {trainer.current_epoch}; to go on from the last whole epoch:\n{command}")
        else:
            print("\nstopped before the first epoch ended; nothing to go on from")
        raise


def evaluate(trainer: pl.Trainer, module: GenderModule, data: FaceDataModule) -> dict[str, dict[str, Any]]:
    """Figures of each evaluation split under the final head."""
    outputs: Any = trainer.predict(module, data)
    if len(data.eval_splits) == 1:  # Lightning leaves out the outer list then
        outputs = [outputs]
    figures = {}
    for split, batches in zip(data.eval_splits, outputs):
        probabilities = torch.cat([p for p, _ in batches])
        indices = torch.cat([i for _, i in batches]).tolist()
        figures[split] = report.evaluate(probabilities, [data.faces.splits[split][i] for i in indices])
    return figures


def log_start(trainer: pl.Trainer, data: FaceDataModule) -> None:
    """TensorBoard: what the network is trained on, as it sees it."""
    if isinstance(trainer.logger, TensorBoardLogger):
        views, names = data.first_views(32)
        trainer.logger.experiment.add_image("train/views", report.contact_sheet(views))
        trainer.logger.experiment.add_text("train/views_labels", ", ".join(names))


def log_end(trainer: pl.Trainer, cfg: DictConfig, figures: dict[str, dict[str, Any]]) -> None:
    """TensorBoard: confusion matrices, and HPARAMS with the final metrics."""
    if not isinstance(trainer.logger, TensorBoardLogger):
        return
    for split, values in figures.items():
        figure = report.confusion_figure(split, values)
        trainer.logger.experiment.add_figure(f"{split}/confusion", figure, trainer.global_step)
    chosen: Any = OmegaConf.to_container(OmegaConf.masked_copy(cfg, ["seed", "data", "model", "trainer"]), resolve=True)
    metrics = {
        f"final/{s}_{n}": v[n] for s, v in figures.items() for n in ("f1_macro", "f1_female", "f1_male", "accuracy")
    }
    trainer.logger.log_hyperparams(chosen, metrics)
    trainer.logger.finalize("success")


def save(
    cfg: DictConfig,
    run_dir: Path,
    data: FaceDataModule,
    network: GenderNet,
    figures: dict[str, dict[str, Any]],
    fitted: dict[str, float],
) -> float:
    """Write metrics.json and the model, show the figures, and return the one that a sweep ranks by."""
    split = data.eval_splits[0]
    objective = {"name": f"{split}/f1_macro", "value": figures[split]["f1_macro"]}
    faces = data.faces
    about = {"fingerprint": faces.fingerprint, "counts": faces.counts(), "skipped": faces.skipped}
    write_json(run_dir / "metrics.json", {**figures, "objective": objective, "data": about, "fit": fitted})
    weights = {"name": cfg.model.weights, "hash": network.backbone_hash()}
    path = save_model(run_dir, network, data.preprocessing, {"weights": weights, "data": about, "metrics": figures})
    for name, values in figures.items():
        print(f"\n{report.classification_report(name, values)}")
    if split == "val":
        print("no people are held out (data.holdout=0): val/f1_macro is returned, so a sweep would choose on val")
    picture = faces.splits["val"][0].path
    print(f"\nsaved {path}\npython predict.py {shlex.quote(f'model={path}')} {shlex.quote(f'img={picture}')}")
    return float(objective["value"])


if __name__ == "__main__":
    main()
