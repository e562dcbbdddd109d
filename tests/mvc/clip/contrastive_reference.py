"""What the large-batch step must equal: one pass of all rows through the network, with one graph."""

from __future__ import annotations

from typing import Any

import torch
from open_clip.loss import ClipLoss
from torch import Tensor, nn

from mvc.clip.contrastive import contrastive_backward
from mvc.randomness import seeded_global


def whole_batch(network: Any, images: Tensor, ids: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss by open_clip's own, and gradients by one backward pass."""
    network.zero_grad(set_to_none=True)
    loss = ClipLoss()(*network(images, ids))
    loss.backward()
    return loss.detach(), gradients(network)


def in_parts(network: nn.Module, images: Tensor, ids: Tensor, size: int, **options: Any) -> tuple[Tensor, Any]:
    """Loss and gradients of the large-batch step."""
    loss = contrastive_backward(network, images, ids, size, **{"seed": 0, "step": 0, **options})
    return loss, gradients(network)


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}


def distance(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Relative error of all gradients as one vector: some single ones are zero but for rounding."""
    assert found.keys() == expected.keys()
    ours, theirs = (torch.cat([some[name].flatten() for name in expected]) for some in (found, expected))
    return float((ours - theirs).norm() / theirs.norm())


def with_dropout(network: Any, images: Tensor, ids: Tensor, size: int, seed: int, step: int) -> dict[str, Tensor]:
    """Gradients by one graph over all micro-batches, with the random numbers that the documentation promises."""
    network.zero_grad(set_to_none=True)
    features = []
    for row in range(0, len(images), size):
        with seeded_global(seed, "CLIP dropout", step, row):
            part = slice(row, row + size)
            features.append((network.encode_image(images[part], True), network.encode_text(ids[part], True)))
    image_features, text_features = (torch.cat(some) for some in zip(*features, strict=True))
    ClipLoss()(image_features, text_features, network.logit_scale.exp()).backward()
    return gradients(network)
