"""Published policies of augmentation: which operations, how likely, how strong; and what each image of a batch draws.

The numbers of AutoAugment, RandAugment and TrivialAugment are torchvision's own; those of Fast AutoAugment lie as JSON
beside this file, with their origin and licence.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor
from torchvision.transforms import v2

from mvc.randomness import numpy_generator

from .operations import GEOMETRIC, Names, Numbers, apply

POLICIES = ("autoaugment", "fast_autoaugment", "randaugment", "trivialaugment")
SMALL = 64
"""Up to this side in pixels the policies found on CIFAR-10 are taken, above it those found on ImageNet."""
BINS = 31
"""Magnitudes that RandAugment and TrivialAugment know."""
RANDAUGMENT_OPERATIONS, RANDAUGMENT_MAGNITUDE = 2, 9
FAST_RANGES = {
    "ShearX": (-0.3, 0.3),
    "ShearY": (-0.3, 0.3),
    "TranslateX": (-0.45, 0.45),
    "TranslateY": (-0.45, 0.45),
    "Rotate": (-30.0, 30.0),
    "AutoContrast": (0.0, 1.0),
    "Invert": (0.0, 1.0),
    "Equalize": (0.0, 1.0),
    "Solarize": (0.0, 256.0),
    "Posterize": (4.0, 8.0),
    "Contrast": (0.1, 1.9),
    "Color": (0.1, 1.9),
    "Brightness": (0.1, 1.9),
    "Sharpness": (0.1, 1.9),
    "Cutout": (0.0, 0.2),
}
"""What the levels 0 and 1 of Fast AutoAugment stand for; shares of the side for translations and Cutout."""
_FACTORS = ("Contrast", "Color", "Brightness", "Sharpness")
_FOLDER = Path(__file__).resolve().parent / "policies"

Space = Mapping[str, tuple[Callable[[int, int, int], Any], bool]]


@dataclass(frozen=True)
class Policy:
    """P sub-policies, all equally likely, each of D operations one after the other.

    Args:
        names: (P, D) of `operations.OPERATIONS`.
        probabilities: (P, D) in [0, 1] that the operation is done.
        magnitudes: (P, D) in the units of `operations.apply`.
        signed: (P, D) bool: the magnitude's sign is turned round for half of the images.
        times: so many sub-policies are drawn for an image, each independently.
    """

    names: Names
    probabilities: Numbers
    magnitudes: Numbers
    signed: npt.NDArray[np.bool_]
    times: int = 1


@dataclass(frozen=True)
class Drawn:
    """What B images get, in order: K operations each.

    Args:
        names: (B, K); Identity where an operation was not done.
        magnitudes: (B, K).
        places: (B, K, 2) in [0, 1).
    """

    names: Names
    magnitudes: Numbers
    places: Numbers


@lru_cache(maxsize=16)
def policy(name: str, side: int) -> Policy:
    """A published policy for images of a size.

    Args:
        name: autoaugment (Cubuk et al. 2019: 25 sub-policies of CIFAR-10 up to SMALL px, 25 of ImageNet above);
            fast_autoaugment (Lim et al. 2019: all 493 sub-policies of reduced CIFAR-10, 498 of reduced ImageNet);
            randaugment (Cubuk et al. 2020: 2 operations, magnitude 9 of 0 to 30, as torchvision's default);
            trivialaugment (Müller and Hutter 2021: TrivialAugmentWide, one operation, any of 31 magnitudes).
        side: of the images in pixels; translations depend on it.

    Raises:
        ValueError: the name is unknown.
    """
    match name:
        case "autoaugment":
            return _autoaugment(side)
        case "fast_autoaugment":
            return _fast_autoaugment(side)
        case "randaugment":
            space = v2.RandAugment._AUGMENTATION_SPACE
            rows = [[(one, 1.0, *_magnitude(space, one, RANDAUGMENT_MAGNITUDE, BINS, side))] for one in space]
            return _policy(rows, RANDAUGMENT_OPERATIONS)
        case "trivialaugment":
            space = v2.TrivialAugmentWide._AUGMENTATION_SPACE
            # Operation and magnitude are drawn independently and evenly: every pair is equally likely.
            levels = range(BINS)
            return _policy([[(one, 1.0, *_magnitude(space, one, at, BINS, side))] for one in space for at in levels])
    raise ValueError(f"unknown policy '{name}'; one of {', '.join(POLICIES)}")


def _policy(rows: list[list[tuple[str, float, float, bool]]], times: int = 1) -> Policy:
    names, probabilities, magnitudes, signed = (
        np.array([[one[part] for one in row] for row in rows]) for part in range(4)
    )
    return Policy(names, probabilities, magnitudes, signed, times)


def _magnitude(space: Space, name: str, level: int | None, bins: int, side: int) -> tuple[float, bool]:
    """Magnitude in our units and whether its sign is drawn, from torchvision's table of an operation."""
    magnitude_of, signed = space[name]
    table = magnitude_of(bins, side, side)
    if table is None or level is None:
        return 0.0, False
    magnitude = float(table[level])
    if name == "Solarize":
        return magnitude * 255, signed
    # torchvision moves by whole pixels, and cuts the fraction off.
    return (float(int(magnitude)) if name.startswith("Translate") else magnitude), signed


def _autoaugment(side: int) -> Policy:
    which = v2.AutoAugmentPolicy.CIFAR10 if side <= SMALL else v2.AutoAugmentPolicy.IMAGENET
    transform = v2.AutoAugment(which)
    space = transform._AUGMENTATION_SPACE
    return _policy(
        [
            [(name, probability, *_magnitude(space, name, level, 10, side)) for name, probability, level in row]
            for row in transform._get_policies(which)
        ]
    )


def _fast_autoaugment(side: int) -> Policy:
    searched = "cifar10" if side <= SMALL else "imagenet"
    rows = json.loads((_FOLDER / f"fast_autoaugment_{searched}.json").read_text(encoding="utf-8"))["sub_policies"]
    return _policy(
        [
            [(name, chance, fast_magnitude(name, level, side), name in GEOMETRIC) for name, chance, level in row]
            for row in rows
        ]
    )


def fast_magnitude(name: str, level: float, side: int) -> float:
    """A level of Fast AutoAugment, from 0 to 1, in the units of `operations.apply` for images of a side."""
    low, high = FAST_RANGES[name]
    magnitude = level * (high - low) + low
    if name in _FACTORS:
        return magnitude - 1
    if name == "Posterize":
        return float(int(magnitude))
    if name.startswith("Translate"):
        return float(round(magnitude * side))
    return magnitude * side if name == "Cutout" else magnitude


def draw(policy: Policy, count: int, seed: int, purpose: str, step: int) -> Drawn:
    """What each slot of a batch gets; slot k draws the same whatever the batch holds and however many slots it has.

    Args:
        policy: where to draw from.
        count: B, number of slots.
        seed, purpose, step: of the random draws.
    """
    depth = policy.names.shape[1]
    draws = numpy_generator(seed, purpose, step).random((count, policy.times, 1 + 4 * depth))
    rows = (draws[:, :, 0] * len(policy.names)).astype(np.int64)
    done, sign, *place = np.moveaxis(draws[:, :, 1:].reshape(count, policy.times, depth, 4), 3, 0)
    names = np.where(done < policy.probabilities[rows], policy.names[rows], "Identity")
    turned = policy.signed[rows] & (sign < 0.5)
    magnitudes = np.where(turned, -1.0, 1.0) * policy.magnitudes[rows]
    places = np.stack(place, axis=-1)
    return Drawn(names.reshape(count, -1), magnitudes.reshape(count, -1), places.reshape(count, -1, 2))


def apply_policy(images: Tensor, name: str, seed: int, step: int) -> Tensor:
    """A policy's draws of (seed, name, step) on a batch.

    Args:
        images: (B, 3, S, S) uint8; not written to.
        name: one of POLICIES.
        seed: model seed.
        step: global step.

    Returns:
        (B, 3, S, S) uint8.
    """
    drawn = draw(policy(name, images.shape[-1]), len(images), seed, name, step)
    for position in range(drawn.names.shape[1]):
        images = apply(images, drawn.names[:, position], drawn.magnitudes[:, position], drawn.places[:, position])
    return images
