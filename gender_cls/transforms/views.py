"""Views of an image: each is a pure function of the image's content, a seed and a number."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from gender_cls.errors import UserError, check_integer, check_share
from gender_cls.transforms.corruptions import CORRUPTIONS, CORRUPTIONS_HASH, SEVERITIES, corrupt
from gender_cls.transforms.preprocessing import Preprocessing

MID_SEVERITY = 3  # the severity that stands for a corruption where only one is reported
CONDITIONS = [("clean", 0)] + [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
CLEAN = 0  # index in `CONDITIONS` of the image as it is
REPORTED = {"clean": CLEAN, **{name: CONDITIONS.index((name, MID_SEVERITY)) for name in CORRUPTIONS}}


def derive_seed(*parts: object) -> int:
    """Return a seed in 0..2**63 - 1 from parts that can be printed, the same on every machine."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


class Views(Protocol):
    """A way to make views of an image.

    Attributes:
        preprocessing: Last step of each view.
        facts: Everything that decides how the views look. It names the feature store, so its keys and values stay
            as they were first stored, in older words: "of", "degrade", "degradations".
    """

    preprocessing: Preprocessing
    facts: dict[str, object]

    def __call__(self, image: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """Return the views of these numbers, uint8 (N, 3, size, size), of an RGB image by its file's digest."""


class EvaluationViews:
    """The image as it is and under each corruption and severity, the same in every run; see `Views`.

    The numbers are indices in `CONDITIONS`. An image is corrupted before it is cropped and resized, so every model
    sees the same corrupted images.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.facts: dict[str, object] = {**asdict(preprocessing), "of": "evaluation", "degradations": CORRUPTIONS_HASH}

    def __call__(self, image: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """See `Views`."""
        pixels = [self.preprocessing.pixels(corrupted(image, digest, number)) for number in numbers]
        return torch.from_numpy(np.stack(pixels))


def corrupted(image: Image.Image, digest: str, number: int) -> Image.Image:
    """Return the RGB image under the condition `CONDITIONS[number]`, before it is cropped and resized."""
    if number == CLEAN:
        return image
    generator = np.random.default_rng(derive_seed("evaluation", digest, *CONDITIONS[number]))
    return corrupt(image, generator, CONDITIONS[number])


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
    """

    flip: float = 0.5
    jitter: Sequence[float] = (0.2, 0.2, 0.2)
    blur: int = 3
    scale: Sequence[float] | None = None
    size: int | None = None

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

    def facts(self) -> dict[str, object]:
        """Return everything that decides how the views look; see `Views`."""
        return {**asdict(self), "degradations": CORRUPTIONS_HASH} if self.share else {}

    def draw(self, generator: np.random.Generator) -> list[tuple[str, int]]:
        """Draw the corruptions of one view, often none."""
        number = int(generator.random() < self.share)
        number += number * int(generator.random() < self.twice)
        kinds = generator.permutation(list(self.kinds))[:number]
        return [(str(kind), int(generator.choice(self.severities))) for kind in kinds]


class TrainingViews:
    """Randomly changed views for training; the numbers count the draws of an image from 0. See `Views`.

    Some views are corrupted first; then come the preprocessing and the augmentation.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        augment: Augmentation = Augmentation(),
        corruption: RandomCorruption = RandomCorruption(),
        seed: int = 0,
    ) -> None:
        self.preprocessing, self.corruption, self.seed = preprocessing, corruption, seed
        facts: dict[str, object] = {"flip": augment.flip, "jitter": list(augment.jitter), "blur": augment.blur}
        facts |= {"of": "training", "degrade": corruption.facts(), "view_seed": seed}
        steps = [v2.RandomHorizontalFlip(augment.flip), v2.ColorJitter(*augment.jitter)]
        if augment.scale is not None:
            side = augment.size or preprocessing.size
            facts |= {"scale": list(augment.scale), "side": side}
            steps.insert(0, v2.RandomResizedCrop(side, tuple(augment.scale)))
        self.facts = {**asdict(preprocessing), **facts}
        self.augment = v2.Compose(steps)
        self.blur = v2.GaussianBlur(augment.blur) if augment.blur else None

    def __call__(self, image: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """See `Views`; the views that are not corrupted share one resize."""
        plain = self.preprocessing.pixels(image)
        return torch.stack([self._view(image, plain, digest, draw) for draw in numbers])

    def _view(self, image: Image.Image, plain: np.ndarray, digest: str, draw: int) -> torch.Tensor:
        generator = np.random.default_rng(derive_seed("degrade", self.seed, digest, draw))
        steps = self.corruption.draw(generator)
        resized = self.preprocessing.pixels(corrupt(image, generator, *steps)) if steps else plain
        with torch.random.fork_rng(devices=[]):  # the caller's random state is left as it was
            torch.default_generator.manual_seed(derive_seed("view", self.seed, digest, draw))  # leaves the GPU alone
            view = self.augment(torch.from_numpy(resized))
            # one channel at a time: oneDNN takes four times as long for the three at once
            return view if self.blur is None or steps else self.blur(view[:, None])[:, 0]
