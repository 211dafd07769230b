"""Engines that run a frozen backbone: torch, and OpenVINO on CPUs."""

import warnings
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gender_cls.transforms.preprocessing import Preprocessing

Backbone = Callable[[torch.Tensor], torch.Tensor]  # uint8 views (N, 3, size, size) to features, float32 (N, F)


def best_precision(device: torch.device) -> str:
    """Return bf16 if the hardware computes with it, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def folded(backbone: nn.Module) -> nn.Module:
    """Return a copy of a frozen backbone with each BatchNorm folded into the convolution before it."""
    copy = deepcopy(backbone).eval()
    for module in list(copy.modules()):
        for first, second in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            conv, norm = getattr(module, first, None), getattr(module, second, None)
            if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d:  # timm's subclass also has an activation
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return copy


def torch_backbone(backbone: nn.Module, preprocessing: Preprocessing, precision: str, device: torch.device) -> Backbone:
    """Return the backbone, run by torch in bf16 or fp32, as a function of views; `preprocessing` normalizes them."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    net = folded(backbone).to(device, dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(views: torch.Tensor) -> torch.Tensor:
        normalized = preprocessing.normalize(views.to(device, non_blocking=True))
        return net(normalized.to(dtype, memory_format=torch.channels_last)).float().cpu()

    return run


def openvino_backbone(backbone: nn.Module, preprocessing: Preprocessing, precision: str, streams: int = 1) -> Backbone:
    """Return the same as `torch_backbone`, compiled by OpenVINO for the CPU.

    Up to `streams` threads may call it at once; each call runs on as many threads as torch has.
    """
    import openvino

    side = preprocessing.size
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it still uses torch.jit.trace
        model = openvino.convert_model(folded(backbone), example_input=torch.zeros(1, 3, side, side))
    model.reshape([-1, 3, side, side])
    hints = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": streams * torch.get_num_threads(),
        "NUM_STREAMS": streams,
        "ENABLE_CPU_PINNING": False,  # two workers would share a core
    }
    net = openvino.compile_model(model, "CPU", hints)

    def run(views: torch.Tensor) -> torch.Tensor:
        request = net.create_infer_request()  # `net` itself takes one caller at a time
        return torch.from_numpy(request.infer(preprocessing.normalize(views).numpy())[0].copy())

    return run
