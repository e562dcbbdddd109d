"""How far a text that was heard is from the one that was spoken, and the filter that drops what drifted too far.

Li et al. 2023, "Back-Modality", Sec. 3.2, drop texts whose edit distance to the original exceeds 20 %. Speech carries
neither case nor punctuation, so that neither counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any

from mvc.extras import package

from .nodes import Filter
from .steps import Item
from .words import attached

_NO_WORD = re.compile(r"[\W_]+")


def normal_words(text: str) -> str:
    """What of a text can be heard: casefolded, all but letters and digits as spaces, single spaces.

    Args:
        text: any; composed and decomposed accents come to the same, and so do "does n't" and "doesn't".
    """
    # Compatibility forms first, for an accent of its own would count as no letter; again after casefold, which splits.
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", attached(text)).casefold())
    return _NO_WORD.sub(" ", folded).strip()


def same_words(one: str, other: str) -> bool:
    """Whether two texts sound as the same words."""
    return normal_words(one) == normal_words(other)


def letter_distance() -> Callable[[str, str], int]:
    """Levenshtein's distance: how many letters are put in, left out or replaced at least.

    Raises:
        EnvironmentFault: the package rapidfuzz is missing.
    """
    package("rapidfuzz", "speech", "the edit distance needs")
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.distance


def edit_distance(original: str, heard: str) -> float:
    """Levenshtein's distance of the normal words, as a share of the original's letters and spaces.

    Args:
        original: the text that was spoken; one without words counts as of length 1.
        heard: the text that came back.

    Returns:
        0 where the words are the same; above 1 where more is wrong than the original is long.

    Raises:
        EnvironmentFault: the package rapidfuzz is missing.
    """
    spoken = normal_words(original)
    return letter_distance()(spoken, normal_words(heard)) / max(1, len(spoken))


def edit_distance_filter(limit: float) -> Filter:
    """A filter that drops what is further from the sample's text than `limit` (0.2 in the paper, Sec. 3.2).

    Args:
        limit: largest `edit_distance` that passes.

    Raises:
        EnvironmentFault: the package rapidfuzz is missing.
    """
    letter_distance()  # before hours of speech and not after them

    def judge(item: Item, value: Item) -> tuple[bool, Mapping[str, Any]]:
        distance = edit_distance(item, value)
        return distance <= limit, {"edit_distance": round(distance, 4)}

    return Filter(f"edit distance over {100 * limit:g} %", judge)
