"""`python -m gender_cls`: the commands there are, and the versions and devices found, which a bug report needs."""

import platform
import re
from importlib.metadata import PackageNotFoundError, requires, version

from gender_cls.inference.arguments import run_main

COMMANDS = {
    "python train.py": "train, evaluate and save a model (gender-cls-train)",
    "python predict.py": "predict female or male for images (gender-cls-predict)",
    "python -m gender_cls.evaluation.report": "report of a model on clean and corrupted images",
    "python -m gender_cls.evaluation.recalibrate": "a model's confidence for other people's faces",
    "python -m gender_cls.inference.export": "a model as ONNX or safetensors",
    "python -m gender_cls.features.store": "list or delete stored features",
}


def main(arguments: list[str]) -> int:
    """Print them and return the exit code."""
    print("Commands, each with --help:")
    print("\n".join(f"  {command:<45}{what}" for command, what in COMMANDS.items()))
    print(f"\nVersions:\n  {'python':<34}{platform.python_version()}, {platform.platform()}")
    for name in _packages():
        print(f"  {name:<34}{_version(name)}")
    print("\nDevices:\n" + "\n".join(f"  {device}" for device in _devices()))
    return 0


def _packages() -> list[str]:
    try:
        needed = [need for need in requires("gender-cls") or [] if 'extra == "dev"' not in need]
    except PackageNotFoundError:  # a clone that is not installed
        needed = ["torch", "torchvision", "pytorch-lightning"]
    return ["gender-cls", *(re.split(r"[^\w-]", need)[0] for need in needed)]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _devices() -> list[str]:
    import torch

    from gender_cls.models.backbones import best_precision

    cpu = f"cpu: {torch.get_num_threads()} threads, {best_precision(torch.device('cpu'))}"
    cuda = [f"cuda:{at}: {torch.cuda.get_device_name(at)}" for at in range(torch.cuda.device_count())]
    return [cpu, *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


if __name__ == "__main__":
    run_main(main)
