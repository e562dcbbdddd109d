"""Copies of images: equal files by their sha256, nearly equal pictures by the distance of perceptual hashes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

NEAR_DISTANCE = 4
"""Differing bits of 64 up to which two pictures count as near duplicates."""
MOST_PAIRS = 1_000_000
"""Near pairs after which the search stops: a set of look-alikes has no use for more."""


def equal_files(sha256: Mapping[str, str]) -> list[list[str]]:
    """Groups of two and more paths with the same sha256, sorted."""
    groups = defaultdict(list)
    for path in sorted(sha256):
        groups[sha256[path]].append(path)
    return sorted(group for group in groups.values() if len(group) > 1)


def near_pairs(hashes: Sequence[str], distance: int = NEAR_DISTANCE) -> NDArray[np.int64]:
    """Pairs of hashes that differ in at most `distance` bits.

    Args:
        hashes: 64-bit hashes as 16 hexadecimal digits.
        distance: in bits.

    Returns:
        Array of shape (pairs, 3): first index < second index, bits; nearest first, at most MOST_PAIRS rows.
    """
    bits = np.array([int(text, 16) for text in hashes], dtype=np.uint64)
    found, total = [np.empty((0, 3), dtype=np.int64)], 0
    for start in range(0, len(bits), 256):
        block = np.bitwise_count(bits[start : start + 256, None] ^ bits[None, start:])
        first, second = np.nonzero(np.triu(block <= distance, k=1))
        pairs = np.stack([first + start, second + start, block[first, second]], axis=1).astype(np.int64)
        found.append(pairs)
        total += len(pairs)
        if total > MOST_PAIRS:
            break
    pairs = np.concatenate(found)[:MOST_PAIRS]
    return pairs[np.lexsort((pairs[:, 1], pairs[:, 0], pairs[:, 2]))]


def across(groups: Sequence[Sequence[str]], split: Mapping[str, str]) -> list[Sequence[str]]:
    """The groups whose members lie in more than one split.

    Args:
        groups: paths of copies.
        split: split by path; paths without one are not counted.
    """
    return [group for group in groups if len({split[path] for path in group if path in split}) > 1]
