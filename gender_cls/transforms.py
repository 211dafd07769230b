"""From a decoded picture to the network's input; the only place that resizes and normalises."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2

Transform = Callable[[Image.Image], torch.Tensor]


@dataclass(frozen=True)
class Preprocessing:
    """What the network expects; it is saved beside the model, and its defaults are the recipe's.

    Attributes:
        size: Side of the square input, in pixels; the aspect ratio is not kept.
        interpolation: Of the resize, done by Pillow (with its antialiasing) on 8-bit pictures.
        mean: Subtracted from each channel of RGB in 0..1.
        std: Then divided by.
    """

    size: int = 224
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def evaluation(self) -> Transform:
        """A transform from a picture to a float32 tensor (3, size, size), nothing random in it."""
        return v2.Compose([self._resize(), *self._to_tensor()])

    def training(self, flip: float, jitter: Sequence[float], blur: int) -> Transform:
        """As `evaluation`, with random changes from torch's global generator; see `seeded`.

        Args:
            flip: Probability of a horizontal flip.
            jitter: Strengths of brightness, contrast and saturation; 0.2 means a factor in 0.8..1.2.
            blur: Side of the Gaussian kernel in pixels, odd; sigma is drawn from 0.1..2. 0 turns it off.
        """
        random: list[torch.nn.Module] = [v2.RandomHorizontalFlip(flip), v2.ColorJitter(*jitter)]
        if blur:
            random.append(v2.GaussianBlur(blur))
        return v2.Compose([self._resize(), *random, *self._to_tensor()])

    def _resize(self) -> v2.Resize:
        return v2.Resize((self.size, self.size), InterpolationMode(self.interpolation))

    def _to_tensor(self) -> list[torch.nn.Module]:
        return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(self.mean), list(self.std))]


def seeded(transform: Transform, picture: Image.Image, *parts: object) -> torch.Tensor:
    """A view as a pure function of the picture and `parts`: torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(*parts))  # torch.manual_seed would reach for the GPU as well
        return transform(picture)


def derive_seed(*parts: object) -> int:
    """A seed in 0..2**63 - 1 from anything that prints, the same on every machine."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
