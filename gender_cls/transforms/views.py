"""Views of an image: each is a pure function of the image's content, a seed and a number."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

from gender_cls.errors import check_extra
from gender_cls.transforms.augmentation import Augmentation, RandomCorruption, framed
from gender_cls.transforms.centerface import NEEDED, CenterFace
from gender_cls.transforms.corruptions import CORRUPTIONS, CORRUPTIONS_HASH, SEVERITIES, corrupt
from gender_cls.transforms.faces import Detector, main_face
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


class Find(Protocol):
    """A way to find the face of an image.

    Attributes:
        facts: Everything that decides what it finds.
    """

    @property
    def facts(self) -> dict[str, Any]:
        """See above."""

    def __call__(self, image: Image.Image, digest: str, number: int) -> np.ndarray | None:
        """Return the landmarks (5, 2) of the face of an image that is in a condition, by its file's digest; or None."""


@dataclass(frozen=True)
class Look:
    """A `Find` that looks for the face at each call."""

    detector: Detector

    @property
    def facts(self) -> dict[str, Any]:
        """See `Find`."""
        return self.detector.facts

    def __call__(self, image: Image.Image, digest: str, number: int) -> np.ndarray | None:
        """See `Find`."""
        face = main_face(self.detector.find_faces(image), image.size)
        return None if face is None else face.landmarks


def finder(preprocessing: Preprocessing) -> Find | None:
    """Return what looks for the face of an image at each call; None if the preprocessing wants no face."""
    if preprocessing.faces == "none":
        return None
    check_extra("data.faces=align", "faces", *NEEDED, way_out=", or give data.faces=none")
    return Look(CenterFace(preprocessing.min_score))


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
        self.facts: dict[str, object] = {**preprocessing.values(), "of": "evaluation", "degradations": CORRUPTIONS_HASH}
        self.facts |= self.find.facts if self.find else {}

    def __call__(self, image: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """See `Views`."""
        return torch.from_numpy(np.stack([self._pixels(image, digest, number) for number in numbers]))

    def _pixels(self, image: Image.Image, digest: str, number: int) -> np.ndarray:
        image = in_condition(image, digest, number)
        return self.preprocessing.pixels(image, None if self.find is None else self.find(image, digest, number))


def in_condition(image: Image.Image, digest: str, number: int) -> Image.Image:
    """Return the RGB image in the condition `CONDITIONS[number]`, before it is cropped and resized."""
    if number == CLEAN:
        return image
    name, strength = CONDITIONS[number]
    if name == "framing":
        return framed(image, strength)
    generator = np.random.default_rng(derive_seed("evaluation", digest, name, strength))
    return corrupt(image, generator, (name, int(strength)))


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
            facts |= {"landmarks": list(augment.landmarks), **self.find.facts}
        self.facts = {**preprocessing.values(), **facts}
        self.augment = v2.Compose(steps)
        self.blur = v2.GaussianBlur(augment.blur) if augment.blur else None

    def __call__(self, image: Image.Image, digest: str, numbers: Sequence[int]) -> torch.Tensor:
        """See `Views`; without a face or frame, the views that are not corrupted share one resize."""
        landmarks = None if self.find is None else self.find(image, digest, CLEAN)
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
