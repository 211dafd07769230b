"""Redraw docs/demo.png: faces of demo_faces/val with the answers of a model of `python train.py experiment=demo`.

python docs/demo.py runs/<date>/Binary_Classification_model.pth
"""

import sys
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

from gender_cls.predictor import Predictor

women, men = (sorted(map(str, Path("demo_faces/val", name).iterdir())) for name in ("female", "male"))
shown = [path for pair in zip(women[::8][:6], men[::15][:6]) for path in pair] + men[::15][6:10]
figure = Figure(figsize=(10.4, 3.2), layout="constrained", dpi=110)
for axes, answer in zip(figure.subplots(2, 8).flat, Predictor(sys.argv[1]).predict(shown)):
    axes.imshow(Image.open(answer.path))
    axes.axis("off")
    right = answer.label == Path(answer.path).parent.name
    axes.set_title(f"{answer.label}  {answer.confidence:.1f} %", fontsize=9, color="black" if right else "crimson")
figure.savefig(Path(__file__).with_suffix(".png"))
