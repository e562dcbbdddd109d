"""Exponential moving average of a classifier's trained weights, with a warm-up that suits short fits.

Only weights are averaged. BatchNorm's running statistics stay those of the network: they are averages over the last
steps already, and its counters are whole numbers, of which there is no average. torch's AveragedModel does the same
sums, but waits for the device at every step and copies every buffer.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """average = d average + (1 - d) weight after every step, with d = min(decay, (1 + n) / (10 + n)) at update n.

    Args:
        weights: the network's own tensors, which the optimizer changes in place; the averages begin as copies of them.
        decay: the largest d, in [0, 1).
    """

    def __init__(self, weights: Iterable[Tensor], decay: float) -> None:
        self.weights = list(weights)
        self.average = [weight.detach().clone() for weight in self.weights]
        self.decay, self.updates = decay, 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights after one step."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(self.average, self.weights, 1.0 - decay)
        self.updates += 1

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Inside the block the network has the averages; afterwards both are what they were, to the bit."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def leave(self) -> None:
        """Put the averages in place of the weights for good."""
        torch._foreach_copy_(self.weights, self.average)

    @torch.no_grad()
    def _exchange(self) -> None:
        for weight, average in zip(self.weights, self.average, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
