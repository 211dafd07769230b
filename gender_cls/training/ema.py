"""Weights averaged over the steps of a training, so that no epoch has to be chosen."""

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import WeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from gender_cls.errors import check_share


class WeightAverage(WeightAveraging):
    """Lightning's callback, for an exponential moving average that leaves what is frozen exactly as it is.

    `EMAWeightAveraging` computes decay * a + (1 - decay) * b, which is not a where b is a; this computes
    a + (1 - decay) * (b - a), on the device of the training, and copies it also where a resumed training had ended.

    Args:
        decay: Share, in [0, 1), of the average that is kept at each step.
    """

    def __init__(self, decay: float) -> None:
        check_share("callbacks.average.decay", decay, zero=True)
        self.decay = decay
        super().__init__(multi_avg_fn=get_ema_multi_avg_fn(decay))  # type: ignore[no-untyped-call]

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Start the average where the module will be, which is not there yet."""
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        """Copy the average to the module."""
        self._copy_average_to_current(pl_module)
