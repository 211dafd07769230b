"""The order in which training images are drawn."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch.utils.data import WeightedRandomSampler

from gender_cls.labels import CLASSES
from gender_cls.transforms.views import derive_seed


class DrawSampler(WeightedRandomSampler):
    """torch's WeightedRandomSampler as a function of (seed, epoch), which also counts the draws of each image.

    It yields (index, draw): draw 0 is the first time that the image is drawn since the start of training, so that
    each draw gets a view of its own, whatever worker or resumed run computes it. Lightning calls `set_epoch`.

    Args:
        weights: Weight of each image; an epoch has as many draws as there are weights.
        seed: Seed of the order.
        replacement: Whether images are drawn with replacement; otherwise no image is drawn again before each with a
            weight was drawn.
    """

    def __init__(self, weights: Sequence[float], seed: int, replacement: bool = True) -> None:
        draws_of_a_round = len(weights) if replacement else int(np.count_nonzero(weights))
        super().__init__(weights, num_samples=draws_of_a_round, replacement=replacement, generator=torch.Generator())
        self.seed = seed
        self.set_epoch(0)
        self._counted = 0  # epochs whose draws are in _draws
        self._draws = np.zeros(len(weights), dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration goes through."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.weights)

    def __iter__(self) -> Iterator[tuple[int, int]]:  # type: ignore[override]
        if self._counted > self.epoch:
            self._counted, self._draws = 0, np.zeros_like(self._draws)
        while self._counted < self.epoch:
            self._draws += np.bincount(self._order(self._counted), minlength=len(self._draws))
            self._counted += 1
        draws = self._draws.copy()
        for index in self._order(self.epoch):
            yield index, int(draws[index])
            draws[index] += 1

    def _order(self, epoch: int) -> list[int]:
        self.generator.manual_seed(derive_seed("order", self.seed, epoch))
        order: list[int] = []
        while len(order) < len(self):
            order += super().__iter__()
        return order[: len(self)]


def draw(labels: np.ndarray, chosen: np.ndarray, seed: int, balanced: bool) -> DrawSampler:
    """Return a sampler of the images (N) with `chosen` (N, bool): both labels equally often, or each image once."""
    counts = np.bincount(labels[chosen], minlength=len(CLASSES)).clip(1)
    weights = 1 / counts[labels] if balanced else np.ones(len(labels))
    return DrawSampler((weights * chosen).tolist(), seed, replacement=balanced)
