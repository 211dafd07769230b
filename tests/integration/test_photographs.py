"""Photographs composed of faces whose places are known, and images that show none, by the real detector.

The faces are the photograph that scikit-image brings with the extra `faces` and, where they are at hand, FACECOM's
training images with exactly one face.
"""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageDraw

from gender_cls import GenderNet, Predictor
from gender_cls.transforms.centerface import NEEDED, CenterFace
from gender_cls.transforms.decode import Decoder
from gender_cls.transforms.faces import Face
from gender_cls.transforms.preprocessing import Preprocessing

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason="the extra `faces` is not installed"),
]
SHARED = ROOT.parent / "shared"
GROUNDS = ("brick.png", "grass.png", "gravel.png", "coffee.png", "hubble_deep_field.jpg", "page.png", "moon.png")
PHOTOGRAPHS, SOURCES = 200, 120


@dataclass
class Placed:
    """A face in a photograph: middle and longer side of its box in pixels, and the photograph of it alone."""

    x: float
    y: float
    side: float
    alone: Image.Image


def bundled(name: str) -> Image.Image:
    """Return an image of scikit-image."""
    (folder,) = find_spec("skimage").submodule_search_locations  # type: ignore[union-attr, misc]
    return Decoder().load(Path(folder, "data", name))


@cache
def sources() -> list[tuple[Image.Image, Face]]:
    """Return images with exactly one face, and their faces."""
    images = [bundled("astronaut.png")]
    paths = sorted((SHARED / "data" / "facecom" / "train").glob("*/*.jpg"))
    images += [Decoder().load(path) for path in paths[:: max(1, len(paths) // SOURCES)]]
    found = [(image, CenterFace().find_faces(image)) for image in images]
    return [(image, *faces) for image, faces in found if len(faces) == 1]


def ground(size: tuple[int, int], generator: np.random.Generator) -> Image.Image:
    """Return a texture of a width and height in a random scale and tint."""
    image = bundled(str(generator.choice(GROUNDS)))
    scale = generator.uniform(0.5, 2)
    image = image.resize([int(scale * side) for side in image.size])
    times = [-(-side // own) for side, own in zip(size, image.size)]
    pixels = np.tile(np.asarray(image), (times[1], times[0], 1))[: size[1], : size[0]]
    return Image.fromarray((pixels * generator.uniform(0.6, 1.2, 3)).clip(0, 255).astype(np.uint8))


def cut(image: Image.Image, face: Face, side: float, tilt: float) -> Image.Image:
    """Return the image around a face, RGBA, scaled to a longer side of its box in pixels and turned by degrees."""
    left, top, width, height = face.box
    half, scale = 0.9 * face.side, side / face.side
    x, y = left + width / 2, top + height / 2
    box = (max(0, x - half), max(0, y - half), min(image.width, x + half), min(image.height, y + half))
    around = image.crop(tuple(map(round, box)))
    around = around.resize([max(1, round(scale * length)) for length in around.size], Image.Resampling.BICUBIC)
    return around.convert("RGBA").rotate(tilt, Image.Resampling.BICUBIC, expand=True)


def compose(seed: int) -> tuple[Image.Image, list[Placed]]:
    """Return a photograph of 0 to 6 faces of 40 to 400 pixels, tilted by up to 30 degrees, and where they are."""
    generator, known = np.random.default_rng(seed), sources()
    sides = np.exp(generator.uniform(np.log(40), np.log(400), seed % 7)).tolist()
    cuts = []
    for side in sorted(sides, reverse=True):
        image, face = known[int(generator.integers(len(known)))]
        cuts.append((side, cut(image, face, side, float(generator.uniform(-30, 30)))))
    longest = max([400, *(max(part.size) for _, part in cuts)])
    width, height = (int(generator.uniform(1.05, 1.6) * longest) for _ in range(2))
    photograph = ground((width, height), generator)
    empty, placed, taken = photograph.copy(), [], []
    for side, part in cuts:
        for _ in range(200):
            x, y = int(generator.integers(width - part.width + 1)), int(generator.integers(height - part.height + 1))
            box = (x, y, x + part.width, y + part.height)
            if all(box[2] <= b[0] or b[2] <= box[0] or box[3] <= b[1] or b[3] <= box[1] for b in taken):
                alone = empty.copy()
                alone.paste(part, (x, y), part)
                margin = int(side / 4)
                alone = alone.crop((max(0, x - margin), max(0, y - margin), box[2] + margin, box[3] + margin))
                placed.append(Placed(x + part.width / 2, y + part.height / 2, side, alone))
                photograph.paste(part, (x, y), part)
                taken.append(box)
                break
    return photograph, sorted(placed, key=lambda face: face.x)


@pytest.fixture(scope="module")
def predictor(tmp_path_factory: pytest.TempPathFactory) -> Predictor:
    """A model that aligns faces, whose head is fitted to the faces by ridge regression."""
    weights = SHARED / "weights" / "resnet18-standin.pth"
    torch.manual_seed(0)
    network = GenderNet(str(weights) if weights.exists() else None).eval()
    preprocessing = Preprocessing(faces="align")
    views = np.stack([preprocessing.pixels(image, face.landmarks) for image, face in sources()])
    with torch.no_grad():
        features = torch.cat(
            [network.features(preprocessing.normalize(some)) for some in torch.from_numpy(views).split(32)]
        )
        signs = torch.tensor([1.0 if at >= len(views) // 5 else -1.0 for at in range(len(views))])  # women come first
        centered = features - features.mean(0)
        ridge = centered.T @ centered + 10 * torch.eye(centered.shape[1])
        network.head.weight.copy_(torch.linalg.solve(ridge, centered.T @ signs)[None] * 4)
        network.head.bias.copy_(-(network.head.weight @ features.mean(0)))
    path = tmp_path_factory.mktemp("model") / "model.pth"
    torch.save(network.plain_state(), path)
    path.with_suffix(".json").write_text(
        '{"preprocessing": {"faces": "align", "size": 224, "interpolation": "bilinear", '
        '"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}'
    )
    return Predictor(path, precision="fp32")


def test_faces_in_photographs_are_found_in_order_and_predicted_as_alone(predictor: Predictor) -> None:
    """Of the faces 97 % are found, of what is found 2 % is none, and 95 % of the labels are those of the face alone."""
    faces = found = false = same = 0
    for seed in range(PHOTOGRAPHS):
        photograph, placed = compose(seed)
        predictions = [each for each in predictor.predict(photograph) if each.box]
        matched: list[int] = []
        clearly: list[tuple[int, float]] = []
        for face in placed:
            near = [at for at, each in enumerate(predictions) if at not in matched and is_at(face, each.box)]
            if near:
                matched.append(near[0])
                assert all(near[0] > at for at, end in clearly if end < face.x - face.side / 4), f"order of {seed}"
                clearly.append((near[0], face.x + face.side / 4))
                alone = [each for each in predictor.predict(face.alone) if each.box]
                same += any(each.label == predictions[near[0]].label for each in alone)
        faces, found, false = faces + len(placed), found + len(matched), false + len(predictions) - len(matched)
    print(f"{PHOTOGRAPHS} photographs, {faces} faces: {found} found, {false} others, {same} labels as alone")
    assert faces > 1.5 * PHOTOGRAPHS
    assert found >= 0.97 * faces
    assert false <= 0.02 * (found + false)
    if len(sources()) > 1:  # else there is one label
        assert same >= 0.95 * found


def is_at(face: Placed, box: tuple[float, float, float, float] | None) -> bool:
    """Return whether a box is about where a face is, and about as large."""
    assert box
    left, top, width, height = box
    near = max(abs(left + width / 2 - face.x), abs(top + height / 2 - face.y)) < face.side / 2
    return near and 0.5 < max(width, height) / face.side < 2


OBJECTS = (
    "brick.png", "cell.png", "chelsea.png", "chessboard_GRAY.png", "chessboard_RGB.png", "clock_motion.png",
    "coffee.png", "coins.png", "color.png", "grass.png", "gravel.png", "horse.png", "hubble_deep_field.jpg", "ihc.png",
    "logo.png", "microaneurysms.png", "moon.png", "motorcycle_left.png", "motorcycle_right.png", "page.png",
    "phantom.png", "retina.jpg", "rocket.jpg", "text.png",
)  # fmt: skip


def without_faces() -> list[Image.Image]:
    """Return a hundred images of objects, whole and in parts, textures and drawings."""
    images = [bundled(name) for name in OBJECTS]
    images += [image.crop((0, 0, image.width // 2, image.height // 2)) for image in images[:24]]
    generator = np.random.default_rng(0)
    for number in range(100 - len(images)):
        if number % 2:
            size = int(generator.integers(100, 900))
            images.append(ground((size, size), generator))
        else:
            drawing = Image.new("RGB", (500, 400), tuple(generator.integers(0, 256, 3).tolist()))
            draw = ImageDraw.Draw(drawing)
            for _ in range(12):
                x, y, side = generator.integers(0, 400), generator.integers(0, 300), generator.integers(10, 200)
                shape = draw.ellipse if generator.random() < 0.5 else draw.rectangle
                shape((int(x), int(y), int(x + side), int(y + side)), tuple(generator.integers(0, 256, 3).tolist()))
            images.append(drawing)
    return images


def test_what_shows_no_face_gets_no_label(predictor: Predictor) -> None:
    images = without_faces()
    assert len(images) == 100
    assert [each.label for each in predictor.predict(images)] == ["no face"] * 100
