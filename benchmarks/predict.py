"""Speed and memory of prediction: the plain loop, one process per image, and this project with each runtime.

Every line is a whole process, one after another, on the same images, weights (random ones, the recipe's preprocessing)
and machine. One process per image is timed over five images and scaled; the time of a single image is the least of five
runs. Linux only.

    python benchmarks/predict.py data/facecom
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

import torch
from PIL import Image
from torchvision import transforms
from torchvision.models import resnet18
from training import PROJECT, measure

from gender_cls.evaluation.tables import table
from gender_cls.models.network import GenderNet
from gender_cls.transforms.listing import list_images
from gender_cls.transforms.preprocessing import Preprocessing

IMAGES, TIMES = 2000, 5
START = (
    f"import sys; sys.path.insert(0, {str(PROJECT)!r}); from gender_cls.inference import cli, runtimes; "
    "runtimes.OPENVINO_FROM = {}; cli.run()"
)
IMPORTS = "import torch, torchvision"
PYTHON, SCRIPT = sys.executable, str(PROJECT / "predict.py")


def plain(model: str, paths: list[str]) -> None:
    """Predict with the loop that people usually write."""
    net = resnet18(num_classes=1)
    net.load_state_dict(torch.load(model, weights_only=True))
    net.eval()
    steps = [transforms.Resize((224, 224)), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))])
    with torch.no_grad():
        for at in range(0, len(paths), 32):
            some = paths[at : at + 32]
            batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in some])
            for path, p_male in zip(some, torch.sigmoid(net(batch)).squeeze(1).tolist()):
                print(path, "male" if p_male > 0.5 else "female", f"{100 * max(p_male, 1 - p_male):.1f} %")


def least(command: list[str], times: int) -> float:
    """Return the seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, cwd=PROJECT)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def commands(loop: list[str], model: Path, onnx: Path, images: Path, more: Path) -> dict[str, list[str]]:
    """Return the command of each line; `more` lists the images ten times."""
    by_torch = [PYTHON, "-c", START.format(10**9), f"model={model}"]
    out = [f"img=@{images}", f"out={model.parent}/o.csv"]
    runs = {"plain loop: fp32, batches of 32": [*loop, str(images)], "torch": [*by_torch, *out]}
    runs["torch, precision=fp32"] = [*by_torch, *out, "precision=fp32"]
    runs["ONNX Runtime"] = [PYTHON, SCRIPT, f"model={onnx}", *out]
    if find_spec("openvino"):
        runs["OpenVINO, the extra fast"] = [PYTHON, "-c", START.format(0), f"model={model}", *out]
    runs["torch, ten times as many"] = [*by_torch, f"img=@{more}", out[1]]
    return runs


def main() -> None:
    """Measure everything and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with images")
    parser.add_argument("--images", type=int, default=IMAGES, help="(%(default)s)")
    parser.add_argument("--times", type=int, default=TIMES, help="runs of a single image (%(default)s)")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain(arguments.plain, arguments.root.read_text().splitlines())
        return
    paths = list_images(arguments.root.resolve()).paths[: arguments.images]
    with tempfile.TemporaryDirectory() as folder:
        images, more, one = (Path(folder, name) for name in ("images.txt", "more.txt", "one.txt"))
        images.write_text("\n".join(paths))
        more.write_text("\n".join(10 * paths))
        one.write_text(paths[0])
        model, onnx = Path(folder, "model.pth"), Path(folder, "model.onnx")
        torch.manual_seed(0)
        torch.save(GenderNet(None).plain_state(), model)
        model.with_suffix(".json").write_text(json.dumps({"preprocessing": asdict(Preprocessing())}))
        export = [PYTHON, "-m", "gender_cls.inference.export", f"model={model}", f"to={onnx}"]
        subprocess.run(export, check=True, capture_output=True, cwd=PROJECT)
        loop = [PYTHON, str(Path(__file__).resolve()), "--plain", str(model)]
        scaled = sum(measure([*loop, str(one)], folder).seconds for _ in range(arguments.times))
        scaled *= len(paths) / arguments.times
        rows: list[list[object]] = []
        first = 0.0  # images/s of the plain loop
        for name, command in commands(loop, model, onnx, images, more).items():
            run = measure(command, folder)
            speed = len(paths) * (10 if f"img=@{more}" in command else 1) / run.seconds
            first = first or speed
            rows.append([name, f"{run.seconds:.1f}", f"{speed:.1f}", f"{speed / first:.2f}", f"{run.peak_mb:.0f}"])
        speed = len(paths) / scaled
        single = ["one process per image (scaled)", f"{scaled:.0f}", f"{speed:.1f}", f"{speed / first:.2f}", ""]
        header = (f"{len(paths)} images", "seconds", "images/s", "speed-up", "peak memory (MB)")
        print(table(header, [single, *rows]))
        imports = least([PYTHON, "-c", IMPORTS], arguments.times)
        print(f"\na single image: {IMPORTS} alone {imports:.2f} s")
        for name, file in {"by torch": model, "by ONNX Runtime": onnx}.items():
            seconds = least([PYTHON, SCRIPT, f"model={file}", f"img={paths[0]}"], arguments.times)
            print(f"{name} {seconds:.2f} s, {seconds / imports:.2f} times that")


if __name__ == "__main__":
    main()
