"""Views a second through the frozen backbone, by engine and precision, with random weights on noise.

python benchmarks/extraction.py            (pip install -e ".[fast]" for the lines of OpenVINO)
"""

import argparse
import time
from collections.abc import Callable
from importlib.util import find_spec

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from gender_cls.models.backbones import folded, openvino_backbone, torch_backbone
from gender_cls.models.network import GenderNet
from gender_cls.transforms.preprocessing import Preprocessing
from gender_cls.transforms.views import TrainingViews


def rate(run: Callable[[], object], number: float, seconds: float) -> float:
    """Return views a second of a call that takes `number` of them, after one call to warm up."""
    run()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        run()
        calls += 1
    return calls * number / (time.perf_counter() - started)


@torch.inference_mode()
def main() -> None:
    """Print a line for each alternative."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10, help="time for each line (%(default)s)")
    parser.add_argument("--batch", type=int, default=32, help="views in a batch (%(default)s)")
    arguments = parser.parse_args()
    cpu = torch.device("cpu")
    network = GenderNet(None)
    views = TrainingViews(Preprocessing())
    noise = torch.randint(0, 256, (arguments.batch, 3, 224, 224), dtype=torch.uint8)

    def line(what: str, run: Callable[[], object], number: float = arguments.batch) -> None:
        print(f"{what:52s} {rate(run, number, arguments.seconds):8.1f} views/s", flush=True)

    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, batches of {arguments.batch}")
    plain = network.backbone.to(memory_format=torch.contiguous_format)
    line("torch, fp32, as built", lambda: plain(views.preprocessing.normalize(noise)))
    for precision in ("fp32", "bf16"):
        backbone = torch_backbone(network.backbone, views.preprocessing, precision, cpu)
        line(f"torch, {precision}, channels_last, BatchNorm folded", lambda run=backbone: run(noise))
    compiled = torch.compile(folded(network.backbone).to(torch.bfloat16).to(memory_format=torch.channels_last))
    last = noise.to(memory_format=torch.channels_last)
    line("the same, bf16, torch.compile", lambda: compiled(views.preprocessing.normalize(last).bfloat16()))
    for precision in ("fp32", "bf16") if find_spec("openvino") else ():
        backbone = openvino_backbone(network.backbone, views.preprocessing, precision)
        line(f"openvino, {precision}", lambda run=backbone: run(noise))
    with FlopCounterMode(display=False) as counter:
        network.backbone(torch.zeros(1, 3, 224, 224))
    for dtype in (torch.float32, torch.bfloat16):
        square = torch.rand(2048, 2048).to(dtype)
        as_views = 2 * 2048**3 / counter.get_total_flops()
        line(f"a matrix product of as many operations, {dtype}", lambda square=square: square @ square, as_views)
    torch.set_num_threads(1)
    image = Image.fromarray(noise[0].permute(1, 2, 0).numpy()).resize((171, 256))
    line("eight training views, one core, no backbone", lambda: views(image, "", range(8)), 8)
    if torch.cuda.is_available():
        large = noise.repeat(8, 1, 1, 1)
        backbone = torch_backbone(network.backbone, views.preprocessing, "bf16", torch.device("cuda"))
        line("torch, bf16, GPU, with the copies to it and back", lambda: backbone(large), len(large))


if __name__ == "__main__":
    main()
