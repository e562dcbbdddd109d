"""Policies in the manner of RandAugment for paired data: N operations of magnitude M on all of a sample.

Cubuk et al., "RandAugment: Practical automated data augmentation with a reduced search space", NeurIPS 2020, Sec. 3,
made synchronised, as the glossary of multimodal data augmentation asks. Operations on colours change the image alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from torchvision.transforms.v2 import functional

from mvc.randomness import numpy_generator

from .drawn import fewest_dropped
from .paired import PairedSample
from .synchronised import LARGEST_TURN, MIN_VISIBLE, Fill, affine, horizontal_flip, resized_crop, rotate, vertical_flip

LARGEST_MAGNITUDE = 10
"""Magnitudes are 0, which changes least, to this one: a third of those of torchvision, which go to 30."""
DEFAULT_OPERATIONS = (
    "identity",
    "horizontal_flip",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "crop",
    "brightness",
    "contrast",
    "color",
    "sharpness",
    "posterize",
)
OPERATIONS = (*DEFAULT_OPERATIONS, "vertical_flip", "autocontrast")
"""All that there are. Not drawn unless asked for: autocontrast stretches each channel, which makes a red letter on navy
a yellow one; vertical flips suit few pictures. Inversion, solarization and hue are absent: captions name colours."""
_DEGREES, _SHEAR, _SHIFT = 30.0, 0.3, 150 / 331
"""Of the largest magnitude: degrees; pixels to the side for each pixel down; share of the side. As RandAugment's."""
_CROP = 0.4
"""Share of each side that a crop of the largest magnitude cuts off."""
_FACTOR, _COLOR, _BITS = 0.9, 0.5, 4
"""Of the largest magnitude: how far a factor is from 1, that of saturation, and the bits that posterize takes. As
RandAugment's, but for saturation: 0.1 would leave no colour that a caption could name."""


@dataclass(frozen=True)
class Policy:
    """N operations, each drawn evenly from the same ones, at one magnitude.

    Attributes:
        num_ops: N, 0 or more; one may come more than once.
        magnitude: M, a whole number from 0 to `LARGEST_MAGNITUDE`; flips and autocontrast have none.
        operations: names of `OPERATIONS`. Leave horizontal_flip out where mirrored pictures are wrong, as of text.

    Raises:
        ValueError: one of these is not so; names the value.
    """

    num_ops: int = 2
    magnitude: int = 3
    operations: tuple[str, ...] = DEFAULT_OPERATIONS

    def __post_init__(self) -> None:
        if not isinstance(self.num_ops, int) or self.num_ops < 0:
            raise ValueError(f"num_ops is {self.num_ops}; it must be a whole number, 0 or more")
        if not isinstance(self.magnitude, int) or not 0 <= self.magnitude <= LARGEST_MAGNITUDE:
            raise ValueError(f"magnitude is {self.magnitude}; it must be a whole number from 0 to {LARGEST_MAGNITUDE}")
        unknown = [name for name in self.operations if name not in OPERATIONS]
        if unknown or not self.operations:
            named = f"unknown operation '{unknown[0]}'" if unknown else "there is no operation"
            raise ValueError(f"{named}; choose of {', '.join(OPERATIONS)}")


@dataclass(frozen=True)
class Operation:
    """What was drawn for one operation.

    Attributes:
        name: of `OPERATIONS`.
        sign: -1 or 1, of the magnitude; for those that have two directions.
        place: right and down, in [0, 1), of a crop's window within its room.
    """

    name: str
    sign: int
    place: tuple[float, float]


def draw_operations(policy: Policy, seed: int, index: int, attempt: int = 0) -> list[Operation]:
    """What a policy does with a sample; randomness: (seed, "paired policy", index, attempt).

    The magnitude changes no draw, and a larger num_ops only adds to them: policies of a search differ in nothing else.
    """
    draws = numpy_generator(seed, "paired policy", index, attempt).random((policy.num_ops, 4))
    return [
        Operation(
            name=policy.operations[int(row[0] * len(policy.operations))],
            sign=-1 if row[1] < 0.5 else 1,
            place=(float(row[2]), float(row[3])),
        )
        for row in draws
    ]


def apply_policy(
    sample: PairedSample,
    policy: Policy,
    seed: int,
    index: int,
    *,
    fill: Fill = None,
    min_visible: float = MIN_VISIBLE,
    attempts: int = 1,
) -> PairedSample:
    """A policy's draws on a sample, one operation after the other.

    A rotation that would bring all of them together above `synchronised.LARGEST_TURN` turns the other way.

    Args:
        sample: what to change.
        policy: where to draw from.
        seed, index: with the attempt they decide all; the index is that of the sample's turn, such as
            epoch * samples + sample.
        fill: what geometric operations put where nothing was, as in `synchronised.affine`.
        min_visible: boxes of which a smaller share is left by an operation are dropped.
        attempts: draws that drop a box are given up for others, up to this number; see `drawn.fewest_dropped`.

    Raises:
        ValueError: min_visible or attempts is out of range.
    """

    def draw(attempt: int) -> PairedSample:
        changed, turned = sample, 0.0
        for drawn in draw_operations(policy, seed, index, attempt):
            operation, turned = _upright(drawn, policy.magnitude, turned)
            changed = operate(changed, operation, policy.magnitude, fill=fill, min_visible=min_visible)
        return changed

    return fewest_dropped(sample, draw, attempts)


def _upright(operation: Operation, magnitude: int, turned: float) -> tuple[Operation, float]:
    """What to do after a turn by some degrees, so that left stays left; and the degrees afterwards."""
    if operation.name in ("horizontal_flip", "vertical_flip"):
        return operation, -turned
    if operation.name != "rotate":
        return operation, turned
    angle = _DEGREES * operation.sign * magnitude / LARGEST_MAGNITUDE
    if abs(turned + angle) > LARGEST_TURN:
        operation, angle = replace(operation, sign=-operation.sign), -angle
    return operation, turned + angle


def operate(
    sample: PairedSample,
    operation: Operation,
    magnitude: int,
    *,
    fill: Fill = None,
    min_visible: float = MIN_VISIBLE,
) -> PairedSample:
    """One operation at a magnitude of 0 to `LARGEST_MAGNITUDE`; arguments as in `apply_policy`."""
    strength = magnitude / LARGEST_MAGNITUDE
    signed = operation.sign * strength
    height, width = sample.size
    shear = math.degrees(math.atan(_SHEAR * signed))
    options: dict[str, Any] = {"fill": fill, "min_visible": min_visible}
    match operation.name:
        case "identity":
            return sample
        case "horizontal_flip":
            return horizontal_flip(sample)
        case "vertical_flip":
            return vertical_flip(sample)
        case "rotate":
            return rotate(sample, _DEGREES * signed, **options)
        case "shear_x":
            return affine(sample, shear=(shear, 0.0), **options)
        case "shear_y":
            return affine(sample, shear=(0.0, shear), **options)
        case "translate_x":
            return affine(sample, translate=(int(_SHIFT * width * signed), 0), **options)
        case "translate_y":
            return affine(sample, translate=(0, int(_SHIFT * height * signed)), **options)
        case "crop":
            return _cropped(sample, strength, operation.place, min_visible)
    return replace(sample, image=_recoloured(sample.image, operation.name, strength, signed))


def _cropped(sample: PairedSample, strength: float, place: tuple[float, float], min_visible: float) -> PairedSample:
    height, width = sample.size
    rows, columns = (max(1, round(side * (1 - _CROP * strength))) for side in (height, width))
    left, top = int(place[0] * (width - columns + 1)), int(place[1] * (height - rows + 1))
    return resized_crop(sample, top, left, rows, columns, (height, width), min_visible=min_visible)


def _recoloured(image: Any, name: str, strength: float, signed: float) -> Any:
    match name:
        case "brightness":
            return functional.adjust_brightness(image, 1 + _FACTOR * signed)
        case "contrast":
            return functional.adjust_contrast(image, 1 + _FACTOR * signed)
        case "color":
            return functional.adjust_saturation(image, 1 + _COLOR * signed)
        case "sharpness":
            return functional.adjust_sharpness(image, 1 + _FACTOR * signed)
        case "posterize":
            return functional.posterize(image, 8 - round(_BITS * strength))
        case "autocontrast":
            return functional.autocontrast(image)
    raise ValueError(f"unknown operation '{name}'; one of {', '.join(OPERATIONS)}")
