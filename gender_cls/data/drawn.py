"""Seeded cartoon faces in the folder tree of the real data, for trying and testing without a download.

The cues (hair, jaw, brow, beard, lips) are caricatures that overlap between the two labels, so that the task can be
learned but not solved by one of them. They say nothing about people.
"""

import json
import os
import random
import shutil
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from gender_cls.errors import UserError
from gender_cls.labels import CLASSES

STAMP = "demo.json"
SKIN = ((255, 224, 196), (241, 194, 150), (224, 172, 120), (198, 134, 88), (141, 85, 52), (92, 56, 38))
HAIR = ((25, 22, 20), (45, 32, 24), (70, 45, 30), (105, 65, 38), (135, 55, 32), (165, 125, 75), (140, 140, 140))
CANVAS = 256  # side of the drawing in pixels; resizing it to the wanted side smooths the edges


def draw(root: str | os.PathLike[str], counts: dict[str, Sequence[int]], side: int = 128, seed: int = 0) -> None:
    """Draw the demo set to `root/{split}/{female,male}/person<NNN>_<NNNN>.jpg`.

    `counts` has the numbers of female and male images of each split; they are square, of `side` pixels. An identity has
    one to four images, all in one split. The set appears whole or not at all; one that was drawn with the same
    arguments is kept, and anything else at `root` is a `UserError`.
    """
    root = Path(root)
    stamp = json.dumps({"counts": {split: list(n) for split, n in counts.items()}, "side": side, "seed": seed})

    def drawn_already() -> bool:
        return (root / STAMP).is_file() and (root / STAMP).read_text() == stamp

    if drawn_already():
        return
    if root.exists():
        raise UserError("conflict", f"data.root={root} exists and is not this demo set; give another or delete it")
    unfinished = root.with_name(f"{root.name}.part-{os.getpid()}")
    try:
        _draw_tree(unfinished, counts, side, seed)
        (unfinished / STAMP).write_text(stamp)
        unfinished.rename(root)
    except OSError:
        if not drawn_already():  # else another process finished the same set first
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _draw_tree(root: Path, counts: dict[str, Sequence[int]], side: int, seed: int) -> None:
    rng = random.Random(seed)
    person, total = 0, sum(map(sum, counts.values()))
    with tqdm(total=total, desc="drawing demo faces", unit="face", disable=None, leave=False) as bar:
        for split, numbers in counts.items():
            for label, left in enumerate(numbers):
                folder = root / split / CLASSES[label]
                folder.mkdir(parents=True)
                while left > 0:
                    person += 1
                    face = Person(label, rng)
                    for shot in range(1, min(left, rng.choice((1, 1, 1, 2, 3, 4))) + 1):
                        image = face.photograph(rng).resize((side, side), Image.Resampling.BILINEAR)
                        image.save(folder / f"person{person:03d}_{shot:04d}.jpg", quality=90)
                        left -= 1
                        bar.update()


class Person:
    """Traits of a drawn person that are the same in all images."""

    def __init__(self, label: int, rng: random.Random) -> None:
        def chance(*by_label: float) -> bool:
            return rng.random() < by_label[label]

        self.skin = rng.choice(SKIN)
        self.hair = rng.choice(HAIR)
        self.long_hair = chance(0.85, 0.06)
        self.bald = not self.long_hair and chance(0.03, 0.22)
        self.fringe = chance(0.5, 0.25)
        self.beard = chance(0.01, 0.55)
        self.moustache = chance(0.02, 0.35)
        self.lips = chance(0.75, 0.03)
        self.lashes = chance(0.6, 0.12)
        self.earrings = chance(0.5, 0.05)
        self.glasses = rng.random() < 0.25
        self.hat = rng.random() < 0.05
        self.jaw = rng.gauss((0.62, 0.80)[label], 0.07)  # width of the chin, as a share of the face's
        self.brow = max(2.0, rng.gauss((4.5, 7.5)[label], 1.3))  # thickness in pixels of the canvas
        self.face_width = rng.gauss((57, 62)[label], 4)
        self.face_height = rng.gauss(84, 5)

    def photograph(self, rng: random.Random) -> Image.Image:
        """Draw one image with a new pose, background, clutter and light."""
        canvas = _background(rng)
        pen = ImageDraw.Draw(canvas)
        x, y = CANVAS / 2, CANVAS / 2 + 12
        turn = rng.gauss(0, 6)  # the features shift sideways as the head turns
        self._draw_head(pen, x, y)
        self._draw_features(pen, x + turn, y, rng)
        if self.hat:
            top = y - self.face_height
            pen.ellipse((x - 85, top - 2, x + 85, top + 34), fill=_shade(self.hair, 1.5))
            pen.rectangle((x - 55, top - 45, x + 55, top + 16), fill=_shade(self.hair, 1.3))
        scale, half = rng.uniform(1.1, 1.25), CANVAS / 2
        left, top = (half - (half + rng.gauss(0, 4)) / scale for _ in range(2))
        matrix = (1 / scale, 0, left, 0, 1 / scale, top)
        canvas = canvas.rotate(rng.gauss(0, 5), resample=Image.Resampling.BILINEAR, fillcolor=canvas.getpixel((0, 0)))
        canvas = canvas.transform((CANVAS, CANVAS), Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
        light = rng.uniform(0.85, 1.1)
        return canvas.point(lambda value: min(255, int(value * light)))

    def _draw_head(self, pen: ImageDraw.ImageDraw, x: float, y: float) -> None:
        width, height, chin = self.face_width, self.face_height, self.face_width * self.jaw
        if self.long_hair:
            pen.rounded_rectangle((x - width - 20, y - height - 12, x + width + 20, y + height + 25), 60, self.hair)
        pen.rectangle((x - 24, y + 40, x + 24, CANVAS), fill=_shade(self.skin, 0.85))
        pen.ellipse((x - 110, y + height + 18, x + 110, CANVAS + 80), fill=_shade(self.hair, 2.2))
        if not self.bald:
            pen.ellipse((x - width - 8, y - height - 14, x + width + 8, y + 20), fill=self.hair)
        for side in (-1, 1):
            pen.ellipse((x + side * width - 9, y - 12, x + side * width + 9, y + 18), fill=_shade(self.skin, 0.9))
            if self.earrings:
                pen.ellipse((x + side * width - 5, y + 18, x + side * width + 5, y + 30), fill=(240, 210, 90))
        top = y - height * (0.62 if self.fringe and not self.bald else 0.85)
        pen.ellipse((x - width, top, x + width, y + height * 0.72), fill=self.skin)
        jaw = [(x - width, y), (x - chin, y + height * 0.7), (x - chin * 0.45, y + height)]
        pen.polygon([*jaw, *_mirrored(jaw, x)], fill=self.skin)
        if self.beard:
            beard = [(x - width, y + 22), (x - chin, y + height * 0.72), (x - chin * 0.4, y + height + 8)]
            pen.polygon([*beard, *_mirrored(beard, x), (x, y + 48)], fill=_shade(self.hair, 0.9))

    def _draw_features(self, pen: ImageDraw.ImageDraw, x: float, y: float, rng: random.Random) -> None:
        for side in (-1, 1):
            eye = x + side * 25
            pen.ellipse((eye - 12, y - 22, eye + 12, y - 8), fill="white")
            pen.ellipse((eye - 6, y - 21, eye + 6, y - 9), fill=(60, 45, 35))
            pen.line((eye - 14, y - 32, eye + 14, y - 32 - side * rng.gauss(0, 1)), self.hair, round(self.brow))
            if self.lashes:
                pen.arc((eye - 14, y - 26, eye + 14, y - 6), 190, 350, fill=(15, 10, 10), width=4)
            if self.glasses:
                pen.ellipse((eye - 19, y - 32, eye + 19, y + 4), outline=(40, 40, 45), width=4)
        pen.line((x, y - 8, x - 6, y + 22, x + 5, y + 24), fill=_shade(self.skin, 0.7), width=3)
        if self.moustache:
            pen.ellipse((x - 26, y + 28, x + 26, y + 40), fill=self.hair)
        smile = rng.uniform(4, 16)
        mouth = (180, 35, 50) if self.lips else _shade(self.skin, 0.62)
        pen.chord((x - 22, y + 44 - smile, x + 22, y + 46 + smile), 0, 180, fill=mouth)


def _background(rng: random.Random) -> Image.Image:
    canvas = Image.new("RGB", (CANVAS, CANVAS), _wall(rng))
    pen = ImageDraw.Draw(canvas)
    for _ in range(rng.randrange(8)):  # clutter behind the head
        x, y, size = rng.randrange(CANVAS), rng.randrange(CANVAS), rng.randrange(20, 110)
        shape = rng.choice((pen.rectangle, pen.ellipse))
        shape((x - size, y - size, x + size // 2, y + size // 2), fill=_wall(rng))
    return canvas.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3)))


def _wall(rng: random.Random) -> tuple[int, ...]:
    grey = rng.randrange(165, 225)  # muted, so that the walls do not drown the faces
    return tuple(grey + rng.randrange(-20, 20) for _ in range(3))


def _shade(color: tuple[int, int, int], factor: float) -> tuple[int, ...]:
    return tuple(min(255, round(value * factor)) for value in color)


def _mirrored(points: list[tuple[float, float]], x: float) -> list[tuple[float, float]]:
    return [(2 * x - left, y) for left, y in reversed(points)]
