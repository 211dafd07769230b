"""What a run does: compose, fit, calibrate, evaluate, save."""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig

from gender_cls.errors import UserError, printable
from gender_cls.evaluation import report, tables
from gender_cls.evaluation.metrics import Evaluation
from gender_cls.evaluation.robustness import predict_conditions
from gender_cls.files import relative_paths
from gender_cls.inference.arguments import shell_line, start_of
from gender_cls.inference.export import save_model, write_json
from gender_cls.inference.predictor import MODEL_NAME
from gender_cls.inference.runtimes import one_torch_thread
from gender_cls.training.callbacks import ImageLogger, log_final
from gender_cls.training.compose import Run, compose_run, limits, prepare, quieten, user_error
from gender_cls.training.crossfit import HeldOut, calibrate
from gender_cls.training.resume import check_resume


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while training; `ckpt_path` is the checkpoint of the last whole epoch, or None."""

    def __init__(self, where: str, ckpt_path: str | None) -> None:
        super().__init__(where)
        self.ckpt_path = ckpt_path


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train, calibrate, evaluate and save, as a configuration says; nothing global of Hydra is read.

    Args:
        cfg: As `conf/train.yaml` composes it, by the command line or `hydra.compose`; it is left as it is.

    Returns:
        What metrics.json holds: the metrics of dev, where identities are held out, and val; `objective`, which sweeps
        maximize (dev/f1_macro, or val/f1_macro without dev); facts of the fit, the data and the calibration.

    Raises:
        UserError: Something that the user can mend.
        Interrupted: Ctrl-C while training.
    """
    try:
        return _train(prepare(cfg))
    except Exception as error:
        mendable = user_error(error)
        if mendable is None or mendable is error:
            raise
        raise mendable from error


def _train(cfg: DictConfig) -> dict[str, Any]:
    quieten()
    in_sweep = cfg.sweep_job is not None
    run = compose_run(cfg)
    prior = None if in_sweep else cfg.calibration.prior
    held_out = None if prior is None else HeldOut(run.data, run.module.network, prior)
    started = time.monotonic()
    with resumable(run.trainer, cfg.ckpt_path):
        fit(run)
        fitted = {"epochs": run.trainer.current_epoch, "seconds": round(time.monotonic() - started, 1)}
        with one_torch_thread() if run.cached else nullcontext():  # a batch of features is too little to share
            calibrated = None if held_out is None else calibrate(held_out, run.module)
    metrics = evaluate(run)
    name = f"{run.data.eval_splits[0]}/f1_macro"
    faces = run.data.faces
    skipped = relative_paths([path for path, _ in faces.skipped], run.data.source)
    facts = {"fingerprint": faces.fingerprint, "counts": faces.counts(run.data.landmarks)}
    facts["skipped"] = [(path, reason) for path, (_, reason) in zip(skipped, faces.skipped)]
    about = {"data": facts, "calibration": calibrated}
    objective = {"name": name, "value": metrics[run.data.eval_splits[0]]["f1_macro"]}
    found = {**metrics, "objective": objective, "fit": fitted, **about}
    write_json(Path(cfg.run_dir, "metrics.json"), found)
    trainer: Any = run.trainer  # its callbacks are not typed
    saves = not (trainer.fast_dev_run or trainer.overfit_batches)  # else no model that anybody should take
    saves &= not (in_sweep and run.cached)  # the best head of a sweep is trained again in seconds
    model = save(run, {**about, "metrics": metrics}) if saves else None
    if calibrated:
        print(f"\n{tables.calibration_report(calibrated)}")
    for split, values in metrics.items():
        print(f"\n{tables.classification_report(split, values)}")
    if model:
        say_how_to_predict(run, model)
        full = cfg.report == "full" and not in_sweep and not limits(cfg)
        plots = write_report(run, calibrated).plots if full else {}
        for images in (callback for callback in trainer.callbacks if isinstance(callback, ImageLogger)):
            images.log_plots(trainer, metrics, plots)
    settings = {"max_epochs": cfg.trainer.max_epochs, "calibration.prior": str(cfg.calibration.prior)}
    log_final(trainer, {**settings, **run.module.settings(trainer), "weights": cfg.model.weights}, metrics)
    return found


def fit(run: Run) -> None:
    """Train; a `UserError` says so where what was trained is no longer finite."""
    trainer, ckpt_path = run.trainer, run.cfg.ckpt_path
    if ckpt_path:  # before any feature is computed
        run.data.trainer = trainer  # whose device decides the precision of features, which settings name
        check_resume(ckpt_path, run.module, run.module.settings(trainer, run.data), run.cfg.trainer.max_epochs)
    trainer.fit(run.module, run.data, ckpt_path=ckpt_path)
    if not all(parameter.isfinite().all() for parameter in run.module.parameters() if parameter.requires_grad):
        raise UserError("diverged", "the training diverged: weights are not finite; lower model.optimizer.lr")


def evaluate(run: Run) -> dict[str, dict[str, Any]]:
    """Return the metrics of each evaluation split under the final head."""
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


def save(run: Run, about: dict[str, Any]) -> Path:
    """Write the model and return its path. Its JSON is made to be passed on: it names no folder of this machine."""
    hparams, data = run.module.hparams, run.data
    weights = hparams["weights"] and Path(hparams["weights"]).name
    facts: dict[str, Any] = {"weights": {"name": weights, "hash": run.module.weights_hash}}
    facts["weights"]["trainable"] = hparams["trainable"]
    facts["features"] = {key: value for key, value in asdict(data.feature_options).items() if key != "dir"}
    facts["report"] = data.report_settings()
    if found := limits(run.cfg):
        facts["limited"] = found  # by default, predict.py passes over such a model
    return save_model(Path(run.cfg.run_dir), run.module.network, data.views.preprocessing, {**facts, **about})


def say_how_to_predict(run: Run, model: Path) -> None:
    """Print where the model is and a command that predicts with it."""
    image = run.data.faces.splits["val"][0].path
    again = [*start_of("predict"), f"model={shown_path(model)}", f"img={shown_path(image)}"]
    if found := limits(run.cfg):
        print(f"\nnote: predict.py takes this model only if it is named: {', '.join(found)} left images out")
    print(f"\nsaved {printable(shown_path(model))}\n{shell_line(again)}")


def write_report(run: Run, calibrated: dict[str, Any] | None) -> report.Report:
    """Write the report on val, clean and corrupted, and return it."""
    data, network = run.data, run.module.network
    preprocessing, val = data.views.preprocessing, data.faces.splits["val"]
    extractor = data.extractor(network)
    predictions = predict_conditions(network, preprocessing, val, extractor, data.num_workers, data.source)
    source = report.describe_source(data.source, run.module.hparams["weights"])
    model = shown_path(Path(run.cfg.run_dir, MODEL_NAME))
    full = report.build(predictions, model, source, data.report_exclude, calibrated)
    folder = Path(run.cfg.run_dir, "report")
    full.save(folder)
    print(f"\n{tables.corruption_report(full.metrics)}\n{shown_path(folder / report.PAGE)}")
    return full


def shown_path(path: str | Path) -> str:
    """Return the path as a person would give it from here."""
    try:
        relative = os.path.relpath(path)
    except ValueError:  # on Windows: another drive
        return str(path)
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
