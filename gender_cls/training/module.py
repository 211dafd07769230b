"""The LightningModule: how `GenderNet` is trained and watched."""

import os
import warnings
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer

from gender_cls.errors import UserError, check_boolean, check_integer, check_share
from gender_cls.evaluation.metrics import metric_collection
from gender_cls.models.network import GenderNet
from gender_cls.training.ema import WeightAverage
from gender_cls.training.resume import check_backbone, check_settings, check_shapes
from gender_cls.training.schedules import check_monitor, check_rate, from_run, make_optimizer, make_scheduler, plain

ADAM = {"_target_": "torch.optim.Adam", "lr": 1e-4}
REPLAYED = ("lr", "betas", "momentum")  # what schedulers change of a parameter group


class GenderModule(pl.LightningModule):
    """Binary cross-entropy on the logit of a `GenderNet`, minimized over what is not frozen.

    Arguments are plain values, so that `load_from_checkpoint` needs the file alone; the frozen backbone, which it does
    not hold, is built from `weights`, and its hash is compared.

    Args:
        backbone: Name of a classification network of torchvision, or efficientnet_lite0.
        weights: Name of the backbone's weights, path to a state dict, or None for random ones.
        trainable: head, all, or the part of the backbone that training starts from, such as layer4.
        optimizer: `_target_` of the optimizer and its arguments; by default Adam with a learning rate of 1e-4.
        scheduler: Lightning's dictionary (`scheduler`, `interval`, `frequency`, `monitor`), in which `scheduler` has
            `_target_` and arguments. `total_steps` and `max_lr`, where its signature has them and they are not given,
            are the length of the run and the learning rates of the optimizer.
        backbone_lr: Learning rate of what is trained of the backbone; None for that of the head.
        class_weight: Whether to weight the loss of male images by n / (2 n_male), counted by the data module.
        label_smoothing: s in [0, 1): targets are s / 2 and 1 - s / 2 instead of 0 and 1, in logged losses, too.
        seed: Seed of the head's initialization and of random weights; None to draw from torch's global generator.

    Attributes:
        network: The `GenderNet`.
        pos_weight: Weight of male images in the loss.
        weights_hash: Hash of the backbone before training.
        steps: Learning rate and momentum of the head at each optimizer step, as [number of steps, values] runs.

    Raises:
        UserError: A value is out of its range, or the weights can't be loaded.
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        weights: str | os.PathLike[str] | None = "IMAGENET1K_V1",
        trainable: str = "head",
        *,
        optimizer: Mapping[str, Any] | None = None,
        scheduler: Mapping[str, Any] | None = None,
        backbone_lr: float | None = None,
        class_weight: bool = True,
        label_smoothing: float = 0.0,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        weights = None if weights is None else str(weights)
        optimizer = plain(optimizer or ADAM)
        scheduler = plain(scheduler) if scheduler else None
        check_share("model.label_smoothing", label_smoothing, zero=True)
        check_boolean("model.class_weight", class_weight)
        check_rate("model.optimizer.lr", optimizer.get("lr", 1))
        check_rate("model.backbone_lr", 1 if backbone_lr is None else backbone_lr)
        if backbone_lr is not None and trainable == "head":
            raise UserError("conflict", "model.backbone_lr needs a trained backbone: model.trainable=layer4 or all")
        if scheduler:
            check_monitor("model.scheduler.monitor", scheduler.get("monitor"), ("dev",))
        if seed is not None:
            check_integer("seed", seed, 0)
        self.save_hyperparameters(logger=False)
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.default_generator.manual_seed(seed)
            self.network = GenderNet(weights, backbone, trainable)
        self.pos_weight = 1.0
        self.weights_hash = self.network.backbone_hash()
        self.steps: list[list[Any]] = []
        self.eval_splits = ["val"]
        self._metrics = nn.ModuleDict({split: metric_collection() for split in ("dev", "val")})

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (N), float32 also under bf16, of normalized images (N, 3, H, W) or features (N, F)."""
        return self.network(inputs).float()

    def prepare_data(self) -> None:
        """Refuse monitors of the split that is only reported, before any feature is computed."""
        trainer: Any = self.trainer
        splits = getattr(trainer.datamodule, "eval_splits", ["val"])
        if trainer.state.fn == "fit":
            check_monitor("model.scheduler.monitor", (self.hparams["scheduler"] or {}).get("monitor"), splits)
            for callback in trainer.callbacks:
                check_monitor(f"{type(callback).__name__}: monitor", getattr(callback, "monitor", None), splits)

    def setup(self, stage: str) -> None:
        """Take splits and class counts from the data module."""
        trainer: Any = self.trainer
        self.eval_splits = list(getattr(trainer.datamodule, "eval_splits", ["val"]))
        if stage != "fit":
            return
        warnings.filterwarnings("ignore", ".*module.s. in eval mode at the start of training")  # the frozen part
        counts = getattr(trainer.datamodule, "class_counts", None)
        if self.hparams["class_weight"] and counts:
            self.pos_weight = sum(counts) / (2 * counts[1])
        self.steps = []

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor | None:
        """Return the loss of a batch; None, which skips the step, where none of its images could be read."""
        inputs, labels, _ = batch
        if not len(labels):
            return None
        self._replayed = inputs.ndim == 2
        loss = self.loss(self(inputs), labels)
        self._loss_sum += loss.detach() * len(labels)
        self._loss_count += len(labels)
        trainer: Any = self.trainer
        if (self.global_step + 1) % trainer.log_every_n_steps == 0:
            self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Record what calibration folds on stored features replay, so that they need neither scheduler nor metric."""
        values = {key: optimizer.param_groups[0][key] for key in REPLAYED if key in optimizer.param_groups[0]}
        if self.steps and self.steps[-1][1] == values:
            self.steps[-1][0] += 1
        elif self._replayed:
            self.steps.append([1, values])

    def on_train_epoch_start(self) -> None:
        """Reset the sum of losses."""
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_count = 0

    def on_train_epoch_end(self) -> None:
        """Log the mean loss; `self.log(on_epoch=True)` in each step would take as long as the step itself."""
        self.log("train/loss", self._loss_sum / max(1, self._loss_count))

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Update loss and metrics of `eval_splits[dataloader_idx]`."""
        self._evaluate(batch, self.eval_splits[dataloader_idx])

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of whole splits; means over batches would be other numbers."""
        for split in self.eval_splits:
            self._log_metrics(split)

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        """Update loss and metrics of val."""
        self._evaluate(batch, "val")

    def on_test_epoch_end(self) -> None:
        """Log the metrics of val."""
        self._log_metrics("val")

    def predict_step(self, batch: list[torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        """Return `p_male` (N), in 0..1, and `index` (N), the places of the images in their split."""
        inputs, _, index = batch
        if not len(index):
            return {"p_male": torch.zeros(0), "index": index.cpu()}
        features = inputs if inputs.ndim == 2 else self.network.features(inputs)
        with torch.autocast(self.device.type, enabled=False):  # a logit in bf16 has steps of 1/64
            p_male = self.network.head(features.float()).squeeze(1).sigmoid()
        return {"p_male": p_male.cpu(), "index": index.cpu()}

    def configure_optimizers(self) -> Any:
        """Return the optimizer of what is trainable, and the scheduler if there is one."""
        groups: list[dict[str, Any]] = [{"params": list(self.network.head.parameters())}]
        trained = [parameter for parameter in self.network.backbone.parameters() if parameter.requires_grad]
        if trained:
            rate = self.hparams["backbone_lr"]
            groups.append({"params": trained, **({} if rate is None else {"lr": rate})})
        optimizer = make_optimizer(self.hparams["optimizer"], groups)
        if not self.hparams["scheduler"]:
            return optimizer
        scheduler = make_scheduler(self.hparams["scheduler"], optimizer, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave out what is frozen (45 MB an epoch), and add what a resumed run needs."""
        checkpoint |= {"settings": self.settings(self.trainer), "pos_weight": self.pos_weight, "steps": self.steps}
        if "averaging_state" not in checkpoint:  # Lightning's callback that averages weights reads the whole state
            checkpoint["state_dict"] = self.trained_part(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what is no tensor; a `UserError` says so where architecture or frozen backbone are others."""
        check_shapes(checkpoint, self, "the checkpoint")
        check_backbone(checkpoint, self, "the checkpoint")
        if self._trainer is not None and self._trainer.state.fn == "fit":
            check_settings(checkpoint, self.settings(self._trainer), "the checkpoint")
        self.pos_weight, self.steps = checkpoint["pos_weight"], checkpoint["steps"]

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load what was trained; the frozen part, which checkpoints leave out, stays as it is."""
        own = self.state_dict()
        kept = {name: own[name] for name in own.keys() - self.trained_part(own).keys()}
        return super().load_state_dict({**kept, **state_dict}, strict, assign)

    def settings(self, trainer: Any, data: Any = None) -> dict[str, Any]:
        """Return what a resumed run must have in common with the first one, by configuration key, as plain values."""
        data = data or trainer.datamodule
        own = {f"model.{key}": value for key, value in self.hparams.items() if key not in ("weights", "seed")}
        averages = [callback.decay for callback in trainer.callbacks if isinstance(callback, WeightAverage)]
        fixed = bool(self.hparams["scheduler"]) and "total_steps" in from_run(self.hparams["scheduler"])
        return {
            **(data.settings(self.network) if hasattr(data, "settings") else {}),
            **own,
            "model.weights": self.weights_hash,
            "trainer.precision": trainer.precision,
            "callbacks.average": averages,
            **({"trainer.max_epochs": trainer.max_epochs} if fixed else {}),
        }

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the mean weighted cross-entropy of logits (N) and labels (N)."""
        weight = torch.tensor(self.pos_weight, device=logits.device)
        targets = labels + self.hparams["label_smoothing"] * (0.5 - labels)
        return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight)

    def _evaluate(self, batch: list[torch.Tensor], split: str) -> None:
        inputs, labels, _ = batch
        if not len(labels):
            return
        logits = self(inputs)
        loss = self.loss(logits, labels)
        self.log(f"{split}/loss", loss, add_dataloader_idx=False, batch_size=len(labels))
        self._metrics[split].update((logits.sigmoid() > 0.5).long(), labels.long())  # type: ignore[operator]

    def _log_metrics(self, split: str) -> None:
        metrics: Any = self._metrics[split]
        values = metrics.compute()
        self.log_dict({f"{split}/{name}": value for name, value in values.items() if name != "f1_macro"})
        self.log(f"{split}/f1_macro", values["f1_macro"], prog_bar=True)
        metrics.reset()

    def trained_part(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what of a state dict of this module is trained."""
        frozen = self.network.is_frozen
        return {name: value for name, value in state.items() if not frozen(name.removeprefix("network."))}
