"""State dicts: reading them without running what a file holds, and torchvision's downloads."""

import os
import pickle
import socket
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path

import torch
from torchvision.models import WeightsEnum

from gender_cls.errors import UserError, check_extra, reason, unreadable

STALL_SECONDS = 20.0  # without a byte, after which a download is given up


def read_state_dict(path: str | os.PathLike[str], source: str) -> dict[str, torch.Tensor]:
    """Read a flat dict of tensors from a file of `torch.save`, or one that ends in .safetensors.

    Nothing that the file holds is executed. `source` names the file in errors, such as the key=value that gave it.

    Raises:
        UserError: The file can't be read, or it holds something else.
    """
    state = safe_load(path, source)
    if not isinstance(state, Mapping) or not all(isinstance(tensor, torch.Tensor) for tensor in state.values()):
        way_out = "save one with torch.save(net.state_dict(), ...)"
        raise UserError("bad-model", f"{source} is no plain state dict of tensors; {way_out}")
    return dict(state)


def safe_load(path: str | os.PathLike[str], source: str) -> object:
    """Load tensors and plain values, and nothing else, from such a file; `source` names it in errors.

    Raises:
        UserError: The file can't be read, is damaged, or is a pickle that would run code.
    """
    kind = "safetensors" if Path(path).suffix == ".safetensors" else "torch.save"
    if kind == "safetensors":
        check_extra(source, "formats", kind)
    try:
        if kind == "torch.save":
            return torch.load(path, map_location="cpu", weights_only=True)
        from safetensors.torch import load_file

        return load_file(path)
    except OSError as error:
        raise unreadable(source, error) from error
    except pickle.UnpicklingError as error:
        what = "it is damaged, or a pickle that would run code; only tensors and plain values are accepted"
        raise UserError("unsafe-file", f"{source} is not loaded: {what}") from error
    except Exception as error:  # a damaged file makes both loaders raise nearly everything
        raise UserError("bad-model", f"{source} is damaged, or not a file of {kind}") from error


def download(entry: WeightsEnum) -> dict[str, torch.Tensor]:
    """Read the weights of one of torchvision's entries from torch's cache folder, downloading them if needed.

    Raises:
        UserError: The download fails or gets no byte for `STALL_SECONDS`.
    """
    cached = Path(torch.hub.get_dir()) / "checkpoints" / os.path.basename(entry.url)
    if not cached.exists():
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(STALL_SECONDS)  # torch.hub itself waits without end
        try:
            cached.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(entry.url, str(cached), hash_prefix=cached.stem.rsplit("-", 1)[1])
        except (OSError, HTTPException, RuntimeError) as error:
            way_out = "give model.weights=FILE.pth, model=efficientnet_lite0 or experiment=demo (no weights)"
            what = f"can't be downloaded ({reason(error)}); put {cached.name} in {cached.parent}, or {way_out}"
            raise UserError("download-failed", f"model.weights={entry.name} {what}") from error
        finally:
            socket.setdefaulttimeout(before)
    return read_state_dict(cached, f"model.weights={entry.name} ({cached})")
