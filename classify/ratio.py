"""Fewer synthetic images for each real one: which of a synthetic set an arm takes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Labels = Sequence[int] | npt.NDArray[np.int64]


def rows_of_ratio(labels: Labels, sources: Sequence[str], real_labels: Labels, ratio: float) -> list[int]:
    """Rows of the synthetic set that hold about `ratio` synthetic images for each real one.

    Every class gets ratio times its real images, rounded (half up), but one at least; a class with fewer
    synthetic images gives all it has, one without real images none. Sources keep the shares they have within the
    class, rounded down or up; what rounding took from a source in one class it is given in the next ones. Of a
    class and source the first rows are taken. No randomness.

    Args:
        labels: (m,) labels of the synthetic images.
        sources: (m,) their sources.
        real_labels: (n,) labels of the real training images.
        ratio: above 0.

    Returns:
        Row numbers in ascending order, each once.

    Raises:
        ValueError: labels and sources differ in number, or the ratio is not above 0.
    """
    if len(labels) != len(sources):
        raise ValueError(f"{len(labels)} labels and {len(sources)} sources of synthetic images")
    if not ratio > 0:
        raise ValueError(f"the ratio {ratio} is not above 0")
    names, real = sorted(set(sources)), np.bincount(np.asarray(real_labels, dtype=np.int64))
    by_cell: dict[tuple[int, str], list[int]] = {}
    for row, (label, source) in enumerate(zip(labels, sources, strict=True)):
        by_cell.setdefault((int(label), source), []).append(row)
    owed = dict.fromkeys(names, Fraction(0))
    kept: list[int] = []
    for label in np.flatnonzero(real).tolist():
        there = {name: len(by_cell.get((label, name), [])) for name in names}
        wanted = max(1, math.floor(ratio * int(real[label]) + 0.5))
        for name, count in _shared_out(min(wanted, sum(there.values())), there, owed).items():
            kept += by_cell.get((label, name), [])[:count]
    return sorted(kept)


def _shared_out(wanted: int, there: dict[str, int], owed: dict[str, Fraction]) -> dict[str, int]:
    """`wanted` images by the shares of `there`: largest remainders, with those of earlier classes in `owed`.

    `owed` is brought up to date. Without it, one image a class would come from the same source in every class.
    """
    if not wanted:
        return {}
    due = {name: Fraction(wanted * count, sum(there.values())) for name, count in there.items()}
    given = {name: math.floor(share) for name, share in due.items()}
    # A source whose share is whole gets just that: it may have no image more.
    uneven = [name for name in due if due[name] != given[name]]
    uneven.sort(key=lambda name: owed[name] + due[name] - given[name], reverse=True)
    for name in uneven[: wanted - sum(given.values())]:
        given[name] += 1
    for name in due:
        owed[name] += due[name] - given[name]
    return given
