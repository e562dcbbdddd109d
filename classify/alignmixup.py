"""AlignMixup: blend two images' features after one was moved to the places of the other.

Venkataramanan, Kijak, Amsaleg, Avrithis: "AlignMixup: Improving Representations by Interpolating Aligned Features",
CVPR 2022. Own code from the paper; its published code was looked at for settings only.

As there: half of the batches are plain mixup of images, half blend the last feature maps after alignment; share from
Beta(2, 2); entropic transport with epsilon 0.1 and 100 iterations of Sinkhorn, uniform marginals, no gradient through
the plan; which of the two keeps its places is drawn. Otherwise here:

- Feature vectors are scaled to length 1 for the distances. The paper's epsilon has no scale of its own.
- Rows of the plan are scaled to 1 / r exactly, which a finite number of iterations leaves nearly so.
- Maps of more than 8 x 8 places are averaged to 8 x 8 first. The paper's are 4 x 4 or 7 x 7, and the plan's cost grows
  with the fourth power of the side. Heads average over places anyway.
- No autoencoder, which the paper adds in a variant.
"""

from __future__ import annotations

from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvc.errors import ConfigError
from mvc.randomness import numpy_generator

from .mixing import blend, own_share, partners

ALPHA = 2.0
"""Of Beta(alpha, alpha)."""
EPSILON = 0.1
"""Weight of the plan's entropy; distances of unit vectors are in [0, 4]."""
ITERATIONS = 100
LARGEST_SIDE = 8
"""Places a side between which a plan is computed."""


class _Halves(Protocol):
    def features(self, images: Tensor) -> Tensor: ...

    def head(self, features: Tensor) -> Tensor: ...


def transport_plan(cost: Tensor, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> Tensor:
    """Entropic optimal transport with uniform marginals, by Sinkhorn's iteration on logarithms.

    Args:
        cost: (B, r, r) float32.
        epsilon: weight of the entropy, above 0; towards 0 the plan becomes a permutation.
        iterations: at least 1; each fits columns, then rows.

    Returns:
        (B, r, r) float32, not negative. Rows add up to 1 / r to rounding, columns as far as the iteration came.
    """
    scores = -cost / epsilon
    row = torch.zeros_like(cost[:, :, :1])
    for _ in range(iterations):
        column = -torch.logsumexp(scores + row, dim=1, keepdim=True)
        row = -torch.logsumexp(scores + column, dim=2, keepdim=True)
    return torch.exp(scores + row + column) / cost.shape[-1]


def align(fixed: Tensor, moving: Tensor, epsilon: float = EPSILON, iterations: int = ITERATIONS) -> Tensor:
    """Move features to the places where they fit best.

    Args:
        fixed: (B, D, h, w) features that keep their places.
        moving: (B, D, h, w) features to be moved; the gradient flows through these values, not through the plan.
        epsilon: weight of the plan's entropy.
        iterations: of Sinkhorn.

    Returns:
        (B, D, h, w) in the type of `fixed`: at each place the mean of `moving`, weighted by the plan.
    """
    with torch.no_grad(), torch.autocast(fixed.device.type, enabled=False):
        unit = F.normalize(fixed.detach().float().flatten(2), dim=1)
        other = F.normalize(moving.detach().float().flatten(2), dim=1)
        # Squared distances of unit vectors.
        plan = transport_plan(2 - 2 * unit.transpose(1, 2) @ other, epsilon, iterations)
        assignment = plan * plan.shape[-1]  # R = r P*
    moved = moving.flatten(2) @ assignment.transpose(1, 2).to(moving.dtype)
    return moved.view_as(fixed).to(fixed.dtype)  # autocast may have chosen another


def _check(features: Tensor) -> None:
    # Images are square, so are their maps; the tokens of a transformer have no such places.
    if features.ndim != 4 or features.shape[2] != features.shape[3]:
        raise ConfigError(
            f"alignmixup needs feature maps (batch, channels, side, side), but this backbone gives features of "
            f"shape {tuple(features.shape)}",
            do="choose a convolutional backbone, or mixup",
        )


def aligned_blend(features: Tensor, partner: Tensor, share: float, keep_own: bool) -> Tensor:
    """Blend each feature map with its partner's after alignment.

    Args:
        features: (B, D, h, w).
        partner: (B,) int64 on the same device.
        share: of the first image, in [0, 1].
        keep_own: the first image's features keep their places and the partner's move; else the other way round.

    Raises:
        ConfigError: the features are no maps.
    """
    _check(features)
    if features.shape[3] > LARGEST_SIDE:
        features = F.adaptive_avg_pool2d(features, LARGEST_SIDE)
    other = features[partner]
    if keep_own:
        return blend(features, align(features, other), share)
    return blend(align(other, features), other, share)


def alignmixup(network: nn.Module, images: Tensor, targets: Tensor, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blend images, or aligned features, of partners; targets mix by the same share.

    Args:
        network: has features(images) -> (B, D, h, w) and head(features) -> (B, C).
        images: (B, 3, S, S) float32 in [0, 1].
        targets: (B, C) float32; a row adds up to the weight of its sample.
        step: global step.
        seed: model seed; with the step it decides partners, share, and what is blended.

    Returns:
        Logits and (B, C) mixed targets.

    Raises:
        ConfigError: the network's features are no maps, as those of a transformer.
    """
    partner = partners(len(images), seed, step).to(images.device)
    share = own_share(ALPHA, seed, step)
    of_images, keep_own = numpy_generator(seed, "alignmixup kind", step).random(2) < 0.5
    mixed_targets = blend(targets, targets[partner], share)
    if of_images:
        return network(blend(images, images[partner], share)), mixed_targets
    halves = cast(_Halves, network)
    features = halves.features(images)
    return halves.head(aligned_blend(features, partner, share, bool(keep_own))), mixed_targets
