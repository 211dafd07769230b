"""From a decoded picture to the network's input; the only place that resizes and normalises."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

EVALUATION = -1  # stands for the draw of the view that evaluation uses


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

    def resize(self, picture: Image.Image) -> torch.Tensor:
        """The picture as the network's size has it, uint8 (3, size, size)."""
        resized = F.resize(picture, [self.size, self.size], InterpolationMode(self.interpolation))
        return F.pil_to_tensor(resized)

    def normalize(self, views: torch.Tensor) -> torch.Tensor:
        """What the network takes, float32, of uint8 views (..., 3, size, size)."""
        return F.normalize(F.to_dtype(views, torch.float32, scale=True), list(self.mean), list(self.std))


class Views:
    """All views of a picture, each a pure function of the picture's content, the seed and the number of the draw.

    Args:
        preprocessing: Its size and resize are used.
        flip: Probability of a horizontal flip.
        jitter: Strengths of brightness, contrast and saturation; 0.2 means a factor in 0.8..1.2.
        blur: Side of the Gaussian kernel in pixels, odd; sigma is drawn from 0.1..2. 0 turns it off.
        seed: Of what is random.
    """

    def __init__(
        self, preprocessing: Preprocessing, flip: float, jitter: Sequence[float], blur: int, seed: int
    ) -> None:
        self.preprocessing = preprocessing
        self.facts = {**asdict(preprocessing), "flip": flip, "jitter": list(jitter), "blur": blur, "view_seed": seed}
        self.seed = seed
        self.change = v2.Compose([v2.RandomHorizontalFlip(flip), v2.ColorJitter(*jitter)])
        self.blur = v2.GaussianBlur(blur) if blur else None

    def __call__(self, picture: Image.Image, digest: str, draws: Sequence[int]) -> torch.Tensor:
        """Some of the views; the picture is resized once for all of them.

        Args:
            picture: Decoded, RGB.
            digest: Of its file's content.
            draws: 0, 1, 2, ... are training views, `EVALUATION` is the one with nothing random in it.

        Returns:
            The views, uint8 (len(draws), 3, size, size).
        """
        resized = self.preprocessing.resize(picture)
        return torch.stack([resized if draw == EVALUATION else self._training(resized, digest, draw) for draw in draws])

    def _training(self, resized: torch.Tensor, digest: str, draw: int) -> torch.Tensor:
        with torch.random.fork_rng(devices=[]):  # the caller's randomness is left as it was
            torch.default_generator.manual_seed(derive_seed("view", self.seed, digest, draw))  # leaves the GPU alone
            view = self.change(resized)
            # a channel at a time: the three at once take oneDNN four times as long
            return view if self.blur is None else self.blur(view[:, None])[:, 0]


def derive_seed(*parts: object) -> int:
    """A seed in 0..2**63 - 1 from anything that prints, the same on every machine."""
    text = ":".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
