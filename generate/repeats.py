"""One image for each slot, and none that repeats another: the earlier one stays."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .copies import DECIMALS, Pictures, Rule, compare
from .verdicts import REPEAT, SURPLUS

_BLOCK = 256


@dataclass(frozen=True)
class Picked:
    """What became of n images that nothing else speaks against.

    Attributes:
        reasons: of each, REPEAT, SURPLUS, or None for those that are accepted.
        nearest: of each, the highest similarity with an accepted one before it; None for the first and for surplus.
    """

    reasons: list[str | None]
    nearest: list[float | None]


def pick(pictures: Pictures, slots: Sequence[Hashable], rule: Rule | None) -> Picked:
    """Accept images in their order: the first of its slot, unless it repeats an accepted one.

    Memory is bounded by the accepted images and not by pairs: a generator that collapsed gives millions of those.

    Args:
        pictures: n images of one class, in the order in which they are judged.
        slots: of each, what it was drawn for.
        rule: from when on two of them are one picture; None accepts repeats.
    """
    picked = Picked([None] * len(pictures), [None] * len(pictures))
    filled: set[Hashable] = set()
    if rule is None:
        for row, slot in enumerate(slots):
            picked.reasons[row] = SURPLUS if slot in filled else None
            filled.add(slot)
        return picked
    accepted = _Store(pictures)
    for start in range(0, len(pictures), _BLOCK):
        rows = np.arange(start, min(start + _BLOCK, len(pictures)))
        block = pictures.take(rows)
        near, best = _against(block, accepted.pictures(), rule)
        (_, among, bits) = next(compare(block, block))
        same = rule.holds(among, bits)
        new: list[int] = []
        for place, row in enumerate(rows.tolist()):
            if slots[row] in filled:
                picked.reasons[row] = SURPLUS
                continue
            highest = max(float(best[place]), float(among[place, new].max(initial=-2.0)))
            picked.nearest[row] = round(highest, DECIMALS) if highest >= -1.5 else None
            if near[place] or bool(same[place, new].any()):
                picked.reasons[row] = REPEAT
            else:
                filled.add(slots[row])
                new.append(place)
        accepted.add(block.take(new))
    return picked


class _Store:
    """Accepted images, in memory that is laid out once."""

    def __init__(self, like: Pictures) -> None:
        self._directions, self._hashes = np.empty_like(like.directions), np.empty_like(like.hashes)
        self._count = 0

    def add(self, pictures: Pictures) -> None:
        place = slice(self._count, self._count + len(pictures))
        self._directions[place], self._hashes[place] = pictures.directions, pictures.hashes
        self._count = place.stop

    def pictures(self) -> Pictures:
        return Pictures(self._directions[: self._count], self._hashes[: self._count])


def _against(block: Pictures, accepted: Pictures, rule: Rule) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which of the block repeat an accepted one, and the highest similarity with one; -2 if there is none."""
    if len(accepted) == 0:
        return np.zeros(len(block), dtype=bool), np.full(len(block), -2.0, dtype=np.float32)
    (_, similarity, bits) = next(compare(block, accepted))
    near = np.asarray(rule.holds(similarity, bits).any(axis=1))
    return near, np.asarray(similarity.max(axis=1))
