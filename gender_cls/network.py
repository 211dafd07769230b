"""GenderNet: a frozen ResNet-18 and one linear head, and reading weights without running them."""

import hashlib
import os
import pickle
import socket
import threading
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn
from torchvision.models import ResNet18_Weights, resnet18

from gender_cls.errors import UserError

State = dict[str, torch.Tensor]
FEATURES = 512
COUNTER = "num_batches_tracked"  # of BatchNorm; it changes nothing in evaluation mode
PROBE_SECONDS = 8.0
STALL_SECONDS = 60.0


class GenderNet(nn.Module):
    """torchvision's ResNet-18 up to its pooled features, frozen, and `Linear(512, 1)`.

    Frozen means that no gradient, no optimizer and no BatchNorm statistic changes the backbone: it stays in
    evaluation mode also when someone calls `train()`.

    Args:
        weights: A name of torchvision's, such as IMAGENET1K_V1; a path to a state dict of a torchvision resnet18, with
            or without `fc`, of any float type; or None for random ones.

    Raises:
        UserError: the weights can't be had or are another network's.
    """

    def __init__(self, weights: str | None = "IMAGENET1K_V1") -> None:
        super().__init__()
        self.backbone = resnet18(weights=None)
        self.backbone.fc = nn.Identity()
        if weights is not None:
            _load(self.backbone, read_weights(weights), f"model.weights={weights}")
        self.backbone.requires_grad_(False)
        self.backbone.to(memory_format=torch.channels_last)  # twice as fast on a CPU
        self.backbone.eval()
        self.head = nn.Linear(FEATURES, 1)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Logits (N), positive for male, of normalised images (N, 3, H, W) or of their features (N, 512)."""
        return self.head(inputs if inputs.ndim == 2 else self.features(inputs)).squeeze(1)

    def features(self, images: torch.Tensor) -> torch.Tensor:
        """Pooled features (N, 512) of normalised images (N, 3, H, W)."""
        with torch.no_grad():
            return self.backbone(images.contiguous(memory_format=torch.channels_last))

    def train(self, mode: bool = True) -> "GenderNet":
        """Switch the head only; see the class."""
        super().train(mode)
        self.backbone.eval()
        return self

    def resnet18_state(self) -> State:
        """The state dict of torchvision's `resnet18` with `fc = Linear(512, 1)`, on the CPU."""
        state = {**self.backbone.state_dict(), "fc.weight": self.head.weight, "fc.bias": self.head.bias}
        return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}

    def load_resnet18_state(self, state: State, source: str) -> None:
        """The reverse of `resnet18_state`; `source` names it in errors.

        Raises:
            UserError: it is another network's.
        """
        head = {"weight": state.get("fc.weight"), "bias": state.get("fc.bias")}
        if any(tensor is None for tensor in head.values()):
            raise UserError(f"{source} holds no fc.weight and fc.bias: it is a backbone, not a trained model")
        _load(self.head, {name: tensor for name, tensor in head.items() if tensor is not None}, source, prefix="fc.")
        _load(self.backbone, state, source)

    def backbone_hash(self) -> str:
        """Hash of the backbone's names and values: equal for equal weights, however they were stored."""
        digest = hashlib.sha256()
        for name, tensor in sorted(self.backbone.state_dict().items()):
            if not name.endswith(COUNTER):
                digest.update(name.encode() + tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


def _load(module: nn.Module, state: State, source: str, prefix: str = "") -> None:
    wanted = module.state_dict()
    for name, tensor in wanted.items():
        if name.endswith(COUNTER):  # weights from before torch 0.4.1, such as IMAGENET1K_V1, have none
            state = {name: tensor, **state}
        if name not in state:
            raise UserError(f"{source} has no {prefix}{name}: it is not the state dict of a torchvision resnet18")
        if state[name].shape != tensor.shape:
            raise UserError(
                f"{source}: {prefix}{name} has shape {tuple(state[name].shape)}, not {tuple(tensor.shape)}: "
                "it belongs to another network than this resnet18"
            )
        if not state[name].isfinite().all():
            raise UserError(f"{source}: {prefix}{name} holds values that are not finite; train or download it again")
    extra = set(state) - set(wanted) - {"fc.weight", "fc.bias"}
    if extra:
        raise UserError(f"{source} holds {min(extra)}, which a torchvision resnet18 does not have")
    module.load_state_dict({name: state[name] for name in wanted})


def read_weights(weights: str) -> State:
    """The state dict that a torchvision name or a path stands for.

    Raises:
        UserError: there is none, with the ways out.
    """
    weights = str(weights)
    if weights in ResNet18_Weights.__members__:
        return _download(ResNet18_Weights[weights])
    if not os.path.exists(weights):
        names = ", ".join(ResNet18_Weights.__members__)
        raise UserError(f"model.weights={weights}: no such file, and no name that torchvision has ({names})")
    return read_state_dict(weights, f"model.weights={weights}")


def read_state_dict(path: str | os.PathLike[str], source: str) -> State:
    """Read a flat dict of tensors; nothing that the file holds is ever executed.

    Raises:
        UserError: the file can't be read or holds something else; `source` names it.
    """
    state = _safetensors(path, source) if Path(path).suffix == ".safetensors" else safe_load(path, source)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        raise UserError(f"{source} is no plain state dict of tensors; save one with torch.save(net.state_dict(), ...)")
    return dict(state)


def safe_load(path: str | os.PathLike[str], source: str) -> object:
    """`torch.load` of tensors and plain values alone.

    Raises:
        UserError: the file can't be read, is damaged, or is a pickle that would run code; `source` names it.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{source}: {(error.strerror or str(error)).lower()}") from error
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{source} is not loaded: it is damaged, or a pickle of objects that would run code; "
            "only tensors and plain values are accepted"
        ) from error
    except Exception as error:  # a damaged file makes torch.load raise nearly everything
        raise UserError(f"{source} is damaged or no file of torch.save") from error


def _safetensors(path: str | os.PathLike[str], source: str) -> State:
    if not find_spec("safetensors"):
        raise UserError(f'{source} needs the extra `formats`: pip install -e ".[formats]"')
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except OSError as error:
        raise UserError(f"{source}: {(error.strerror or str(error)).lower()}") from error
    except Exception as error:  # its own kind
        raise UserError(f"{source} is damaged or no safetensors file") from error


def _download(weights: ResNet18_Weights) -> State:
    """Read the weights from torch's cache directory, where they are put first if they are not there."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(weights.url)
    if not cached.exists():
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(STALL_SECONDS)  # torch.hub waits for ever for a line that has gone quiet
        try:
            _probe(weights.url)
            cached.parent.mkdir(parents=True, exist_ok=True)
            prefix = cached.stem.rsplit("-", 1)[1]
            torch.hub.download_url_to_file(weights.url, str(cached), hash_prefix=prefix)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"model.weights={weights.name} can't be downloaded ({str(error).splitlines()[0]}); give "
                f"model.weights=/path/to/resnet18.pth, or put {cached.name} in {cached.parent}, "
                "or try experiment=demo, which needs no weights"
            ) from error
        finally:
            socket.setdefaulttimeout(before)
    return read_state_dict(cached, f"model.weights={weights.name} ({cached})")


def _probe(url: str) -> None:
    """Open the address and close it. In a thread, since looking up a name can hang for longer than any timeout."""
    failure: list[Exception] = []
    answered = threading.Event()

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=PROBE_SECONDS).close()
        except Exception as error:
            failure.append(error)
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(PROBE_SECONDS):
        raise TimeoutError(f"no answer within {PROBE_SECONDS:.0f} s")
    if failure:
        raise OSError(str(failure[0]) or type(failure[0]).__name__) from failure[0]
