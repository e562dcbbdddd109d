"""Random synchronised changes: one draw decides what happens to all of a sample.

Each draw depends on (seed, purpose, index) alone, and the parameters come from torchvision's own random transforms, so
that their laws are the ones that users know.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torchvision.transforms import v2

from mvc.randomness import numpy_generator, seeded_global

from .paired import PairedSample
from .synchronised import (
    MIN_VISIBLE,
    Fill,
    affine,
    crop,
    horizontal_flip,
    require_size,
    require_upright,
    resized_crop,
    vertical_flip,
)


def random_horizontal_flip(sample: PairedSample, seed: int, index: int, *, probability: float = 0.5) -> PairedSample:
    """`horizontal_flip` with a probability; randomness: (seed, "paired horizontal flip", index).

    Raises:
        ValueError: the probability is not within [0, 1].
    """
    return horizontal_flip(sample) if _happens(probability, seed, "paired horizontal flip", index) else sample


def random_vertical_flip(sample: PairedSample, seed: int, index: int, *, probability: float = 0.5) -> PairedSample:
    """`vertical_flip` with a probability; randomness: (seed, "paired vertical flip", index).

    Raises:
        ValueError: the probability is not within [0, 1].
    """
    return vertical_flip(sample) if _happens(probability, seed, "paired vertical flip", index) else sample


def _happens(probability: float, seed: int, purpose: str, index: int) -> bool:
    if not 0 <= probability <= 1:
        raise ValueError(f"probability is {probability}; it must be from 0 to 1")
    return bool(numpy_generator(seed, purpose, index).random() < probability)


def random_crop(
    sample: PairedSample,
    size: tuple[int, int],
    seed: int,
    index: int,
    *,
    min_visible: float = MIN_VISIBLE,
    attempts: int = 1,
) -> PairedSample:
    """`crop` at a place that is drawn evenly.

    Args:
        sample: what to crop.
        size: height and width of the window in pixels, at most those of the image.
        seed, index: with the attempt they decide the place, as (seed, "paired crop", index, attempt).
        min_visible: as in `crop`.
        attempts: a draw that drops a box is given up for another, up to this number; see `fewest_dropped`.

    Raises:
        ValueError: the window is larger than the image, or an argument is out of range.
    """
    require_size(size)
    if size[0] > sample.size[0] or size[1] > sample.size[1]:
        raise ValueError(f"a crop of height and width {size} is larger than the image, {sample.size}")
    transform = v2.RandomCrop(size)

    def draw(attempt: int) -> PairedSample:
        drawn = _parameters(transform, sample, seed, "paired crop", index, attempt)
        window = (drawn[name] for name in ("top", "left", "height", "width"))
        return crop(sample, *window, min_visible=min_visible)

    return fewest_dropped(sample, draw, attempts)


def random_resized_crop(
    sample: PairedSample,
    size: tuple[int, int],
    seed: int,
    index: int,
    *,
    scale: tuple[float, float] = (0.5, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    min_visible: float = MIN_VISIBLE,
    attempts: int = 1,
) -> PairedSample:
    """`resized_crop` of a window of drawn area, shape and place, as torchvision's RandomResizedCrop draws it.

    Args:
        sample: what to crop.
        size: height and width of the result in pixels.
        seed, index: with the attempt they decide the window, as (seed, "paired resized crop", index, attempt).
        scale: smallest and largest area of the window as a share of the image's, in (0, 1].
        ratio: smallest and largest width / height of the window.
        min_visible, attempts: as in `random_crop`.

    Raises:
        ValueError: an argument is out of range.
    """
    require_size(size)
    if not 0 < scale[0] <= scale[1] <= 1:
        raise ValueError(f"scale is {scale}; it must be two shares in (0, 1], the smaller one first")
    if not 0 < ratio[0] <= ratio[1]:
        raise ValueError(f"ratio is {ratio}; it must be two numbers above 0, the smaller one first")
    transform = v2.RandomResizedCrop(size, scale=scale, ratio=ratio)

    def draw(attempt: int) -> PairedSample:
        drawn = _parameters(transform, sample, seed, "paired resized crop", index, attempt)
        return resized_crop(sample, **drawn, size=size, min_visible=min_visible)

    return fewest_dropped(sample, draw, attempts)


def random_affine(
    sample: PairedSample,
    seed: int,
    index: int,
    *,
    degrees: float = 15.0,
    translate: tuple[float, float] = (0.0, 0.0),
    scale: tuple[float, float] = (1.0, 1.0),
    shear: float = 0.0,
    fill: Fill = None,
    min_visible: float = MIN_VISIBLE,
    attempts: int = 1,
) -> PairedSample:
    """`affine` with drawn parameters, as torchvision's RandomAffine draws them; a rotation as it stands.

    Args:
        sample: what to move.
        seed, index: with the attempt they decide all, as (seed, "paired affine", index, attempt).
        degrees: largest angle to either side.
        translate: largest shift along x and y, as shares of width and height, in [0, 1].
        scale: smallest and largest factor, above 0.
        shear: largest shear along x to either side, in degrees below 90.
        fill: as in `affine`.
        min_visible, attempts: as in `random_crop`.

    Raises:
        ValueError: an argument is out of range, or a turn by `degrees` would make a word of the caption untrue, as
            `affine` says; whatever is drawn.
    """
    if degrees < 0 or shear < 0:
        raise ValueError(f"degrees is {degrees} and shear {shear}; neither can be below 0")
    if not all(0 <= share <= 1 for share in translate):
        raise ValueError(f"translate is {translate}; it must be two shares, from 0 to 1")
    if not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale is {scale}; it must be two factors above 0, the smaller one first")
    require_upright(sample, min(degrees, 180))
    transform = v2.RandomAffine(degrees, translate=translate, scale=scale, shear=shear)

    def draw(attempt: int) -> PairedSample:
        drawn = _parameters(transform, sample, seed, "paired affine", index, attempt)
        return affine(sample, **drawn, fill=fill, min_visible=min_visible)

    return fewest_dropped(sample, draw, attempts)


def _parameters(
    transform: Any, sample: PairedSample, seed: int, purpose: str, index: int, attempt: int
) -> dict[str, Any]:
    with seeded_global(seed, purpose, index, attempt):
        drawn: dict[str, Any] = transform.make_params([sample.image])
    return drawn


def fewest_dropped(sample: PairedSample, draw: Callable[[int], PairedSample], attempts: int) -> PairedSample:
    """The first of some draws that drops no box, or else the one that drops fewest.

    Args:
        sample: what the draws change.
        draw: from the number of the attempt, 0 and up, to a changed sample.
        attempts: how many there are at most, 1 or more.

    Returns:
        a changed sample; `len(result.dropped) > len(sample.dropped)` where none kept all boxes.

    Raises:
        ValueError: there is no attempt.
    """
    if attempts < 1:
        raise ValueError(f"attempts is {attempts}; at least 1 is needed")
    best = draw(0)
    for attempt in range(1, attempts):
        if len(best.dropped) == len(sample.dropped):
            break
        found = draw(attempt)
        if len(found.dropped) < len(best.dropped):
            best = found
    return best
