"""Images a second and memory of prediction: the plain loop, one process an image, and this project by each runtime.

Whole processes, one after another, on the same images, weights (random ones, the recipe's preprocessing) and machine.
One process an image is timed over five and scaled; a single image's times are the least of five runs. Linux only.

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

from gender_cls.transforms.decode import list_images
from gender_cls.models.network import GenderNet
from gender_cls.evaluation.tables import table
from gender_cls.transforms.preprocessing import Preprocessing

PICTURES, TIMES = 2000, 5
BY = "import sys, predict, gender_cls.inference.runtimes as r; r.OPENVINO_FROM = {}; sys.exit(predict.main(sys.argv[1:]))"
IMPORTS = "import torch, torchvision"


def plain(model: str, paths: list[str]) -> None:
    """The loop that people write."""
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


def least(arguments: list[str], times: int) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        subprocess.run(arguments, check=True, capture_output=True, cwd=PROJECT)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def main() -> None:
    """Measure all and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder with images")
    parser.add_argument("--images", type=int, default=PICTURES, help="(%(default)s)")
    parser.add_argument("--times", type=int, default=TIMES, help="runs of a single image (%(default)s)")
    parser.add_argument("--plain", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.plain:
        plain(arguments.plain, arguments.root.read_text().splitlines())
        return
    paths = list_images(arguments.root.resolve())[: arguments.images]
    with tempfile.TemporaryDirectory() as folder:
        many, more, one = (Path(folder, name) for name in ("many.txt", "more.txt", "one.txt"))
        many.write_text("\n".join(paths))
        more.write_text("\n".join(10 * paths))
        one.write_text(paths[0])
        model, onnx = Path(folder, "model.pth"), Path(folder, "model.onnx")
        torch.manual_seed(0)
        torch.save(GenderNet(None).plain_state(), model)
        model.with_suffix(".json").write_text(json.dumps({"preprocessing": asdict(Preprocessing())}))
        python, script = sys.executable, str(PROJECT / "predict.py")
        subprocess.run(
            [python, "-m", "gender_cls.inference.export", f"model={model}", f"to={onnx}"], check=True, capture_output=True
        )
        start = f"import sys; sys.path.insert(0, {str(PROJECT)!r}); {BY}"
        by_torch = [python, "-c", start.format(10**9), f"model={model}"]
        loop = [python, str(Path(__file__).resolve()), "--plain", str(model)]
        runs = {"plain loop: fp32, batches of 32": [*loop, str(many)]}
        out = [f"img=@{many}", f"out={folder}/o.csv"]
        runs["torch"] = [*by_torch, *out]
        runs["torch, precision=fp32"] = [*by_torch, *out, "precision=fp32"]
        runs["ONNX Runtime"] = [python, script, f"model={onnx}", *out]
        if find_spec("openvino"):
            runs["OpenVINO, the extra fast"] = [python, "-c", start.format(0), f"model={model}", *out]
        runs["torch, ten times as many"] = [*by_torch, f"img=@{more}", out[1]]
        scaled = sum(measure([*loop, str(one)], folder).seconds for _ in range(arguments.times))
        scaled *= len(paths) / arguments.times
        rows: list[list[object]] = [
            ["a process an image (scaled)", f"{scaled:.0f}", f"{len(paths) / scaled:.1f}", "", ""]
        ]
        for name, arguments in runs.items():
            run = measure(arguments, folder)
            number = len(paths) * (10 if arguments[-2] == f"img=@{more}" else 1)
            speed = number / run.seconds
            if not rows[1:]:
                first = speed
            rows.append([name, f"{run.seconds:.1f}", f"{speed:.1f}", f"{speed / first:.2f}", f"{run.peak_mb:.0f}"])
        rows[0][3] = f"{len(paths) / scaled / first:.2f}"
        print(table((f"{len(paths)} images", "seconds", "images/s", "times plain", "peak MB"), rows))
        imports = least([python, "-c", IMPORTS], arguments.times)
        single = {"by torch": model, "by ONNX Runtime": onnx}
        print(f"\na single image: {IMPORTS} alone {imports:.2f} s")
        for name, file in single.items():
            seconds = least([python, script, f"model={file}", f"img={paths[0]}"], arguments.times)
            print(f"{name} {seconds:.2f} s, {seconds / imports:.2f} times that")


if __name__ == "__main__":
    main()
