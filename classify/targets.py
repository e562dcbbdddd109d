"""What a batch is trained towards: label smoothing, class weights and weights of slots as one matrix.

The loss is -(targets * log_softmax(logits)).sum(1).mean(), so each row is a distribution times its weight.
"""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import one_hot

Values = Tensor | npt.NDArray[Any]


def class_weights(real_labels: Values, classes: int) -> Tensor:
    """Weights that make the real images of every class count alike in the loss.

    Args:
        real_labels: (n,) integer labels of the real training images, at least one, in [0, classes).
        classes: how many there are, C.

    Returns:
        (C,) float32, inverse to the number of real images of the class, with mean 1 over the real images. A class
        without any has the weight of the rarest class: its synthetic images count, but not without bound.
    """
    counts = torch.bincount(torch.as_tensor(real_labels, dtype=torch.int64), minlength=classes)
    there = counts > 0
    weights = counts.sum() / (there.sum() * counts.clamp(min=1).double())
    weights[~there] = weights[there].max()
    return weights.float()


def targets(
    labels: Values,
    weights: Values,
    synthetic: Values,
    classes: int,
    label_smoothing: float,
    synthetic_label_smoothing: float,
    class_weights: Tensor | None,
) -> Tensor:
    """Soft labels of a batch, each row times its weight.

    Args:
        labels: (B,) integer labels in [0, classes).
        weights: (B,) weights of the slots, mean 1 (`strategies.Slots.weights`).
        synthetic: (B,) bool, which images are synthetic.
        classes: how many there are, C.
        label_smoothing: share of each label that is spread over all C classes, in [0, 1).
        synthetic_label_smoothing: the same for synthetic images, where it is larger than label_smoothing.
        class_weights: (C,) of `class_weights`; None for none.

    Returns:
        (B, C) float32 on the device of `labels`; row i adds up to weights[i] * class_weights[labels[i]].
    """
    rows = torch.as_tensor(labels, dtype=torch.int64)
    made = torch.as_tensor(synthetic, dtype=torch.bool, device=rows.device)
    scale = torch.as_tensor(weights, dtype=torch.float32, device=rows.device)
    if class_weights is not None:
        scale = scale * class_weights.to(rows.device)[rows]
    smoothing = torch.full_like(scale, label_smoothing)
    smoothing[made] = max(label_smoothing, synthetic_label_smoothing)
    soft = one_hot(rows, classes) * (1 - smoothing)[:, None] + smoothing[:, None] / classes
    return soft * scale[:, None]
