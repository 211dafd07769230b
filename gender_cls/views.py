"""All views of a picture, each a pure function of the picture's content, a seed and a number."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from gender_cls.degrade import CONSTANTS, DEGRADATIONS, LARGEST, SEVERITIES, STREAKS, degrade
from gender_cls.errors import UserError
from gender_cls.transforms import Preprocessing, derive_seed

CLEAN = 0  # the number of the evaluation view in which nothing is degraded
DEGRADATIONS_HASH = hashlib.blake2b(repr((CONSTANTS, LARGEST, STREAKS)).encode(), digest_size=8).hexdigest()
MIDDLE = 3  # the severity that stands for a degradation
CONDITIONS = [("clean", 0)] + [(name, severity) for name in DEGRADATIONS for severity in SEVERITIES]
ASKED = {
    "clean": CLEAN,
    **{name: CONDITIONS.index((name, MIDDLE)) for name in DEGRADATIONS},
}  # what most tables tell of


class Views(Protocol):
    """What makes views of a picture.

    Attributes:
        preprocessing: That ends each view.
        facts: All that decides how the views look.
    """

    preprocessing: Preprocessing
    facts: dict[str, object]

    def __call__(self, picture: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """Some of the views.

        Args:
            picture: Decoded, RGB.
            digest: Of its file's content.
            numbers: Which views.

        Returns:
            uint8 (len(numbers), 3, size, size).
        """
        ...


class EvaluationViews:
    """The picture as it is, and under each degradation and severity: the same ones in every run.

    The numbers are places in `CONDITIONS`. A picture is degraded before it is cropped and resized, so every model is
    asked about the same degraded pictures.
    """

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.facts: dict[str, object] = {**asdict(preprocessing), "of": "evaluation", "degradations": DEGRADATIONS_HASH}

    def __call__(self, picture: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """See `Views`."""
        return torch.stack([self.preprocessing.resize(degraded(picture, digest, number)) for number in numbers])


@dataclass(frozen=True)
class Degrading:
    """Which training views are degraded, and how.

    Attributes:
        share: Of the views that are degraded, in 0..1.
        twice: Share of those that are degraded a second time, by another kind, in 0..1.
        kinds: Names to draw from.
        severities: To draw from, 1 to 5.

    Raises:
        UserError: a value is out of its range, or there is nothing to draw from.
    """

    share: float = 0.0
    twice: float = 0.0
    kinds: Sequence[str] = tuple(DEGRADATIONS)
    severities: Sequence[int] = tuple(SEVERITIES)

    def __post_init__(self) -> None:
        for key in ("share", "twice"):
            value = getattr(self, key)
            if not isinstance(value, int | float) or not 0 <= value <= 1:
                raise UserError(f"degrade.{key}={value}: give a share from 0 to 1")
        for key, known in (("kinds", list(DEGRADATIONS)), ("severities", list(SEVERITIES))):
            chosen = getattr(self, key)
            if not isinstance(chosen, list | tuple) or not chosen or not set(chosen) <= set(known):
                raise UserError(f"degrade.{key}={chosen}: give some of {known}")

    def facts(self) -> dict[str, object]:
        """What decides how views look."""
        return {**asdict(self), "degradations": DEGRADATIONS_HASH} if self.share else {}

    def draw(self, generator: np.random.Generator) -> list[tuple[str, int]]:
        """The degradations of one view; often none."""
        number = int(generator.random() < self.share)
        number += number * int(generator.random() < self.twice)
        kinds = generator.permutation(list(self.kinds))[:number]
        return [(str(kind), int(generator.choice(self.severities))) for kind in kinds]


def degraded(picture: Image.Image, digest: str, number: int) -> Image.Image:
    """The picture, RGB, in the condition of that number, before it is cropped and resized."""
    if number == CLEAN:
        return picture
    generator = np.random.default_rng(derive_seed("evaluation", digest, *CONDITIONS[number]))
    return degrade(picture, generator, CONDITIONS[number])


class TrainingViews:
    """Views with something random in them; the number is that of the draw, from 0.

    Args:
        preprocessing: That ends each view.
        flip: Probability of a horizontal flip.
        jitter: Strengths of brightness, contrast and saturation; 0.2 means a factor in 0.8..1.2.
        blur: Side of the Gaussian kernel in pixels, odd; sigma is drawn from 0.1..2; 0 turns it off. A degraded view
            is not blurred on top, which would smooth noise away.
        degrading: What is degraded.
        seed: Of what is random.
        scale: Shares of the view's area, least and most, of a random crop that is resized to `size`; None turns it off.
        size: Side of the views then, in pixels; None: the preprocessing's. Smaller ones train faster, and a random crop
            shows faces larger than evaluation does, which makes up for it (Touvron et al., 2019, "Fixing the train-test
            resolution discrepancy").

    Raises:
        UserError: scale or size is out of its range.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        flip: float,
        jitter: Sequence[float],
        blur: int,
        degrading: Degrading = Degrading(),
        seed: int = 0,
        scale: Sequence[float] | None = None,
        size: int | None = None,
    ) -> None:
        self.preprocessing = preprocessing
        augment: dict[str, object] = {"flip": flip, "jitter": list(jitter), "blur": blur, "degrade": degrading.facts()}
        self.facts: dict[str, object] = {**asdict(preprocessing), "of": "training", **augment, "view_seed": seed}
        self.seed = seed
        self.degrading = degrading
        steps = [v2.RandomHorizontalFlip(flip), v2.ColorJitter(*jitter)]
        if scale is not None:
            side = preprocessing.size if size is None else size
            if not isinstance(scale, Sequence) or len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1 or side < 1:
                raise UserError(f"data.augment: scale={scale} and size={size}; give such as [0.5, 1.0] and 176")
            self.facts |= {"scale": list(scale), "side": side}
            steps.insert(0, v2.RandomResizedCrop(side, tuple(scale)))
        elif size is not None:
            raise UserError(f"data.augment.size={size} needs data.augment.scale, such as [0.5, 1.0]")
        self.change = v2.Compose(steps)
        self.blur = v2.GaussianBlur(blur) if blur else None

    def __call__(self, picture: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """See `Views`; the picture is resized once for all that are not degraded."""
        plain = self.preprocessing.resize(picture)
        return torch.stack([self._view(picture, plain, digest, draw) for draw in numbers])

    def _view(self, picture: Image.Image, plain: torch.Tensor, digest: str, draw: int) -> torch.Tensor:
        generator = np.random.default_rng(derive_seed("degrade", self.seed, digest, draw))
        steps = self.degrading.draw(generator)
        resized = self.preprocessing.resize(degrade(picture, generator, *steps)) if steps else plain
        with torch.random.fork_rng(devices=[]):  # the caller's randomness is left as it was
            torch.default_generator.manual_seed(derive_seed("view", self.seed, digest, draw))  # leaves the GPU alone
            view = self.change(resized)
            # a channel at a time: the three at once take oneDNN four times as long
            return view if self.blur is None or steps else self.blur(view[:, None])[:, 0]
