"""Views of an image: each is a pure function of the image's content, a seed and a number."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from gender_cls.errors import UserError, check_extra, check_integer, check_share
from gender_cls.transforms.corruptions import CORRUPTIONS, CORRUPTIONS_HASH, SEVERITIES, corrupt
from gender_cls.transforms.faces import NEEDED, CenterFace, main_face
from gender_cls.transforms.preprocessing import Preprocessing

MID_SEVERITY = 3  # the severity that stands for a corruption where only one is reported
FRAMES = (0.5, 0.65, 0.8, 1.25)  # sides of a frame around the image's middle, as shares of its own
# Their indices name columns of stores, so that conditions are only ever added at the end.
CONDITIONS: list[tuple[str, int | float]] = [("clean", 0)]
CONDITIONS += [(name, severity) for name in CORRUPTIONS for severity in SEVERITIES]
CONDITIONS += [("framing", share) for share in FRAMES]
CLEAN = 0  # index in `CONDITIONS` of the image as it is
IN_FRAME = {share: CLEAN if share == 1 else CONDITIONS.index(("framing", share)) for share in sorted((*FRAMES, 1.0))}
REPORTED = {"clean": CLEAN, **{name: CONDITIONS.index((name, MID_SEVERITY)) for name in CORRUPTIONS}}


def derive_seed(*parts: object) -> int:
    """Return a seed in 0..2**63 - 1 from parts that can be printed, the same on every machine."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


Find = Callable[[Image.Image, str, int], np.ndarray | None]
"""Returns the landmarks (5, 2) of the face of an image that is in a condition, by its file's digest; or None."""


def finder(preprocessing: Preprocessing) -> Find | None:
    """Return what looks for the face of an image at each call; None if the preprocessing wants no face."""
    if preprocessing.faces == "none":
        return None
    check_extra("data.faces=align", "faces", *NEEDED, way_out=", or give data.faces=none")
    detector = CenterFace(preprocessing.min_score)

    def find(image: Image.Image, digest: str, number: int) -> np.ndarray | None:
        face = main_face(detector.find_faces(image), image.size)
        return None if face is None else face.landmarks

    return find


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
    """The image as it is, under each corruption and severity, and in other frames, the same in every run; see `Views`.

    The numbers are indices in `CONDITIONS`. An image is corrupted before its face is looked for and it is cropped and
    resized, so every model sees the same corrupted images.

    Args:
        preprocessing: Last step of each view.
        find: What finds faces, if the preprocessing wants them; None looks for each.
    """

    def __init__(self, preprocessing: Preprocessing, find: Find | None = None) -> None:
        self.preprocessing = preprocessing
        self.find = find or finder(preprocessing)
        self.facts: dict[str, object] = {**preprocessing.facts(), "of": "evaluation", "degradations": CORRUPTIONS_HASH}

    def __call__(self, image: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """See `Views`."""
        return torch.from_numpy(np.stack([self._pixels(image, digest, number) for number in numbers]))

    def _pixels(self, image: Image.Image, digest: str, number: int) -> np.ndarray:
        image = in_condition(image, digest, number)
        return self.preprocessing.pixels(image, self.find and self.find(image, digest, number))


def in_condition(image: Image.Image, digest: str, number: int) -> Image.Image:
    """Return the RGB image in the condition `CONDITIONS[number]`, before it is cropped and resized."""
    if number == CLEAN:
        return image
    name, strength = CONDITIONS[number]
    if name == "framing":
        return framed(image, strength)
    generator = np.random.default_rng(derive_seed("evaluation", digest, name, strength))
    return corrupt(image, generator, (name, int(strength)))


def framed(image: Image.Image, share: float) -> Image.Image:
    """Return the middle of an image, whose sides are a share of its own; above 1 its edge is repeated."""
    widths = [round((share - 1) / 2 * length) for length in image.size]
    if share <= 1:
        return image.crop((-widths[0], -widths[1], image.width + widths[0], image.height + widths[1]))
    (x, y), pixels = widths, np.asarray(image)
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

    An image gets a frame first, and some views are corrupted; then come the preprocessing and the rest of the
    augmentation. The face is the one that is found in the clean image.
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        augment: Augmentation = Augmentation(),
        corruption: RandomCorruption = RandomCorruption(),
        seed: int = 0,
        find: Find | None = None,
    ) -> None:
        self.preprocessing, self.corruption, self.seed = preprocessing, corruption, seed
        self.find, self.frames = find or finder(preprocessing), augment
        facts: dict[str, object] = {"flip": augment.flip, "jitter": list(augment.jitter), "blur": augment.blur}
        facts |= {"of": "training", "degrade": corruption.facts(), "view_seed": seed}
        steps = [v2.RandomHorizontalFlip(augment.flip), v2.ColorJitter(*augment.jitter)]
        if augment.scale is not None:
            side = augment.size or preprocessing.size
            facts |= {"scale": list(augment.scale), "side": side}
            steps.insert(0, v2.RandomResizedCrop(side, tuple(augment.scale)))
        if augment.frame is not None:
            facts |= {"frame": list(augment.frame)}
        if self.find:
            facts |= {"landmarks": list(augment.landmarks)}
        self.facts = {**preprocessing.facts(), **facts}
        self.augment = v2.Compose(steps)
        self.blur = v2.GaussianBlur(augment.blur) if augment.blur else None

    def __call__(self, image: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """See `Views`; without a face or frame, the views that are not corrupted share one resize."""
        landmarks = self.find and self.find(image, digest, CLEAN)
        alike = landmarks is None and self.frames.frame is None
        plain = self.preprocessing.pixels(image) if alike else None
        return torch.stack([self._view(image, plain, landmarks, digest, draw) for draw in numbers])

    def _view(
        self, image: Image.Image, plain: np.ndarray | None, landmarks: np.ndarray | None, digest: str, draw: int
    ) -> torch.Tensor:
        generator = np.random.default_rng(derive_seed("degrade", self.seed, digest, draw))
        steps = self.corruption.draw(generator)
        if plain is None:
            places = np.random.default_rng(derive_seed("frame", self.seed, digest, draw))
            image, landmarks = self.frames.place(image, landmarks, places)
        changed = corrupt(image, generator, *steps) if steps else image
        if landmarks is not None:
            landmarks = landmarks * changed.size / np.array(image.size)
        resized = self.preprocessing.pixels(changed, landmarks) if steps or plain is None else plain
        with torch.random.fork_rng(devices=[]):  # the caller's random state is left as it was
            torch.default_generator.manual_seed(derive_seed("view", self.seed, digest, draw))  # leaves the GPU alone
            view = self.augment(torch.from_numpy(resized))
            # one channel at a time: oneDNN takes four times as long for the three at once
            return view if self.blur is None or steps else self.blur(view[:, None])[:, 0]
