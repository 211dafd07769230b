"""Pictures a second on one core of each degradation at 224 x 224 pixels, mean of the five severities.

python benchmarks/degrade.py [picture]
"""

import argparse
import time

import numpy as np

from gender_cls.degrade import DEGRADATIONS, SEVERITIES
from gender_cls.images import load_rgb


def main() -> None:
    """Print a line for each, and the mean time of all as a rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", nargs="?", help="to degrade; without it, noise")
    parser.add_argument("--seconds", type=float, default=3, help="for each line (%(default)s)")
    arguments = parser.parse_args()
    image = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    if arguments.picture:
        image = np.asarray(load_rgb(arguments.picture).resize((224, 224)))
    times = []
    for name, degradation in DEGRADATIONS.items():
        generator, calls, started = np.random.default_rng(0), 0, time.perf_counter()
        while time.perf_counter() - started < arguments.seconds:
            for severity in SEVERITIES:
                degradation(image, severity, generator)
            calls += len(SEVERITIES)
        times.append((time.perf_counter() - started) / calls)
        print(f"{name:10s} {1 / times[-1]:8.0f} pictures/s", flush=True)
    print(f"{'average':10s} {1 / np.mean(times):8.0f} pictures/s")


if __name__ == "__main__":
    main()
