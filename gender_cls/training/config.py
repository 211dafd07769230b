"""Where the configuration is found, and the resolvers that it needs."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from gender_cls.models.backbones import best_precision
from gender_cls.models.zoo import find_backbone

RENAMED = {
    "views": "cached_views",
    "degrade": "corruption",
    "data.without": "data.report_exclude",
    "experiment=seed": "experiment=baseline",
    "data.source": "data=task_a, manifest or demo",
    "logger.save_dir": "logger.tensorboard.save_dir",
}  # options of earlier versions


def config_dir() -> Path:
    """Return the folder of the configuration: in the installed package, or at the root of the repository."""
    installed = Path(__file__).parent.parent / "conf"
    return installed if installed.is_dir() else installed.parent.parent / "conf"


def weights_input(backbone: str, weights: str | None, key: str) -> Any:
    """Return size, interpolation, mean or std of the images that a backbone's weights were made for."""
    return find_backbone(backbone).inputs(weights)[key]


def auto_precision(accelerator: str) -> str:
    """Return Lightning's name of bf16 where the hardware computes with it, else of fp32."""
    device = torch.device("cuda" if accelerator != "cpu" and torch.cuda.is_available() else "cpu")
    return "bf16-mixed" if best_precision(device) == "bf16" else "32-true"


for resolver in (weights_input, auto_precision):
    OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
