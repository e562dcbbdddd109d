"""Augmentation of a whole batch at once; slot k of step s gets the same draws in every arm of a seed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from mvc.randomness import generator

from .erasing import random_erasing
from .policies import POLICIES, apply_policy

SHIFT = 1 / 8
"""Largest shift as a share of the side: a random crop after padding by an eighth (4 px of 32)."""
ROTATION = 10.0
"""Largest rotation in degrees."""
SCALE = 0.1
"""Scale is drawn from [1 - SCALE, 1 + SCALE]."""
MIXING = ("mixup", "cutmix", "alignmixup", "puzzlemix", "mixgen")
"""Augmentations that mix images in the forward pass; single images get the default before that."""


def affine(images: Tensor, degrees: Tensor, scale: Tensor, shift: Tensor, mirrored: Tensor) -> Tensor:
    """Rotate, scale, shift and mirror each image, by one bilinear sampling; the border is repeated outwards.

    Args:
        images: (B, 3, S, S) float32.
        degrees: (B,) rotation.
        scale: (B,) factor above 0; more than 1 enlarges.
        shift: (B, 2) to the right and down, as shares of the side.
        mirrored: (B,) bool; True swaps left and right of the result.

    Returns:
        (B, 3, S, S) float32.
    """
    angle = degrees * (math.pi / 180)
    cosine, sine = torch.cos(angle) / scale, torch.sin(angle) / scale
    flip = torch.where(mirrored, -1.0, 1.0)
    # Rows map an output place to the place it is read from, hence the division by scale and the minus.
    x = torch.stack([cosine * flip, sine, -2 * shift[:, 0]], dim=1)
    y = torch.stack([-sine * flip, cosine, -2 * shift[:, 1]], dim=1)
    theta = torch.stack([x, y], dim=1).to(images.device)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _geometric(images: Tensor, seed: int, step: int, strength: float, turned: bool, flip: bool) -> Tensor:
    # Six draws a slot whatever is switched on, so that one option does not change the other draws.
    draws = torch.rand((6, len(images)), generator=generator(seed, "augment", step))
    spread = (2 * draws[:4] - 1) * strength
    turn = 1.0 if turned else 0.0
    return affine(
        images,
        degrees=spread[0] * ROTATION * turn,
        scale=1 + spread[1] * SCALE * turn,
        shift=(spread[2:4] * SHIFT).T,
        mirrored=(draws[4] < 0.5) & flip,
    )


def to_float(images: Tensor) -> Tensor:
    """(B, 3, S, S) uint8 to float32 in [0, 1]."""
    return images.float().div_(255)


def default(images: Tensor, seed: int, step: int, random_flip: bool, strength: float = 1.0) -> Tensor:
    """Random crop with padding, a small rotation and scaling, and a mirror where allowed.

    The paper's default is crop and flip. A crop after padding by an eighth is a shift; rotation by up to 10
    degrees and scaling by up to a tenth are added because few-shot sets gain from them, and they come at
    no cost in the same sampling. Mirroring is off unless asked for: digits, text and laterality do not
    survive it.

    Args:
        images: (B, 3, S, S) uint8.
        seed: model seed.
        step: global step.
        random_flip: mirror each image with probability 1/2.
        strength: factor on shift, rotation and scaling; 0 leaves them out.

    Returns:
        (B, 3, S, S) float32 in [0, 1].
    """
    return _geometric(to_float(images), seed, step, strength, turned=True, flip=random_flip)


def by_policy(name: str, images: Tensor, seed: int, step: int, random_flip: bool) -> Tensor:
    """The default's crop and mirror, then a published policy of operations.

    Args:
        name: one of `policies.POLICIES`.
        images: (B, 3, S, S) uint8.
        seed: model seed; the policy draws from (seed, name, step).
        step: global step.
        random_flip: mirror each image with probability 1/2.

    Returns:
        (B, 3, S, S) float32 in [0, 1].
    """
    cropped = _geometric(to_float(images), seed, step, 1.0, turned=False, flip=random_flip)
    whole = cropped.mul_(255).round_().clamp_(0, 255).byte()
    return to_float(apply_policy(whole, name, seed, step))


def augmentation(name: str, seed: int, random_flip: bool) -> Callable[[Tensor, int], Tensor]:
    """The augmentation of single images of a run, from (B, 3, S, S) uint8 images and a step to float32 in [0, 1].

    Args:
        name: one of `mvc.arms.AUGMENTATIONS`; those that mix images mean the default here.
        seed: model seed.
        random_flip: mirror images with probability 1/2; not with `none`.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "none":
        return lambda images, step: to_float(images)
    if name == "default" or name in MIXING:
        return lambda images, step: default(images, seed, step, random_flip)
    if name == "random_erasing":
        return lambda images, step: random_erasing(default(images, seed, step, random_flip), seed, step)
    if name in POLICIES:
        return lambda images, step: by_policy(name, images, seed, step, random_flip)
    raise ValueError(f"unknown augmentation '{name}'")
