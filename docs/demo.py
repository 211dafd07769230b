"""Redraw docs/demo.png: faces of demo_faces/val with the predictions of a `python train.py experiment=demo` model.

python docs/demo.py runs/<date>/Binary_Classification_model.pth
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from gender_cls.inference.predictor import Predictor

females, males = (sorted(map(str, Path("demo_faces/val", name).iterdir())) for name in ("female", "male"))
shown = [path for pair in zip(females[::8][:6], males[::15][:6]) for path in pair] + males[::15][6:10]
figure = Figure(figsize=(10.4, 3.2), layout="constrained", dpi=110)
for axes, prediction in zip(figure.subplots(2, 8).flat, Predictor(sys.argv[1]).predict(shown)):
    axes.imshow(Image.open(prediction.path))
    axes.axis("off")
    right = prediction.label == Path(prediction.path).parent.name
    axes.set_title(
        f"{prediction.label}  {prediction.confidence:.1f} %", fontsize=9, color="black" if right else "crimson"
    )
figure.savefig(Path(__file__).with_suffix(".png"))
