"""GenderNet: a backbone, all or a part of it frozen, and one linear head."""

import hashlib
from typing import cast

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, list_models

from gender_cls.errors import UserError
from gender_cls.weights import EFFICIENTNET, State, need_offline, read_weights

COUNTER = "num_batches_tracked"  # of BatchNorm; it changes nothing in evaluation mode


class GenderNet(nn.Module):
    """An ImageNet network up to its last linear layer, and `Linear(F, 1)` in the place of that; F is 512 for resnet18.

    What is frozen stays what it is: no gradient, no optimizer and no BatchNorm statistic changes it, since it stays in
    evaluation mode also when someone calls `train()`. What is trained is trained as usual.

    Args:
        weights: A name of torchvision's, such as IMAGENET1K_V1; a path to a state dict of that network, with or without
            its last layer, of any float type; or None for random ones.
        name: Of a classification network of torchvision's, or efficientnet_lite0.
        trainable: head; the name of a part of the backbone, such as layer4, for that and all that comes after it in
            the order of `named_modules`; or all.

    Attributes:
        last: Name of the layer that the head stands for.

    Raises:
        UserError: the weights can't be had or are another network's, or there is no such network or part.
    """

    def __init__(self, weights: str | None = "IMAGENET1K_V1", name: str = "resnet18", trainable: str = "head") -> None:
        super().__init__()
        self.name, self.trainable = name, trainable
        self.backbone = _build(name)
        layers = [layer for layer, module in self.backbone.named_modules() if isinstance(module, nn.Linear)]
        if not layers:
            raise UserError(f"model.backbone={name} has no linear layer that the head could stand for; give another")
        self.last = layers[-1]
        last = cast(nn.Linear, self.backbone.get_submodule(self.last))
        if last.bias is None:
            raise UserError(f"model.backbone={name} ends in a layer without a bias, which the head has; give another")
        self.backbone.set_submodule(self.last, nn.Identity())
        if weights is not None:
            self._load(self.backbone, read_weights(weights, name), f"model.weights={weights}")
        self.backbone.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.head = nn.Linear(last.in_features, 1)
        self._frozen = self._frozen_parts()
        for module in self._frozen.values():
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(False)
        self.train()

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (N), positive for male, of normalised images (N, 3, H, W) or of their features (N, F)."""
        return self.head(inputs if inputs.ndim == 2 else self.features(inputs)).squeeze(1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Features (N, F) of normalised images (N, 3, H, W)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.trainable != "head"):
            return self.backbone(images.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> "GenderNet":
        """Switch what is not frozen; see the class."""
        super().train(mode)
        for module in self._frozen.values():
            module.training = False
        return self

    def is_frozen(self, name: str) -> bool:
        """Whether the value of that name in `state_dict()` never changes."""
        part, _, _ = name.removeprefix("backbone.").rpartition(".")
        return name.startswith("backbone.") and part in self._frozen

    def plain_state(self) -> State:
        """The state dict of the plain network with `Linear(F, 1)` as its last layer, on the CPU."""
        state = self.backbone.state_dict()
        state |= {f"{self.last}.{name}": tensor for name, tensor in self.head.state_dict().items()}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def load_plain_state(self, state: State, source: str) -> None:
        """The reverse of `plain_state`; `source` names it in errors.

        Raises:
            UserError: it is another network's.
        """
        if not {f"{self.last}.weight", f"{self.last}.bias"} <= set(state):
            raise UserError(
                f"{source} holds no {self.last}.weight and {self.last}.bias: it is a backbone, not a trained model"
            )
        self._load(self.head, state, source, prefix=f"{self.last}.")
        self._load(self.backbone, state, source)

    def backbone_hash(self) -> str:
        """Hash of the backbone's names and values: equal for equal weights, however they were stored."""
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
            raise UserError(f"model.trainable={self.trainable}: give head, all, or a part of {self.name} ({known})")
        names = list(parts)
        return {name: parts[name] for name in names[: names.index(self.trainable)]}

    def _load(self, module: nn.Module, state: State, source: str, prefix: str = "") -> None:
        wanted = {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
        for name, tensor in wanted.items():
            if name.endswith(COUNTER):  # weights from before torch 0.4.1, such as IMAGENET1K_V1, have none
                state = {name: tensor, **state}
            if name not in state:
                raise UserError(f"{source} has no {name}: it is not a state dict of {self.name}")
            if state[name].shape != tensor.shape:
                raise UserError(
                    f"{source}: {name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}: "
                    f"it belongs to another network than this {self.name}"
                )
            if not state[name].isfinite().all():
                raise UserError(f"{source}: {name} holds values that are not finite; train or download it again")
        last = {f"{self.last}.weight", f"{self.last}.bias"}
        extra = set() if prefix else set(state) - set(wanted) - last
        if extra:
            raise UserError(f"{source} holds {min(extra)}, which {self.name} does not have")
        module.load_state_dict({name.removeprefix(prefix): state[name] for name in wanted})


def _build(name: str) -> nn.Module:
    if name == EFFICIENTNET:
        need_offline(f"model.backbone={name}", "timm")
        import timm

        return timm.create_model("tf_efficientnet_lite0", pretrained=False)
    if name not in list_models(torchvision.models):
        raise UserError(
            f"model.backbone={name}: torchvision has no classification network of that name; "
            "resnet50, mobilenet_v3_large and convnext_tiny are some"
        )
    if name in ("googlenet", "inception_v3"):
        raise UserError(f"model.backbone={name} has further heads inside, which are not trained here; give another")
    return get_model(name, weights=None)
