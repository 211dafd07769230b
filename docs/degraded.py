"""Redraw docs/degraded.png: a picture as it is and under the seven degradations, severities 1 to 5.

python docs/degraded.py demo_faces/val/female/person597_0001.jpg
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from gender_cls.degrade import DEGRADATIONS, SEVERITIES, degrade
from gender_cls.images import load_rgb

if len(sys.argv) != 2:
    sys.exit(__doc__)
picture = load_rgb(sys.argv[1])
figure = Figure(figsize=(8, 7.3), layout="constrained", dpi=80)
axes = figure.subplots(len(SEVERITIES) + 1, len(DEGRADATIONS))
for name, column in zip(DEGRADATIONS, axes.T):
    column[0].set_title(name, fontsize=10)
    for severity, ax in enumerate(column):
        ax.imshow(degrade(picture, np.random.default_rng(severity), (name, severity)) if severity else picture)
        ax.set(xticks=(), yticks=())
for severity, ax in enumerate(axes[:, 0]):
    ax.set_ylabel(f"severity {severity}" if severity else "as it is", fontsize=10)
figure.savefig(Path(__file__).with_suffix(".png"))
