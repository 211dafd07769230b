"""Draw corruptions.png in the current folder: an image, clean and under the corruptions at severities 1 to 5.

python docs/corruptions.py demo_faces/val/female/person597_0001.jpg
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gender_cls.transforms.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from gender_cls.transforms.decode import Decoder

if len(sys.argv) != 2:
    sys.exit(__doc__)
image = Decoder().load(sys.argv[1])
figure = Figure(figsize=(8, 7.3), layout="constrained", dpi=80)
axes = figure.subplots(len(SEVERITIES) + 1, len(CORRUPTIONS))
for name, column in zip(CORRUPTIONS, axes.T):
    column[0].set_title(name, fontsize=10)
    for severity, ax in enumerate(column):
        ax.imshow(corrupt(image, np.random.default_rng(severity), (name, severity)) if severity else image)
        ax.set(xticks=(), yticks=())
for severity, ax in enumerate(axes[:, 0]):
    ax.set_ylabel(f"severity {severity}" if severity else "clean", fontsize=10)
figure.savefig("corruptions.png")
print(Path("corruptions.png").resolve())
