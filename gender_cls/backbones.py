"""The frozen backbone, made fast for the machine at hand."""

import warnings
from collections.abc import Callable
from copy import deepcopy

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from gender_cls.network import GenderNet
from gender_cls.transforms import Preprocessing

Backbone = Callable[[torch.Tensor], torch.Tensor]  # uint8 views (N, 3, size, size) to features, float32 (N, F)


def best_precision(device: torch.device) -> str:
    """bf16 where the hardware computes with it, else fp32."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else "fp32"


def folded(backbone: nn.Module) -> nn.Module:
    """A copy of a frozen backbone whose BatchNorms are part of the convolutions before them."""
    copy = deepcopy(backbone).eval()
    for module in list(copy.modules()):
        for first, second in (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1")):
            conv, norm = getattr(module, first, None), getattr(module, second, None)
            if isinstance(conv, nn.Conv2d) and type(norm) is nn.BatchNorm2d:  # timm's do more
                setattr(module, first, fuse_conv_bn_eval(conv, norm))
                setattr(module, second, nn.Identity())
    return copy


def torch_backbone(network: GenderNet, preprocessing: Preprocessing, precision: str, device: torch.device) -> Backbone:
    """The backbone on a device, in bf16 or fp32."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    net = folded(network.backbone).to(device, dtype).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run(views: torch.Tensor) -> torch.Tensor:
        normalized = preprocessing.normalize(views.to(device, non_blocking=True))
        return net(normalized.to(dtype, memory_format=torch.channels_last)).float().cpu()

    return run


def openvino_backbone(network: GenderNet, preprocessing: Preprocessing, precision: str, streams: int = 1) -> Backbone:
    """The backbone compiled by OpenVINO, in bf16 or fp32, for `streams` callers of as many threads as torch has."""
    import openvino

    side = preprocessing.size
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it still uses torch.jit.trace
        model = openvino.convert_model(folded(network.backbone), example_input=torch.zeros(1, 3, side, side))
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
