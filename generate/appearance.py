"""What an image's levels alone give away: nothing on it, or no colour where its class has colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mvc.features import Seen
from mvc.images import GREY_LEVELS

BLANK_LEVELS = 2.0
"""Spread in levels of 255 up to which an image is a plain colour: rounding alone gives as much."""


def is_blank(seen: Seen) -> NDArray[np.bool_]:
    """Which of n images are a plain colour, (n,) bool."""
    blank: NDArray[np.bool_] = seen.spread <= BLANK_LEVELS
    return blank


def chroma_limits(
    train: Seen, classes: Sequence[str], names: Sequence[str], false_reject_rate: float
) -> dict[str, float]:
    """The chroma below which an image is grey, for each class that is coloured.

    A class is coloured if all but `false_reject_rate` of its real images have at least twice GREY_LEVELS. A new image
    may well have less than the palest of three, so the limit lies at half of that, and never above GREY_LEVELS.

    Args:
        train: n real images.
        classes: of each.
        names: the classes to find limits for.
        false_reject_rate: share in [0, 1).
    """
    limits = {}
    for name in names:
        own = train.chroma[[found == name for found in classes]]
        if len(own) == 0:
            continue
        palest = float(np.quantile(own, false_reject_rate, method="lower"))
        if palest >= 2 * GREY_LEVELS:
            limits[name] = min(palest / 2, GREY_LEVELS)
    return limits


def is_grey(chroma: NDArray[np.float32], classes: Sequence[str], limits: Mapping[str, float]) -> NDArray[np.bool_]:
    """Which of n images have less colour than their class has, (n,) bool; `chroma` is (n,) float32, as in `Seen`."""
    return np.array([value < limits.get(name, 0.0) for value, name in zip(chroma, classes, strict=True)], dtype=bool)
