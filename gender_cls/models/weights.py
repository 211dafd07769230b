"""State dicts: reading them without running what a file holds, and torchvision's downloads."""

import os
import pickle
import re
import socket
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torchvision.models import WeightsEnum

from gender_cls.errors import UserError, check_extra, reason, unreadable
from gender_cls.files import ONNX, SAFETENSORS, TORCHSCRIPT, file_kind, user_path

DEPTH = 3  # dicts around a state dict, at most
NESTED = ("state_dict", "model", "model_state_dict", "net")  # keys that checkpoints of others hold a state dict under
PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.")  # of DataParallel, torch.compile, LightningModules
COUNTER = "n_averaged"  # that torch's AveragedModel adds
OWN_CHECKPOINT = {"pytorch-lightning_version", "settings"}
INSTEAD = {
    TORCHSCRIPT: "save its state dict: torch.save(torch.jit.load(FILE).state_dict(), ...)",
    ONNX: "a state dict is needed; predict.py takes ONNX made by gender_cls.inference.export",
    "a file of torch.save": "",
    "a Python pickle": "",  # torch's loader says what it holds
    SAFETENSORS: "",
    "": "",
}
STATE_DICT = "give a state dict: torch.save(net.state_dict(), ...)"
STALL_SECONDS = 20.0  # without a byte, after which a download is given up


def read_state_dict(path: str | os.PathLike[str], source: str) -> dict[str, torch.Tensor]:
    """Read a dict of tensors from a file of `torch.save` or safetensors.

    A state dict under one of the keys `NESTED` is found, and a prefix of `PREFIXES` that all names share is taken off.
    Nothing that the file holds is executed. `source` names the file in errors, such as the key=value that gave it.

    Raises:
        UserError: The file can't be read, or it holds something else.
    """
    state = safe_load(path, source)
    if isinstance(state, Mapping) and set(state) >= OWN_CHECKPOINT:
        what = "the checkpoint of a run, to resume it by ckpt_path=, without what is frozen"
        raise UserError("bad-model", f"{source} is {what}; give the .pth beside it")
    for _ in range(DEPTH):
        if isinstance(state, Mapping) and not _is_plain(state):
            state = next((state[key] for key in NESTED if isinstance(state.get(key), Mapping)), None)
    if not isinstance(state, Mapping) or not _is_plain(state):
        way_out = "save one with torch.save(net.state_dict(), ...)"
        raise UserError("bad-model", f"{source} holds no state dict of tensors; {way_out}")
    state = {name: tensor for name, tensor in state.items() if name != COUNTER}
    while prefix := next((each for each in PREFIXES if state and all(name.startswith(each) for name in state)), ""):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _is_plain(state: Mapping[Any, Any]) -> bool:
    dense = (isinstance(value, torch.Tensor) and value.layout == torch.strided for value in state.values())
    return all(dense) and all(isinstance(name, str) and not value.is_meta for name, value in state.items())


def safe_load(path: str | os.PathLike[str], source: str, way_out: str = STATE_DICT) -> object:
    """Load tensors and plain values, and nothing else, from such a file; `source` and `way_out` are for errors.

    Raises:
        UserError: The file can't be read, is damaged, or is a pickle that would run code.
    """
    path = user_path(path)
    if os.path.isdir(path):
        raise UserError("bad-model", f"{source} is a folder; give a file of torch.save or safetensors in it")
    try:
        kind = file_kind(path)
        if instead := INSTEAD.get(kind, "give a file of torch.save or safetensors"):
            raise UserError("bad-model", f"{source} is {kind}; {instead}")
        if not kind and Path(path).suffix == ".safetensors":
            raise UserError("bad-model", f"{source} is damaged, or no file of safetensors")
        if kind != SAFETENSORS:
            with open(path, "rb") as file:  # not the path, by whose ending torch would go
                return torch.load(file, map_location="cpu", weights_only=True)
        check_extra(source, "formats", "safetensors")
        from safetensors.torch import load_file

        return load_file(path)
    except UserError:
        raise
    except OSError as error:
        raise unreadable(source, error) from error
    except pickle.UnpicklingError as error:
        if held := re.search(r"GLOBAL ([\w.]+)", str(error)):
            what = f"it holds a {held[1]}, as a whole pickled module does, and loading it would run code"
        else:
            what = "it is damaged, or a pickle whose loading would run code"
        raise UserError("unsafe-file", f"{source} is not loaded: {what}; {way_out}") from error
    except Exception as error:  # a damaged file makes both loaders raise nearly everything
        raise UserError("bad-model", f"{source} is damaged, or not a file of torch.save or safetensors") from error


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
