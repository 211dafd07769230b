"""Seven corruptions as FACECOM names them, in the spirit of ImageNet-C (Hendrycks and Dietterich, 2019).

Each is a function `name(image, severity, generator)` from RGB, uint8 (H, W, 3), to the same shape and type, and
depends on nothing but its arguments. Severity runs from 1 to 5; 3 is about what FACECOM's organizers did. Lengths are
shares of the image's side, the root of its area, so that images of any size look alike.
"""

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageFilter

MAX_SIDE = 256  # longer side, in pixels, of an image when it is corrupted: a grain is a pixel of FACECOM's images
STREAK_LENGTH = 0.055  # mean length of a streak of rain, as a share of the side

SEVERITY_CONSTANTS: dict[str, Sequence[tuple[float, ...]]] = {  # by severity, 1 to 5
    "blurred": ((0.010,), (0.018,), (0.026,), (0.036,), (0.048,)),  # sigma; a motion's path is five times as long
    "foggy": ((0.75, 55), (0.60, 80), (0.48, 105), (0.36, 130), (0.25, 155)),  # share of the image; mean of the cloud
    "lowlight": ((0.60,), (0.43,), (0.29,), (0.20,), (0.13,)),  # share of the light
    "noisy": ((0.02,), (0.05,), (0.10,), (0.17,), (0.26,)),  # share of the pixels
    "rainy": ((0.02, 0.97), (0.045, 0.95), (0.07, 0.92), (0.11, 0.89), (0.16, 0.86)),  # share under streaks; light
    "resized": ((1.7, 2.5), (3, 4.5), (5, 8), (8, 11), (11, 15)),  # range of the factor
    "sunny": ((0.04, 0.07), (0.09, 0.13), (0.15, 0.20), (0.22, 0.27), (0.30, 0.36)),  # range of the disc's share
}
SEVERITIES = range(1, 6)
_FACTS = repr((SEVERITY_CONSTANTS, MAX_SIDE, STREAK_LENGTH)).encode()
CORRUPTIONS_HASH = hashlib.blake2b(_FACTS, digest_size=8).hexdigest()  # part of the names of feature stores


def blurred(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Blur the image as out of focus (Gaussian) or as moved in a straight line, with equal chances."""
    (share,) = _constants("blurred", severity)
    sigma = share * _side(image)
    if generator.random() < 0.5:
        return np.asarray(Image.fromarray(image).filter(ImageFilter.GaussianBlur(sigma)))
    angle, path = generator.uniform(0, np.pi), 5 * sigma
    steps = np.linspace(-path / 2, path / 2, max(3, round(path)))
    shifts = np.unique(np.rint(np.outer(steps, (np.sin(angle), np.cos(angle)))).astype(int), axis=0)
    margin = int(abs(shifts).max())
    height, width = image.shape[:2]
    wide = np.pad(image, ((margin, margin), (margin, margin), (0, 0)), mode="edge")
    total = np.zeros(image.shape, np.uint32)
    for down, right in margin + shifts:
        total += wide[down : down + height, right : right + width]
    return (total // len(shifts)).astype(np.uint8)


def foggy(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Lay a smooth gray cloud over the image, thicker in some places."""
    share, cloud = _constants("foggy", severity)
    thickness = np.sum([_smooth(image, cells, generator) / cells for cells in (2, 4, 8)], axis=0)
    return _clip(image * np.float32(share) + (np.float32(cloud) * (1 + np.float32(0.35) * thickness))[..., None])


def lowlight(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Darken the image."""
    (share,) = _constants("lowlight", severity)
    return _clip(image * np.float32(share))


def noisy(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Turn single pixels white or black: salt and pepper."""
    (share,) = _constants("noisy", severity)
    chance = generator.random(image.shape[:2], dtype=np.float32)
    noise = image.copy()
    noise[chance < share / 2] = 0
    noise[chance > 1 - share / 2] = 255
    return noise


def rainy(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Darken the image a little and draw dense, short, slanted, bright streaks."""
    share, light = _constants("rainy", severity)
    height, width = image.shape[:2]
    length = max(1.0, STREAK_LENGTH * _side(image))
    number = max(1, round(share * height * width / length))
    slant = np.tan(np.radians(generator.uniform(-25, 25)))
    along = np.arange(round(2 * length))
    ends = generator.uniform(0.5, 1.5, number)[:, None] * length
    rows = generator.uniform(-length, height, number)[:, None] + along
    columns = generator.uniform(-length, width + length, number)[:, None] + slant * along
    inside = (along < ends) & (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    bright = np.broadcast_to(generator.uniform(0.35, 0.8, number).astype(np.float32)[:, None], inside.shape)
    streaks = np.zeros((height, width), np.float32)
    streaks[rows[inside].astype(int), columns[inside].astype(int)] = bright[inside]
    return _clip(image * (np.float32(light) * (1 - streaks))[..., None] + (np.float32(235) * streaks)[..., None])


def resized(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Make the image small, then as large as before."""
    least, most = _constants("resized", severity)
    factor = generator.uniform(least, most)
    height, width = image.shape[:2]
    small = max(1, round(width / factor)), max(1, round(height / factor))
    reduced = Image.fromarray(image).resize(small, Image.Resampling.BILINEAR)
    return np.asarray(reduced.resize((width, height), Image.Resampling.BILINEAR))


def sunny(image: np.ndarray, severity: int, generator: np.random.Generator) -> np.ndarray:
    """Draw a saturated white disc with a narrow glow, more often near the center, where the face is."""
    least, most = _constants("sunny", severity)
    share = generator.uniform(least, most)
    height, width = image.shape[:2]
    radius = np.sqrt(share * height * width / np.pi)
    down, right = generator.normal(0.5, 0.17, 2).clip(0.2, 0.8) * (height, width)
    rows, columns = np.ogrid[:height, :width]
    distance = np.sqrt((rows - down) ** 2 + (columns - right) ** 2).astype(np.float32)
    glow = (1 - (distance - np.float32(radius)) / np.float32(0.3 * radius)).clip(0, 1)  # 1 within the disc
    light = np.maximum(glow**2, np.float32(0.35) * np.exp(-distance / np.float32(radius)))[..., None]
    return _clip(image * (1 - light) + 255 * light)


# In the order of the constants, whose hash names feature stores. It does not see the code of a function: clear the
# stores when you change one (python -m gender_cls.features.store --clear all).
CORRUPTIONS = {name: globals()[name] for name in SEVERITY_CONSTANTS}


def corrupt(image: Image.Image, generator: np.random.Generator, *steps: tuple[str, int]) -> Image.Image:
    """Apply corruptions, by name and severity in order, to an RGB image, reduced first if it is over `MAX_SIDE`."""
    image = image.copy()
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.BILINEAR)  # never makes it larger
    pixels = np.asarray(image)
    for name, severity in steps:
        pixels = CORRUPTIONS[name](pixels, severity, generator)
    return Image.fromarray(pixels)


def _constants(name: str, severity: int) -> tuple[float, ...]:
    if severity not in SEVERITIES:
        raise ValueError(f"severity {severity}; give 1 to 5")
    return SEVERITY_CONSTANTS[name][severity - 1]


def _side(image: np.ndarray) -> float:
    return float(np.sqrt(image.shape[0] * image.shape[1]))


def _clip(values: np.ndarray) -> np.ndarray:
    return (values + np.float32(0.5)).clip(0, 255).astype(np.uint8)


def _smooth(image: np.ndarray, cells: int, generator: np.random.Generator) -> np.ndarray:
    """Return a random field with `cells` bumps a side, about -1..1, float32 (H, W)."""
    coarse = Image.fromarray(generator.uniform(-2, 2, (cells + 1, cells + 1)).astype(np.float32))
    return np.asarray(coarse.resize((image.shape[1], image.shape[0]), Image.Resampling.BICUBIC))
