"""What loggers show beside the curves."""

from collections.abc import Mapping
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import pytorch_lightning as pl
import torch
from PIL import Image
from pytorch_lightning.loggers import MLFlowLogger, TensorBoardLogger, WandbLogger

from gender_cls.data.sampler import DrawSampler
from gender_cls.errors import ImageError
from gender_cls.evaluation.plots import image_grid, plot_confusion, to_image

if TYPE_CHECKING:
    from gender_cls.data.base import FaceDataModule

ACCEPT_IMAGES = (TensorBoardLogger, WandbLogger, MLFlowLogger)
GRID = 16  # training views
FINAL = ("f1_macro", "f1_female", "f1_male", "accuracy")


class ImageLogger(pl.Callback):
    """Sends training views and plots to each logger that accepts images."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the first training views."""
        data: Any = getattr(trainer, "datamodule", None)
        ours = isinstance(getattr(data, "sampler", None), DrawSampler)
        if ours and any(isinstance(logger, ACCEPT_IMAGES) for logger in trainer.loggers):
            log_image(trainer, "train/views", image_grid(first_views(data, GRID)))

    def log_plots(self, trainer: pl.Trainer, metrics: Mapping[str, Any], plots: Mapping[str, Any]) -> None:
        """Show the confusion matrix of each split's metrics, and the plots (image, caption) of a report."""
        if not any(isinstance(logger, ACCEPT_IMAGES) for logger in trainer.loggers):
            return
        for split, values in metrics.items():
            title = f"{split}: {values['images']} images of {values['identities']} identities"
            log_image(trainer, f"{split}/confusion", to_image(plot_confusion({title: values})))
        for name, (plot, _) in plots.items():
            log_image(trainer, f"report/{name}", plot)


def log_image(trainer: pl.Trainer, name: str, image: Image.Image) -> None:
    """Send an image to each logger that accepts images."""
    image = image.convert("RGB")
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, np.asarray(image), trainer.global_step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [image])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, image, f"{name}.png")


def log_final(trainer: pl.Trainer, hyper_parameters: dict[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Log hyper-parameters and final metrics to every logger; TensorBoard shows them as a line of HPARAMS."""
    final = {f"final/{split}_{name}": values[name] for split, values in metrics.items() for name in FINAL}
    final = {name: value for name, value in final.items() if value is not None}  # of a class without images
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(hyper_parameters, final)
        else:
            logger.log_hyperparams(hyper_parameters)
            logger.log_metrics(final, trainer.global_step)
        logger.finalize("success")


def first_views(data: "FaceDataModule", number: int) -> torch.Tensor:
    """Return the first training views of epoch 0 as RGB in 0..1 (N, 3, size, size)."""
    data.sampler.set_epoch(0)
    views: list[torch.Tensor] = []
    for index, draw in islice(data.sampler, number):
        face = data.faces.splits["train"][index]
        with suppress(ImageError):
            number = draw % data.cached_views if data.features else draw
            views += data.views(data.decoder.load(face.path), face.digest, [number])
    return torch.stack(views) / 255
