"""Which weights of a fit are kept: those of the best evaluation on validation data."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from torch import Tensor, nn


@dataclass
class Choice:
    """The evaluations so far, and the weights of the best: highest accuracy, then lowest loss, then earliest."""

    step: int
    accuracy: float | None = None
    loss: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)
    curve: list[tuple[int, float, float]] = field(default_factory=list)

    def consider(self, network: nn.Module, step: int, accuracy: float, loss: float) -> None:
        """Note an evaluation, and copy the network's weights if it is the best so far."""
        self.curve.append((step, accuracy, loss))
        if self.accuracy is None or (accuracy, -loss) > (self.accuracy, -self.loss):
            self.step, self.accuracy, self.loss = step, accuracy, loss
            self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}
