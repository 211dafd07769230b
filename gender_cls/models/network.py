"""GenderNet: a backbone, all or a part of it frozen, and one linear head."""

import hashlib

import torch
from torch import nn

from gender_cls.errors import UserError
from gender_cls.models.zoo import find_backbone

COUNTER = "num_batches_tracked"  # of BatchNorm; it has no effect in evaluation mode


class GenderNet(nn.Module):
    """An ImageNet network whose last linear layer is replaced by the head, `Linear(F, 1)`; F is 512 for resnet18.

    Frozen parts never change: they have no gradient, and they stay in evaluation mode after `train()`, so that no
    BatchNorm statistic drifts.

    Args:
        weights: Name of torchvision's weights, such as IMAGENET1K_V1; path to a state dict of the same network, with
            or without its last layer, of any float type; or None for random weights.
        backbone: Name of a classification network of torchvision, or efficientnet_lite0.
        trainable: head; or all; or a part of the backbone, such as layer4, for that part and everything after it in
            the order of `named_modules`.

    Attributes:
        last: Name of the layer that the head replaces.

    Raises:
        UserError: The weights can't be read or belong to another network, or there is no such backbone or part.
    """

    def __init__(
        self, weights: str | None = "IMAGENET1K_V1", backbone: str = "resnet18", trainable: str = "head"
    ) -> None:
        super().__init__()
        self.backbone_name, self.trainable = backbone, trainable
        entry = find_backbone(backbone)
        self.backbone = entry.build()
        linear = [(name, part) for name, part in self.backbone.named_modules() if isinstance(part, nn.Linear)]
        if not linear or linear[-1][1].bias is None:
            what = "has no linear layer with a bias at its end, for the head to replace; give another"
            raise UserError("bad-value", f"model.backbone={backbone} {what}")
        self.last, last = linear[-1]
        self.backbone.set_submodule(self.last, nn.Identity())
        if weights is not None:
            self._load(self.backbone, entry.read(str(weights)), f"model.weights={weights}")
        self.backbone.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.head = nn.Linear(last.in_features, 1)
        self._frozen = self._frozen_parts()
        for module in self._frozen.values():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (N), positive for male, of normalized images (N, 3, H, W) or of their features (N, F)."""
        return self.head(inputs if inputs.ndim == 2 else self.features(inputs)).squeeze(1)

    def check_size(self, size: int, training_size: int | None) -> None:
        """Raise a `UserError` if the backbone is for images of another side, in pixels, as a ViT is."""
        side = getattr(self.backbone, "image_size", None)
        if side and {size, training_size or side} != {side}:
            way_out = f"give data.size={side} data.augment.size=null"
            raise UserError("conflict", f"a {self.backbone_name} takes {side} alone; {way_out}")

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (N, F) of normalized images (N, 3, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable != "head"):
            return self.backbone(images.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> "GenderNet":
        """Set the training mode of everything that is not frozen."""
        super().train(mode)
        for module in self._frozen.values():
            module.training = False
        return self

    def is_frozen(self, name: str) -> bool:
        """Return whether the value under that name in `state_dict()` never changes."""
        part, _, _ = name.removeprefix("backbone.").rpartition(".")
        return name.startswith("backbone.") and part in self._frozen

    def plain_state(self) -> dict[str, torch.Tensor]:
        """Return the state dict of the plain network with `Linear(F, 1)` as its last layer, on the CPU."""
        state = self.backbone.state_dict()
        state |= {f"{self.last}.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def load_plain_state(self, state: dict[str, torch.Tensor], source: str) -> None:
        """Load a state dict as `plain_state` returns it, or raise a `UserError` that names `source`."""
        if not {f"{self.last}.weight", f"{self.last}.bias"} <= set(state):
            what = f"{self.last}.weight and {self.last}.bias: it is a backbone, not a trained model"
            raise UserError("wrong-network", f"{source} holds no {what}")
        self._load(self.head, state, source, prefix=f"{self.last}.")
        self._load(self.backbone, state, source)

    def backbone_hash(self) -> str:
        """Return a hash of the backbone's names and values, equal for equal weights however they were stored."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            if not name.endswith(COUNTER):
                digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def _frozen_parts(self) -> dict[str, nn.Module]:
        parts = dict(self.backbone.named_modules())
        if self.trainable in ("head", "all"):
            return parts if self.trainable == "head" else {}
        if not self.trainable or not list(parts.get(self.trainable, nn.Identity()).parameters()):
            known = ", ".join(name for name, part in self.backbone.named_children() if list(part.parameters()))
            way_out = f"give head, all, or a part of {self.backbone_name} ({known})"
            raise UserError("bad-value", f"model.trainable={self.trainable}: {way_out}")
        names = list(parts)
        return {name: parts[name] for name in names[: names.index(self.trainable)]}

    def _load(self, module: nn.Module, state: dict[str, torch.Tensor], source: str, prefix: str = "") -> None:
        wanted = {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
        for name, tensor in wanted.items():
            if name.endswith(COUNTER):  # weights from before torch 0.4.1, such as IMAGENET1K_V1, have none
                state = {name: tensor, **state}
            if name not in state:
                raise UserError("wrong-network", f"{source} has no {name}: it is not a {self.backbone_name}")
            if state[name].shape != tensor.shape:
                what = f"{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}"
                raise UserError("wrong-network", f"{source}: {what}: it is not a {self.backbone_name}")
            if not state[name].isfinite().all():
                raise UserError("bad-model", f"{source}: {name} holds values that are not finite; get another file")
        extra = set(state) - set(wanted) - {f"{self.last}.weight", f"{self.last}.bias"}
        if extra and not prefix:
            raise UserError("wrong-network", f"{source} holds {min(extra)}, which {self.backbone_name} does not have")
        module.load_state_dict({name.removeprefix(prefix): state[name] for name in wanted})
