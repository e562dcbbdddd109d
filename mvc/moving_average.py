"""Exponential moving average of trained weights, with a warm-up that suits short runs.

Of a classifier only weights are averaged: BatchNorm's running statistics are averages over the last steps already, and
its counters are whole numbers, of which there is no average.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class MovingAverage:
    """average = d average + (1 - d) weight after every step, with d = min(decay, (1 + n) / (10 + n)) at update n.

    Of a UNet it is made after the surgery, so that the widened convolution is part of it. Nothing but the averages and
    the number of updates has to be saved.

    Args:
        parameters: by name, float32; their values are copied.
        decay: the largest d.
        device: where the averages lie; that of the parameters when absent.
    """

    def __init__(
        self, parameters: Iterable[tuple[str, Tensor]], decay: float, device: torch.device | None = None
    ) -> None:
        # A copy even where the device is the same.
        self.average = {name: value.detach().clone().to(device or value.device) for name, value in parameters}
        self.decay, self.updates = decay, 0

    def decay_at(self, update: int) -> float:
        """d of update n, counted from 0."""
        return min(self.decay, (1 + update) / (10 + update))

    @torch.no_grad()
    def update(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Take in the weights after one optimisation step."""
        weight = 1.0 - self.decay_at(self.updates)
        now = dict(parameters)
        values = [now[name].detach().to(average.device) for name, average in self.average.items()]
        torch._foreach_lerp_(list(self.average.values()), values, weight)
        self.updates += 1

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        """Put the averages in place of the weights."""
        for name, value in parameters:
            value.copy_(self.average[name])

    @contextmanager
    def in_place(self, parameters: Iterable[tuple[str, Tensor]]) -> Iterator[None]:
        """Exchange weights and averages inside the block; afterwards both are what they were, to the bit."""
        exchanged = list(parameters)
        self._exchange(exchanged)
        try:
            yield
        finally:
            self._exchange(exchanged)

    @torch.no_grad()
    def _exchange(self, parameters: Iterable[tuple[str, Tensor]]) -> None:
        # One at a time: there may be no room for a third copy of the model.
        for name, value in parameters:
            average = self.average[name]
            weight = value.detach().clone()
            value.copy_(average)
            average.copy_(weight)

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor], updates: int) -> None:
        """Go on from saved averages."""
        for name, value in self.average.items():
            value.copy_(average[name])
        self.updates = updates
