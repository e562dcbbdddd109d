"""Near copies: two pictures count as one if their perceptual hashes and their features both say so.

The hash alone calls different pictures of plain shapes equal; the features alone say that all pictures of one domain
are alike. Features are compared after the mean of the real training images is taken off, by the cosine.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvc.features import Seen

DECIMALS = 6
"""Scores and thresholds are compared as they are written down, so that a row of the table explains its verdict."""
CERTAIN_BITS = 4
"""Two files of one picture (saved again, resized, with some noise) hardly ever differ in more bits."""
TRIALS = 200
"""Training images at most whose changed copies are looked at to set thresholds."""
MISSED_SHARE = 0.02
"""Share of the trial copies that may lie below a threshold."""
REAL_SHARE = 0.01
"""Share of the real training images that an automatic threshold may call a copy of another one."""
_BLOCK = 256
"""Images compared at once with all others: bounds the memory."""


@dataclass(frozen=True)
class Rule:
    """From when on two pictures count as one: at most `bits` of 64 differ, and the cosine is at least `similarity`."""

    bits: int
    similarity: float

    def holds(self, similarity: NDArray[np.float32], bits: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """For which pairs it holds; both arrays of the same shape."""
        # Half a unit of the last decimal: as if the similarity were rounded first.
        near: NDArray[np.bool_] = (bits <= self.bits) & (similarity >= self.similarity - 0.5 * 10.0**-DECIMALS)
        return near


@dataclass(frozen=True)
class Pictures:
    """n pictures ready to be compared.

    Attributes:
        directions: (n, d) float32, centred features of length 1; zeros where an image lies at the centre.
        hashes: (n,) uint64.
    """

    directions: NDArray[np.float32]
    hashes: NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: Sequence[int] | NDArray[np.int64]) -> Pictures:
        """Those at `rows`."""
        chosen = np.asarray(rows, dtype=np.int64)
        return Pictures(self.directions[chosen], self.hashes[chosen])


@dataclass(frozen=True)
class Nearest:
    """The nearest of some pictures to each of n: a near copy before others, then the most similar, then the first.

    Attributes:
        row: (n,) int64, which one; -1 where there is none.
        similarity: (n,) float64, cosine in [-1, 1], rounded to DECIMALS; -1 where there is none.
        bits: (n,) int64, bits in which the hashes differ.
        copy: (n,) bool, whether a rule holds between the two.
    """

    row: NDArray[np.int64]
    similarity: NDArray[np.float64]
    bits: NDArray[np.int64]
    copy: NDArray[np.bool_]


def find_centre(train: Seen) -> NDArray[np.float32]:
    """(d,) float32 mean of the real training images' features; zeros where it would leave no direction to compare."""
    if len(train) == 0 or bool((train.features == train.features[0]).all()):
        return np.zeros(train.features.shape[1], dtype=np.float32)
    centre: NDArray[np.float32] = train.features.mean(axis=0, dtype=np.float64).astype(np.float32)
    return centre


def prepare(seen: Seen, centre: NDArray[np.float32]) -> Pictures:
    """Centre the features of images and give them length 1."""
    if len(seen) == 0:
        return Pictures(np.empty((0, len(centre)), dtype=np.float32), seen.hashes)
    directions = seen.features - centre
    lengths = np.linalg.norm(directions, axis=1, keepdims=True)
    unit: NDArray[np.float32] = directions / np.maximum(lengths, np.finfo(np.float32).tiny)
    return Pictures(unit, seen.hashes)


def compare(pictures: Pictures, others: Pictures) -> Iterator[tuple[slice, NDArray[np.float32], NDArray[np.uint8]]]:
    """Compare n pictures with m others, a block of rows after the other.

    Yields:
        The rows of the block, (b, m) float32 similarities and (b, m) uint8 differing bits.
    """
    for start in range(0, len(pictures), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(pictures)))
        # Always as many rows: matrix products round differently at other shapes, and what is said of a picture must
        # not change when more pictures follow it.
        block = np.zeros((_BLOCK, pictures.directions.shape[1]), dtype=np.float32)
        block[: rows.stop - start] = pictures.directions[rows]
        similarity = (block @ others.directions.T)[: rows.stop - start]
        yield rows, similarity, np.bitwise_count(pictures.hashes[rows, None] ^ others.hashes[None])


def find_nearest(
    pictures: Pictures, others: Pictures, rules: Sequence[Rule], exclude: NDArray[np.int64] | None = None
) -> Nearest:
    """The nearest of m others to each of n pictures; memory grows with m, time with n x m.

    Args:
        pictures: n pictures.
        others: m pictures.
        rules: two pictures are copies if any of them holds.
        exclude: (n,) int64, which one of the others not to look at; -1 for none.
    """
    count = len(pictures)
    found = Nearest(np.full(count, -1), np.full(count, -1.0), np.full(count, 64), np.zeros(count, dtype=bool))
    if len(others) == 0:
        return found
    for rows, similarity, bits in compare(pictures, others):
        copies = np.logical_or.reduce([rule.holds(similarity, bits) for rule in rules])
        if exclude is not None:
            own = np.flatnonzero(exclude[rows] >= 0)
            similarity[own, exclude[rows][own]], copies[own, exclude[rows][own]] = -2.0, False
        # A copy beats what is no copy, however similar.
        best = (similarity + 4.0 * copies).argmax(axis=1)
        place = np.arange(len(best))
        told = np.round(similarity[place, best].astype(np.float64), DECIMALS)
        known = told >= -1.5
        found.row[rows] = np.where(known, best, -1)
        found.similarity[rows] = np.where(known, told, -1.0)
        found.bits[rows] = np.where(known, bits[place, best], 64)
        found.copy[rows] = copies[place, best]
    return found


@dataclass(frozen=True)
class Likeness:
    """How near pictures of this set are to each other, by this extractor.

    Attributes:
        centre: (d,) float32, mean of the real training images' features.
        rule: from when on two pictures count as one.
        certain: from when on they do so whatever the user says.
    """

    centre: NDArray[np.float32]
    rule: Rule
    certain: Rule


def trial_rows(count: int) -> list[int]:
    """Which of `count` training images are changed on trial: all, or TRIALS of them, evenly spread."""
    return sorted(set(np.linspace(0, count - 1, min(count, TRIALS)).round().astype(int).tolist()))


def fit_likeness(train: Seen, trials: tuple[Seen, Seen], bits: int, similarity: float | None) -> Likeness:
    """Find out how near copies are, and how near different real images are, by this extractor.

    Extractors differ: one hardly notices that a picture was saved as a JPEG, another halves the cosine. So training
    images are changed on trial. A lightly changed copy has to be found: its similarity is the highest threshold. A
    strongly changed one should be found: its similarity is the lowest threshold. Between the two the threshold is the
    similarity that REAL_SHARE of the real images reach with another real image within `bits`; pairs that are certainly
    one picture are left out there, as data sets hold some images twice.

    Args:
        train: n real training images.
        trials: those at `trial_rows(n)`, changed lightly and strongly (`mvc.features.changed`).
        bits: of the rule.
        similarity: of the rule; None finds it.
    """
    centre = find_centre(train)
    pictures = prepare(train, centre)
    originals = pictures.take(trial_rows(len(train)))
    light, strong = (_kept(originals, prepare(trial, centre)) for trial in trials)
    if similarity is None:
        wanted = float(np.quantile(_of_others(pictures, Rule(bits, light)), 1.0 - REAL_SHARE))
        similarity = round(min(max(wanted, strong), light), DECIMALS)
    return Likeness(centre, Rule(bits, similarity), Rule(CERTAIN_BITS, light))


def _kept(originals: Pictures, copies: Pictures) -> float:
    """The similarity that all but MISSED_SHARE of the copies keep with their originals."""
    similarity = (originals.directions.astype(np.float64) * copies.directions).sum(axis=1)
    return round(float(np.quantile(similarity, MISSED_SHARE, method="lower")), DECIMALS)


def _of_others(train: Pictures, twice: Rule) -> NDArray[np.float64]:
    """(n,) highest similarity of each image with another one within the rule's bits to which the rule does not hold."""
    highest = np.full(len(train), -1.0)
    for rows, similarity, bits in compare(train, train):
        place = np.arange(rows.start, rows.stop)
        other = (bits <= twice.bits) & ~twice.holds(similarity, bits)
        other[place - rows.start, place] = False
        highest[rows] = np.where(other, similarity, -1.0).max(axis=1)
    return highest
