"""What is said of a candidate: its scores, and the reasons against it, in words that are counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .copies import DECIMALS, Nearest

NOT_FINITE, BLANK, GREY = "not finite", "blank", "grey"
OTHER_CLASS_CLIP, OTHER_CLASS_CLASSIFIER = "other class (clip)", "other class (classifier)"
COPY_OF_HELD_OUT, COPY_OF_TRAINING = "copy of a held-out image", "copy of a training image"
REPEAT, SURPLUS = "repeat", "surplus"
REASONS = (
    NOT_FINITE,
    BLANK,
    GREY,
    COPY_OF_HELD_OUT,
    COPY_OF_TRAINING,
    OTHER_CLASS_CLIP,
    OTHER_CLASS_CLASSIFIER,
    REPEAT,
    SURPLUS,
)
"""All that can speak against an image; where several do, they are named in this order."""
SCORES = (
    "spread",
    "chroma",
    "nearest_train",
    "nearest_train_bits",
    "nearest_train_id",
    "nearest_heldout",
    "nearest_heldout_bits",
    "clip_margin",
    "class_probability",
    "nearest_accepted",
)
"""Names of the scores, all of them in every `Judged.scores`; None where unknown."""


@dataclass(frozen=True)
class Judged:
    """The verdict on a candidate.

    Attributes:
        scores: JSON values by the names in SCORES.
        reasons: some of REASONS; none means that it is accepted.
    """

    scores: dict[str, Any]
    reasons: list[str]


def write_verdicts(
    columns: Mapping[str, Sequence[Any]], refused: Mapping[str, NDArray[np.bool_]], count: int
) -> list[Judged]:
    """Turn what n filters found into verdicts, one an image.

    Args:
        columns: values by the names in SCORES, `count` each; names that are not there are unknown, None.
        refused: by reason, (count,) bool.
        count: images.
    """
    unknown = [None] * count
    return [
        Judged(
            {name: columns.get(name, unknown)[row] for name in SCORES},
            [reason for reason in REASONS if reason in refused and refused[reason][row]],
        )
        for row in range(count)
    ]


def told(values: NDArray[Any]) -> list[float]:
    """Numbers as they are written down."""
    return [round(float(value), DECIMALS) for value in values]


def nearest_columns(name: str, found: Nearest | None) -> dict[str, list[Any]]:
    """The columns `name` and `name`_bits; None where there was nothing to compare with."""
    if found is None:
        return {}
    known = found.row >= 0
    return {
        name: [value if there else None for value, there in zip(told(found.similarity), known, strict=True)],
        f"{name}_bits": [int(bits) if there else None for bits, there in zip(found.bits, known, strict=True)],
    }
