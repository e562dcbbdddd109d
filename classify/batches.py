"""From a strategy to batches: pick the images, augment them, make their targets."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .images import Images, take
from .strategies import Mix, slots
from .targets import targets


def batch_maker(
    mix: Mix,
    seed: int,
    real: Images,
    synthetic: Images | None,
    members: Sequence[int],
    classes: int,
    augment: Callable[[Tensor, int], Tensor],
    device: torch.device,
    label_smoothing: float = 0.0,
    synthetic_label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
) -> Callable[[int], tuple[Tensor, Tensor]]:
    """The batches of one classifier.

    Args:
        mix: which images, by strategy.
        seed: model seed.
        real: real training images, as many as mix.real_labels.
        synthetic: the synthetic images; None where the strategy shows none.
        members: which of them, as many as mix.synthetic_labels: picked batch by batch, so that a set that is mapped
            from a file stays there.
        classes: how many.
        augment: (uint8 images, step) to float images in [0, 1].
        device: where images and targets go.
        label_smoothing: share of each label that is spread over all classes.
        synthetic_label_smoothing: the same of synthetic images, where it is larger.
        class_weights: (C,) float32; None for equal ones.

    Returns:
        step to images (B, 3, S, S) float32 in [0, 1] and targets (B, C) float32.
    """

    rows = np.concatenate([np.arange(len(real)), len(real) + np.asarray(members, dtype=np.int64)])

    def batch(step: int) -> tuple[Tensor, Tensor]:
        drawn = slots(mix, seed, step)
        made = torch.from_numpy(drawn.indices >= len(real))
        pixels, labels = take(real, synthetic, rows[drawn.indices])
        weights = torch.from_numpy(drawn.weights)
        wanted = targets(labels, weights, made, classes, label_smoothing, synthetic_label_smoothing, class_weights)
        return augment(pixels.to(device), step), wanted.to(device)

    return batch
