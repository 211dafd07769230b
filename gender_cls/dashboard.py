"""What TensorBoard shows beside the curves; without its logger, nothing."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.loggers import TensorBoardLogger

from gender_cls.datamodule import FaceDataModule
from gender_cls.figures import confusion_figure, contact_sheet
from gender_cls.report import Report

Figures = Mapping[str, Mapping[str, Any]]  # of each split, as `metrics.Evaluation` gives them


def show_views(trainer: pl.Trainer, data: FaceDataModule) -> None:
    """What the head is trained on first."""
    if isinstance(trainer.logger, TensorBoardLogger):
        views, names = data.first_views(16)
        trainer.logger.experiment.add_image("train/views", contact_sheet(views))
        trainer.logger.experiment.add_text("train/views_labels", ", ".join(names))


def show_confusion(trainer: pl.Trainer, figures: Figures) -> None:
    """The confusion matrix of each split."""
    if isinstance(trainer.logger, TensorBoardLogger):
        for split, values in figures.items():
            figure = confusion_figure({f"{split}: {values['pictures']} pictures of {values['people']} people": values})
            trainer.logger.experiment.add_figure(f"{split}/confusion", figure, trainer.global_step)


def show_report(trainer: pl.Trainer, report: Report) -> None:
    """Its figures."""
    if isinstance(trainer.logger, TensorBoardLogger):
        for name, (figure, _) in report.figures.items():
            trainer.logger.experiment.add_figure(f"report/{name}", figure, trainer.global_step, close=False)


def show_figures(trainer: pl.Trainer, hyper_parameters: dict[str, Any], figures: Figures) -> None:
    """A line of HPARAMS, with the final metrics."""
    if isinstance(trainer.logger, TensorBoardLogger):
        names = ("f1_macro", "f1_female", "f1_male", "accuracy")
        metrics = {f"final/{split}_{name}": values[name] for split, values in figures.items() for name in names}
        trainer.logger.log_hyperparams(hyper_parameters, metrics)
        trainer.logger.finalize("success")
