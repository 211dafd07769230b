"""GenderModule: how GenderNet is trained and watched."""

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torchmetrics import MetricCollection

from gender_cls.errors import UserError
from gender_cls.metrics import collection
from gender_cls.network import GenderNet
from gender_cls.weights import safe_load

Batch = list[torch.Tensor]  # what GenderNet takes (N, ...), labels (N), indices (N)


class GenderModule(pl.LightningModule):
    """Binary cross-entropy on the logit, of what is not frozen.

    Args:
        network: Whose head, and whatever of its backbone is not frozen, is trained.
        optimizer: Takes the trainable parameters.
        scheduler: Takes the optimizer; it is stepped once an epoch. A `OneCycleLR` is stepped after each batch, up to
            the optimizer's learning rates and down, over the whole training.
        backbone_lr: Learning rate of what is trained of the backbone; None: the head's.
        label_smoothing: Share s, in [0, 1), of a label that is spread evenly over both classes: s / 2 and 1 - s / 2 in
            the place of 0 and 1, also in the losses that are logged.
        class_counts: Training pictures (female, male).
        class_weight: Weigh the term of male in the loss by `n / (2 n_male)`, as the recipe does.
        eval_splits: Names of the evaluation loaders, in their order.
        settings: What a resumed run must have in common with this one, by configuration key; plain values.
    """

    def __init__(
        self,
        network: GenderNet,
        optimizer: Callable[[Iterable[nn.Parameter] | Iterable[dict[str, Any]]], Optimizer],
        scheduler: Callable[..., Any] | None = None,
        *,
        backbone_lr: float | None = None,
        label_smoothing: float = 0.0,
        class_counts: Sequence[int] = (1, 1),
        class_weight: bool = True,
        eval_splits: Sequence[str] = ("val",),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.backbone_lr = backbone_lr
        self.label_smoothing = label_smoothing
        self.pos_weight = sum(class_counts) / (2 * class_counts[1]) if class_weight else 1.0
        self.eval_splits = list(eval_splits)
        self._metrics = nn.ModuleDict({split: collection() for split in self.eval_splits})
        self.weights_hash = network.backbone_hash()  # before any training
        self.settings = {**(settings or {}), "model.weights": self.weights_hash}
        self.strict_loading = False  # a checkpoint holds what was trained, see on_save_checkpoint

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (N), float32 also under bf16, of what GenderNet takes."""
        return self.network(inputs).float()

    def metrics(self, split: str) -> MetricCollection:
        """What is counted of one of `eval_splits` in this epoch."""
        return cast(MetricCollection, self._metrics[split])

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor | None:
        """The loss of one batch; None, which skips the step, where not one of its pictures could be read."""
        inputs, labels, _ = batch
        if not len(labels):
            return None
        loss = self.loss(self(inputs), labels)
        self._loss_sum += loss.detach() * len(labels)
        self._loss_count += len(labels)
        if (self.global_step + 1) % cast(Any, self.trainer).log_every_n_steps == 0:
            self.log("train/loss_step", loss, prog_bar=True)
        return loss

    def on_train_epoch_start(self) -> None:
        """Start the sum of the losses anew."""
        self._loss_sum = torch.zeros((), device=self.device)
        self._loss_count = 0

    def on_train_epoch_end(self) -> None:
        """Log the mean loss of the epoch; `self.log(on_epoch=True)` in each step takes as long as the step itself."""
        self.log("train/loss", self._loss_sum / max(1, self._loss_count))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Loss and metrics of one batch of `eval_splits[dataloader_idx]`."""
        inputs, labels, _ = batch
        if not len(labels):
            return
        split = self.eval_splits[dataloader_idx]
        logits = self(inputs)
        loss = self.loss(logits, labels)
        self.log(f"{split}/loss", loss, add_dataloader_idx=False, batch_size=len(labels))
        self.metrics(split).update((logits.sigmoid() > 0.5).long(), labels.long())

    def on_validation_epoch_end(self) -> None:
        """Log the metrics of the whole split; a mean over batches would be another number."""
        for split in self.eval_splits:
            values = self.metrics(split).compute()
            self.log_dict({f"{split}/{name}": value for name, value in values.items() if name != "f1_macro"})
            self.log(f"{split}/f1_macro", values["f1_macro"], prog_bar=True)
            self.metrics(split).reset()

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities of male (N) and the indices (N) of the pictures that they belong to."""
        inputs, _, indices = batch
        if not len(indices):
            return torch.zeros(0), indices.cpu()
        features = inputs if inputs.ndim == 2 else self.network.features(inputs)
        with torch.autocast(self.device.type, enabled=False):  # a logit in bf16 has steps of 1/64
            return self.network.head(features.float()).squeeze(1).sigmoid().cpu(), indices.cpu()

    def configure_optimizers(self) -> Any:
        """The optimizer over what is trainable, and the scheduler if there is one."""
        groups: list[dict[str, Any]] = [{"params": list(self.network.head.parameters())}]
        trained = [parameter for parameter in self.network.backbone.parameters() if parameter.requires_grad]
        if trained:
            groups.append({"params": trained, **({} if self.backbone_lr is None else {"lr": self.backbone_lr})})
        optimizer = self.optimizer(groups)
        scheduler, interval = self.make_scheduler(optimizer, self._steps() if by_step(self.scheduler) else 0)
        if scheduler is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": interval}}

    def make_scheduler(self, optimizer: Optimizer, steps: int) -> tuple[Any, str]:
        """The scheduler of a training of so many steps, if there is one, and when it is stepped: each epoch or step."""
        if self.scheduler is None:
            return None, "epoch"
        if not by_step(self.scheduler):
            return self.scheduler(optimizer), "epoch"
        most = [group["lr"] for group in optimizer.param_groups]
        try:
            return self.scheduler(optimizer, max_lr=most, total_steps=steps), "step"
        except ZeroDivisionError as error:
            raise UserError(f"model.scheduler: {steps} steps are too few; give more trainer.max_epochs") from error

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave what is frozen out (45 MB an epoch) and note what a resumed run must have in common."""
        checkpoint["settings"] = self.settings
        if "averaging_state" not in checkpoint:  # Lightning's callback that averages weights reads the whole state
            checkpoint["state_dict"] = self._trained_part(checkpoint["state_dict"])

    def on_load_checkpoint(self, checkpoint: dict[str, Any], source: str = "ckpt_path") -> None:
        """Refuse what would not go on as if never stopped; `source` names it in errors.

        Raises:
            UserError: the checkpoint is another architecture's, or a setting of its run was another one.
        """
        wanted = {name: tuple(tensor.shape) for name, tensor in self._trained_part(self.state_dict()).items()}
        state = self._trained_part(checkpoint["state_dict"])
        found = {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
        if wanted != found:
            raise UserError(
                f"{source} holds {_brief(found)}, not {_brief(wanted)}: it is another architecture's; "
                "give the last.ckpt of a run of this one"
            )
        before = checkpoint.get("settings") or {}
        for key, value in self.settings.items():
            if before.get(key) != value:
                raise UserError(
                    f"{source} was trained with another {key} ({before.get(key)}, now {value}): "
                    "resume with the words of that run"
                )

    def loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Mean weighted cross-entropy of logits (N) and labels (N)."""
        weight = torch.tensor(self.pos_weight, device=logits.device)
        smooth = labels + self.label_smoothing * (0.5 - labels)
        return functional.binary_cross_entropy_with_logits(logits, smooth, pos_weight=weight)

    def _steps(self) -> int:
        """Of the whole training; Lightning's own estimate starts to read before a checkpoint has said which epoch."""
        trainer: Any = self.trainer
        batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        return math.ceil(batches / trainer.accumulate_grad_batches) * int(trainer.max_epochs)

    def _trained_part(self, state: dict[str, Any]) -> dict[str, Any]:
        frozen = self.network.is_frozen
        return {name: value for name, value in state.items() if not frozen(name.removeprefix("network."))}


def by_step(scheduler: Callable[..., Any] | None) -> bool:
    """Whether a scheduler is stepped after each batch, which is for a training of fixed length."""
    return getattr(scheduler, "func", None) is OneCycleLR


def check_checkpoint(ckpt_path: str, module: GenderModule, max_epochs: int) -> None:
    """Refuse what can't be resumed before any work is done.

    Raises:
        UserError: the file is missing, damaged, a pickle, no checkpoint, another run's, or trained for longer.
    """
    source = f"ckpt_path={ckpt_path}"
    if not os.path.isfile(ckpt_path):
        raise UserError(f"{source}: no such file; a run leaves last.ckpt in its folder after each epoch")
    checkpoint = safe_load(ckpt_path, source)
    if not isinstance(checkpoint, dict) or not {"state_dict", "optimizer_states", "loops", "epoch"} <= set(checkpoint):
        raise UserError(f"{source} is no checkpoint of a run; give the last.ckpt of a run folder")
    module.on_load_checkpoint(checkpoint, source)
    done = checkpoint["epoch"] + 1
    if max_epochs < done:  # as many is right: what comes after the last epoch may be missing
        raise UserError(f"{source} has {done} epochs already; give trainer.max_epochs={done} or more to go on")


def _brief(shapes: dict[str, tuple[int, ...]]) -> str:
    text = ", ".join(f"{name} {shape}" for name, shape in list(shapes.items())[:2])
    return text + (", ..." if len(shapes) > 2 else "") or "nothing"
