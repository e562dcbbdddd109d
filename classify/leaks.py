"""Test images that a classifier could have learnt by heart: the same picture among what it was trained or chosen on."""

from __future__ import annotations

import torch
from torch import Tensor

from .images import Images

SAME = 4.0
"""Root mean square difference in levels of 255 up to which two pictures are the same one, stored twice."""
_CHUNK = 256


def nearest(images: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest of some other images in the root mean square of the pixels.

    Args:
        images: (n, S, S, 3) uint8.
        others: (m, S, S, 3) uint8, m at least 1.

    Returns:
        (n,) float32 distance in levels of 255, and (n,) int64 row of the other.
    """
    flat = others.flatten(1).float()
    squares = flat.square().sum(dim=1)
    distances, rows = [], []
    for part in images.split(_CHUNK):
        own = part.flatten(1).float()
        found = squares - 2 * own @ flat.T  # less |own|^2, which no row changes
        row = found.argmin(dim=1)
        rows.append(row)
        # Anew from the pixels: the difference of large sums says nothing about small distances.
        distances.append((own - flat[row]).square().mean(dim=1).sqrt())
    return torch.cat(distances), torch.cat(rows)


def leaked(test: Images, seen: dict[str, Images]) -> dict[str, Tensor]:
    """Rows of the test split that are also among the images that a classifier saw.

    Args:
        test: the opened test split.
        seen: by name, such as "training" and "synthetic".

    Returns:
        (k,) int64 rows of `test` by name, where there are any.
    """
    found = {}
    for name, images in seen.items():
        if len(images) and len(test):
            rows = (nearest(test.pixels, images.pixels)[0] <= SAME).nonzero().flatten()
            if len(rows):
                found[name] = rows
    return found
