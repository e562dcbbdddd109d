"""Mixing Visual Concepts (MVC, Section 3.2, Algorithm 1): plans of integers, and their application to a batch.

A plan says which caption of a class to begin with and which token rows (coarse) and columns of one row (fine)
to take from which other captions. It is drawn without looking at any embedding, so it can be kept and repeated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mvc.randomness import derived_seed

Integers = np.ndarray[Any, np.dtype[np.int64]]
Words = np.ndarray[Any, np.dtype[np.uint64]]

_WORDS_A_BLOCK = 4
"""Philox4x64 yields four 64-bit words for each value of its counter."""
_CHUNK = 8192
"""Rows drawn at once, to bound the memory for random words."""


@dataclass(frozen=True)
class MixingPlan:
    """How each of n mixed embeddings is put together; positions are 1-based and inclusive on both ends.

    Attributes:
        base: (n,) int64, index into the class's caption list of the embedding to begin with.
        coarse: (n, P, 3) int64, partner, r, s: rows r..s come from caption `partner`.
        fine: (n, Q, 4) int64, partner, w, u, v: columns u..v of row w come from caption `partner`.

    Replacements apply in order, coarse ones first; a later one overwrites an earlier one.
    """

    base: Integers
    coarse: Integers
    fine: Integers

    def __len__(self) -> int:
        return len(self.base)

    def row(self, index: int) -> dict[str, Any]:
        """One embedding's plan as plain integers, for the provenance record of an image."""
        return {
            "base": int(self.base[index]),
            "coarse": self.coarse[index].tolist(),
            "fine": self.fine[index].tolist(),
        }

    @classmethod
    def from_rows(cls, rows: Sequence[Mapping[str, Any]]) -> MixingPlan:
        """Put a plan together from what `row` returned; all rows need the same P and Q."""
        return cls(
            np.array([row["base"] for row in rows], dtype=np.int64),
            np.array([row["coarse"] for row in rows], dtype=np.int64).reshape(len(rows), -1, 3),
            np.array([row["fine"] for row in rows], dtype=np.int64).reshape(len(rows), -1, 4),
        )


def draw_plan(
    seed: int,
    class_name: str,
    indices: Sequence[int],
    captions: int,
    rows: int,
    columns: int,
    coarse: int,
    fine: int,
) -> MixingPlan:
    """Draw the plans of some embeddings of one class (Algorithm 1, lines 4 to 15).

    Row i depends on (seed, class_name, indices[i]) and the sizes alone, never on which others are drawn with it.
    Partners are any caption of the class but the base, by index, also when two captions read the same.

    Args:
        seed: the run's seed; randomness comes from a counter-based generator keyed by it and the class.
        class_name: the class folder's name.
        indices: (n) global numbers >= 0 of the embeddings.
        captions: captions of the class; with a single one there is no partner, and nothing changes.
        rows: m, rows to draw from; the number of token rows, or `content_rows` of the class.
        columns: d, width of an embedding.
        coarse: P, coarse replacements each.
        fine: Q, fine replacements each.

    Raises:
        ValueError: a size that no plan can be drawn for.
    """
    if captions < 1:
        raise ValueError(f"class {class_name} has no caption to mix")
    if (rows < 2 and coarse) or rows < 1:
        raise ValueError(f"{rows} rows are too few: a coarse replacement needs r < s")
    if columns < 2 and fine:
        raise ValueError(f"{columns} columns are too few: a fine replacement needs u < v")
    numbers = np.asarray(indices, dtype=np.int64).reshape(-1)
    if (numbers < 0).any():
        raise ValueError("indices must not be negative")
    plan = MixingPlan(
        np.empty(len(numbers), np.int64),
        np.empty((len(numbers), coarse, 3), np.int64),
        np.empty((len(numbers), fine, 4), np.int64),
    )
    for first in range(0, len(numbers), _CHUNK):
        part = slice(first, first + _CHUNK)
        words = _random_words(seed, class_name, numbers[part], 1 + 2 * coarse + 3 * fine)
        _fill(plan, part, words, captions, rows, columns)
    return plan


def _fill(plan: MixingPlan, part: slice, words: Words, captions: int, rows: int, columns: int) -> None:
    """Turn the random words (n, 1 + 2P + 3Q) of some rows into their plan."""
    coarse = plan.coarse.shape[1]
    plan.base[part] = base = _below(words[:, 0], captions)
    for_coarse = words[:, 1 : 1 + 2 * coarse].reshape(len(words), -1, 2)
    plan.coarse[part, :, 0] = _partners(for_coarse[:, :, 0], base, captions)
    if coarse:
        plan.coarse[part, :, 1], plan.coarse[part, :, 2] = _ordered_pairs(for_coarse[:, :, 1], rows)
    for_fine = words[:, 1 + 2 * coarse :].reshape(len(words), -1, 3)
    plan.fine[part, :, 0] = _partners(for_fine[:, :, 0], base, captions)
    if plan.fine.shape[1]:
        plan.fine[part, :, 1] = _below(for_fine[:, :, 1], rows) + 1
        plan.fine[part, :, 2], plan.fine[part, :, 3] = _ordered_pairs(for_fine[:, :, 2], columns)


def _random_words(seed: int, class_name: str, numbers: Integers, words: int) -> Words:
    """(n, words) random 64-bit words; row i is a fixed stretch of the class's stream, found by its number.

    A counter-based generator reaches any stretch at once, so neighbouring numbers share one call and
    scattered ones pay for one each.
    """
    key = derived_seed(seed, f"mixing {class_name}")
    blocks = -(-words // _WORDS_A_BLOCK)
    drawn = np.empty((len(numbers), blocks * _WORDS_A_BLOCK), np.uint64)
    starts = np.flatnonzero(np.diff(numbers, prepend=numbers[:1] - 2) != 1)
    for first, end in zip(starts, [*starts[1:], len(numbers)], strict=True):
        stream = np.random.Philox(key=key, counter=int(numbers[first]) * blocks)
        drawn[first:end] = stream.random_raw((end - first) * blocks * _WORDS_A_BLOCK).reshape(end - first, -1)
    return drawn[:, :words]


def _below(words: Words, bound: int) -> Integers:
    """Uniform integers in [0, bound); the bias of a remainder is below bound / 2**64."""
    return (words % np.uint64(bound)).astype(np.int64)


def _partners(words: Words, base: Integers, captions: int) -> Integers:
    """Uniform caption indices other than the row's base; the base itself where there is no other."""
    if captions == 1:
        return np.broadcast_to(base[:, None], words.shape).copy()
    other = _below(words, captions - 1)
    return other + (other >= base[:, None])


def _ordered_pairs(words: Words, size: int) -> tuple[Integers, Integers]:
    """Uniform pairs 1 <= r < s <= size, all size (size - 1) / 2 of them equally likely.

    Pairs are numbered by s, then r: number = (s - 1)(s - 2) / 2 + (r - 1). The square root is exact
    enough: numbers stay far below 2**45.
    """
    number = _below(words, size * (size - 1) // 2)
    below = np.floor((1.0 + np.sqrt(8.0 * number + 1.0)) / 2.0).astype(np.int64)  # s - 1
    return number - below * (below - 1) // 2 + 1, below + 1


def apply_plan(plan: MixingPlan, embeddings: torch.Tensor) -> torch.Tensor:
    """Mix: one gather for base and coarse replacements, then Q masked writes of one row each.

    Args:
        plan: n rows, drawn for these k captions.
        embeddings: (k, m, d), the class's caption embeddings in the order that the plan's indices mean.

    Returns:
        (n, m, d) of the same type on the same device; every value is copied from `embeddings`, none computed.
    """
    captions, rows, columns = embeddings.shape
    device = embeddings.device
    table = embeddings.reshape(captions * rows, columns)
    base = torch.from_numpy(plan.base).to(device)
    coarse = torch.from_numpy(plan.coarse).to(device)
    fine = torch.from_numpy(plan.fine).to(device)
    position = torch.arange(rows, device=device)

    source = base[:, None].expand(-1, rows)
    for replacement in coarse.unbind(1):
        partner, first, last = replacement.unsqueeze(2).unbind(1)
        source = torch.where((position >= first - 1) & (position < last), partner, source)
    mixed = table.index_select(0, (source * rows + position).reshape(-1))

    offset = torch.arange(len(plan), device=device) * rows
    column = torch.arange(columns, device=device)
    for replacement in fine.unbind(1):
        partner, row, first, last = replacement.unsqueeze(2).unbind(1)
        target = offset + row[:, 0] - 1
        taken = table.index_select(0, partner[:, 0] * rows + row[:, 0] - 1)
        inside = (column >= first - 1) & (column < last)
        mixed.index_copy_(0, target, torch.where(inside, taken, mixed.index_select(0, target)))
    return mixed.view(len(plan), rows, columns)


def content_rows(ends: torch.Tensor) -> int:
    """How many rows hold words in at least one caption of a class, its end-of-text row included.

    The class's longest caption counts: with the shortest one, the last words of all others could never be
    exchanged. A shorter caption's rows behind its end are padding, which still carries its summary.

    Args:
        ends: (k,) 0-based index of each caption's end-of-text token.
    """
    return int(ends.max()) + 1


def mixing_limits(captions: Mapping[str, Sequence[str]]) -> tuple[list[str], list[str]]:
    """Classes where mixing changes nothing.

    Args:
        captions: texts by class name.

    Returns:
        names of the classes with a single caption (no partner), and of those whose captions all read the same.
    """
    single = [name for name, texts in captions.items() if len(texts) == 1]
    same = [name for name, texts in captions.items() if len(texts) > 1 and len(set(texts)) == 1]
    return single, same
