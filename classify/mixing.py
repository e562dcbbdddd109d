"""Augmentations that mix the images and targets of a batch; a mixer also makes the forward pass.

Partners and shares depend on (seed, step) and the size of the batch alone: they are the same in every arm of a seed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from mvc.arms import AUGMENTATIONS
from mvc.randomness import generator, numpy_generator, seeded_global

Mixer = Callable[[nn.Module, Tensor, Tensor, int], tuple[Tensor, Tensor]]
"""(network, images (B, 3, S, S) float32 in [0, 1], targets (B, C) float32, step) to (logits (B, C), mixed targets)."""
MIXUP_ALPHA = 1.0
"""Of Beta(alpha, alpha). Zhang et al. use 1 for CIFAR and 0.2 for ImageNet; a net trained from scratch on few images
overfits, so the stronger one is taken."""
CUTMIX_ALPHA = 1.0
"""Yun et al. use 1 for all their classifiers: the box's area is uniform before it is cut at the border."""


def partners(count: int, seed: int, step: int) -> Tensor:
    """(count,) int64 permutation: the other image of each mixture; a few images may be their own partner."""
    return torch.randperm(count, generator=generator(seed, "mixing partners", step))


def own_share(alpha: float, seed: int, step: int) -> float:
    """Draw the first image's share from Beta(alpha, alpha): one for the whole batch, as in the papers."""
    return float(numpy_generator(seed, "mixing share", step).beta(alpha, alpha))


def blend(own: Tensor, other: Tensor, share: float | Tensor) -> Tensor:
    """share * own + (1 - share) * other; `share` broadcasts. Exact at shares of 0 and 1."""
    return torch.lerp(other, own, share)


def paste(own: Tensor, other: Tensor, box: tuple[int, int, int, int]) -> Tensor:
    """A copy of `own` (B, 3, S, S) with the pixels of `other` in box (left, top, right, bottom; ends excluded)."""
    left, top, right, bottom = box
    mixed = own.clone()
    mixed[..., top:bottom, left:right] = other[..., top:bottom, left:right]
    return mixed


def mixup(network: nn.Module, images: Tensor, targets: Tensor, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blend each image and its targets with a partner's (Zhang et al., "mixup", ICLR 2018).

    Args:
        network: takes (B, 3, S, S), returns (B, C) logits.
        images: (B, 3, S, S) float32 in [0, 1].
        targets: (B, C) float32; a row adds up to the weight of its sample.
        step: global step.
        seed: model seed; with the step it decides partners and share.

    Returns:
        Logits of the mixed images, and (B, C) targets mixed by the same share.
    """
    partner = partners(len(images), seed, step).to(images.device)
    share = own_share(MIXUP_ALPHA, seed, step)
    return network(blend(images, images[partner], share)), blend(targets, targets[partner], share)


def cutmix(network: nn.Module, images: Tensor, targets: Tensor, step: int, seed: int) -> tuple[Tensor, Tensor]:
    """Replace a box of each image by the partner's pixels (Yun et al., "CutMix", ICCV 2019).

    One box for the whole batch, drawn by torchvision's CutMix; targets mix by the area that the box really has after
    it was cut at the border. Arguments, draws and result as in `mixup`.
    """
    partner = partners(len(images), seed, step).to(images.device)
    with seeded_global(seed, "cutmix box", step):
        drawn = v2.CutMix(alpha=CUTMIX_ALPHA).make_params([images])
    share: float = drawn["lam_adjusted"]
    return network(paste(images, images[partner], drawn["box"])), blend(targets, targets[partner], share)


def mixer(name: str, seed: int) -> Mixer | None:
    """The mixer of an augmentation; None for augmentations that mix nothing.

    Args:
        name: one of mvc.arms.AUGMENTATIONS.
        seed: model seed.

    Raises:
        ValueError: the name is unknown.
    """
    match name:
        case "mixup":
            return partial(mixup, seed=seed)
        case "cutmix":
            return partial(cutmix, seed=seed)
        case "alignmixup":
            from .alignmixup import alignmixup

            return partial(alignmixup, seed=seed)
        case "puzzlemix":
            # Imported here: scipy's graphs and assignments are of no use to the others.
            from .puzzlemix import puzzlemix

            return partial(puzzlemix, seed=seed)
        case "mixgen":
            from .clip_classifier import mixgen

            return partial(mixgen, seed=seed)
    if name not in AUGMENTATIONS:
        raise ValueError(f"unknown augmentation '{name}'")
    return None
