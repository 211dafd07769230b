"""What is random in training views: frames, places of faces, crops, colors and corruptions."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from PIL import Image

from gender_cls.errors import UserError, check_integer, check_share
from gender_cls.transforms.corruptions import CORRUPTIONS, CORRUPTIONS_HASH, SEVERITIES


def framed(image: Image.Image, share: float) -> Image.Image:
    """Return the middle of an image, whose sides are a share of its own; above 1 its edge is repeated."""
    x, y = (max(round((share - 1) / 2 * length), -((length - 1) // 2)) for length in image.size)
    if share <= 1:
        return image.crop((-x, -y, image.width + x, image.height + y))
    pixels = np.asarray(image)
    return Image.fromarray(np.pad(pixels, ((y, y), (x, x), (0, 0)), mode="edge"))


@dataclass(frozen=True)
class Augmentation:
    """Random changes of the training views; bad values raise a `UserError`.

    Attributes:
        flip: Probability of a horizontal flip.
        jitter: Strengths of brightness, contrast and saturation; 0.2 means a factor in 0.8..1.2.
        blur: Side of the Gaussian kernel in pixels, odd; sigma is drawn from 0.1..2; 0 turns it off. A corrupted view
            is not blurred as well, which would smooth its noise away.
        scale: Smallest and largest share of the area that a random crop keeps, which is then resized to `size`; None
            turns it off.
        size: Side of the views after the crop, in pixels; None is the preprocessing's. Smaller views train faster,
            and a random crop shows faces larger than evaluation does, which makes up for it (Touvron et al., 2019,
            "Fixing the train-test resolution discrepancy"). It needs a scale.
        frame: Smallest and largest share of the image's sides that is kept, around its middle, before anything else;
            above 1 its edge is repeated. None turns it off.
        landmarks: Standard deviations of an error of the place of an aligned face, as the detector's in corrupted
            images (benchmarks/faces.py): of the logarithm of its size, of its shift along each side as a share of the
            distance of the eyes, and of its turn in degrees. Zeros turn it off.
    """

    flip: float = 0.5
    jitter: Sequence[float] = (0.2, 0.2, 0.2)
    blur: int = 3
    scale: Sequence[float] | None = None
    size: int | None = None
    frame: Sequence[float] | None = None
    landmarks: Sequence[float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        check_share("data.augment.flip", self.flip, zero=True, one=True)
        if not _numbers(self.jitter, 3) or min(self.jitter) < 0:
            raise UserError("bad-value", f"data.augment.jitter={self.jitter}: give three strengths of at least 0")
        check_integer("data.augment.blur", self.blur, 0)
        if self.blur and self.blur % 2 == 0:
            raise UserError("bad-value", f"data.augment.blur={self.blur}: give an odd number of pixels, or 0")
        if self.scale is not None and (not _numbers(self.scale, 2) or not 0 < self.scale[0] <= self.scale[1] <= 1):
            raise UserError("bad-value", f"data.augment.scale={self.scale}: give shares such as [0.5, 1], or null")
        if self.size is not None:
            check_integer("data.augment.size", self.size, 1)
            if self.scale is None:
                raise UserError("conflict", f"data.augment.size={self.size} needs data.augment.scale, such as [0.5, 1]")
        if self.frame is not None and (not _numbers(self.frame, 2) or not 0 < self.frame[0] <= self.frame[1]):
            raise UserError("bad-value", f"data.augment.frame={self.frame}: give shares such as [0.5, 1.25], or null")
        if not _numbers(self.landmarks, 3) or min(self.landmarks) < 0:
            raise UserError("bad-value", f"data.augment.landmarks={self.landmarks}: give three numbers of at least 0")
        object.__setattr__(self, "landmarks", tuple(map(float, self.landmarks)))  # equal values name one feature store
        object.__setattr__(self, "frame", self.frame and tuple(map(float, self.frame)))

    def values(self) -> dict[str, Any]:
        """Return the values by key, without new ones that are turned off: older checkpoints do not have them."""
        new = {"frame": self.frame is not None, "landmarks": any(self.landmarks)}
        return {key: value for key, value in asdict(self).items() if new.get(key, True)}

    def place(
        self, image: Image.Image, landmarks: np.ndarray | None, generator: np.random.Generator
    ) -> tuple[Image.Image, np.ndarray | None]:
        """Return an image in a random frame, and the landmarks (5, 2) of its face in it with a random error."""
        sides = np.array(image.size)
        if self.frame is not None:
            image = framed(image, float(np.exp(generator.uniform(*np.log(self.frame)))))
        if landmarks is None:
            return image, None
        landmarks = landmarks + (np.array(image.size) - sides) / 2
        size, shift, roll = self.landmarks
        middle, eyes = landmarks.mean(0), np.hypot(*(landmarks[1] - landmarks[0]))
        factor, angle = np.exp(generator.normal(0, size)), np.radians(generator.normal(0, roll))
        turn = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return image, (landmarks - middle) @ turn.T + middle + generator.normal(0, shift, 2) * eyes


def _numbers(values: object, count: int) -> bool:
    return isinstance(values, list | tuple) and [isinstance(value, int | float) for value in values] == [True] * count


@dataclass(frozen=True)
class RandomCorruption:
    """Random corruptions of the training views; bad values raise a `UserError`.

    Attributes:
        share: Share of the views that are corrupted, in 0..1.
        twice: Share of the corrupted views that are corrupted again, by another kind, in 0..1.
        kinds: Names of the corruptions to draw from, at least one.
        severities: Severities to draw from, in 1..5, at least one.
    """

    share: float = 0.0
    twice: float = 0.0
    kinds: Sequence[str] = tuple(CORRUPTIONS)
    severities: Sequence[int] = tuple(SEVERITIES)

    def __post_init__(self) -> None:
        for key in ("share", "twice"):
            check_share(f"corruption.{key}", getattr(self, key), zero=True, one=True)
        for key, known in (("kinds", list(CORRUPTIONS)), ("severities", list(SEVERITIES))):
            chosen = getattr(self, key)
            if not isinstance(chosen, list | tuple) or not chosen or any(value not in known for value in chosen):
                raise UserError("bad-value", f"corruption.{key}={chosen}: give some of {known}")

    def values(self) -> dict[str, Any]:
        """Return the values by key."""
        return asdict(self)

    def facts(self) -> dict[str, object]:
        """Return everything that decides how the views look; see `Views`."""
        return {**asdict(self), "degradations": CORRUPTIONS_HASH} if self.share else {}

    def draw(self, generator: np.random.Generator) -> list[tuple[str, int]]:
        """Draw the corruptions of one view, often none."""
        number = int(generator.random() < self.share)
        number += number * int(generator.random() < self.twice)
        kinds = generator.permutation(list(self.kinds))[:number]
        return [(str(kind), int(generator.choice(self.severities))) for kind in kinds]
