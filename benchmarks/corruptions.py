"""Images a second on one core of each corruption at 224 x 224 pixels, mean of the five severities.

python benchmarks/corruptions.py [IMAGE]
"""

import argparse
import time

import numpy as np

from gender_cls.transforms.corruptions import CORRUPTIONS, SEVERITIES
from gender_cls.transforms.decode import Decoder


def main() -> None:
    """Print a line for each corruption, and the mean time of all as a rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="?", help="image to corrupt; noise by default")
    parser.add_argument("--seconds", type=float, default=3, help="time for each line (%(default)s)")
    arguments = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    if arguments.image:
        image = np.asarray(Decoder().load(arguments.image).resize((224, 224)))
    times = []
    for name, corruption in CORRUPTIONS.items():
        generator, calls, started = np.random.default_rng(0), 0, time.perf_counter()
        while time.perf_counter() - started < arguments.seconds:
            for severity in SEVERITIES:
                corruption(image, severity, generator)
            calls += len(SEVERITIES)
        times.append((time.perf_counter() - started) / calls)
        print(f"{name:10s} {1 / times[-1]:8.0f} images/s", flush=True)
    print(f"{'average':10s} {1 / np.mean(times):8.0f} images/s")


if __name__ == "__main__":
    main()
