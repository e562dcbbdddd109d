"""MixGen on token ids: two tokenised texts become one, between one start and one end token.

Hao et al., "MixGen: A New Multi-Modal Data Augmentation", Sec. 2 and Table 6, for batches that were tokenised already.
Where the joined text fits, that is the same as tokenising the joined string, because CLIP's tokens never reach over
white space. Where it doesn't, words are missing that a text had lost when it was tokenised.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mvc.mixgen_plan import MixGenPlan

CLIP_START, CLIP_END, CLIP_PAD = 49406, 49407, 0
"""Of open_clip's SimpleTokenizer. transformers' CLIPTokenizer pads with its end token, 49407 in most checkpoints."""


def mix_token_ids(
    plan: MixGenPlan, ids: Tensor, start: int = CLIP_START, end: int = CLIP_END, pad: int = CLIP_PAD
) -> Tensor:
    """The token ids of a batch with the first M rows replaced by those of the new pairs (MixGen, Eq. (1), Table 6).

    A new row is start, the words' tokens of both texts, end, padding. What is too long is cut, and the end token
    stands last, as the tokenizer does it. Variants d and e leave out tokens, not words. No randomness.

    Args:
        plan: of this batch.
        ids: (B, L) int64 on any device; a row is start, words, end, padding. CLIP pools at the largest id of a row,
            which is its end token's.
        start, end, pad: ids of these tokens. Words end at the first `end`, so `pad` may equal it, and may be a word's
            id too (0 is an exclamation mark within CLIP's words).

    Returns:
        (B, L) int64, a copy. Rows from M on are as they were.

    Raises:
        ValueError: ids have another shape or type, there are not B rows, or a row is not of this form or has no word.
    """
    if ids.dim() != 2 or ids.dtype != torch.int64:
        raise ValueError(f"token ids are a {ids.dtype} tensor of shape {tuple(ids.shape)}: give (B, L) of int64")
    plan.check_size(len(ids), "rows of token ids")
    table = ids.detach().cpu().numpy()
    ends = _ends(table, start, end)
    length = table.shape[1]
    rows = np.full((len(plan), length), pad, np.int64)
    for row, partner in enumerate(plan.partner.tolist()):
        words, others = table[row, 1 : ends[row]], table[partner, 1 : ends[partner]]
        places = plan.tokens(row, len(words), len(others))[: length - 2]
        rows[row, 0] = start
        rows[row, 1 : 1 + len(places)] = np.concatenate([words, others])[places]
        rows[row, 1 + len(places)] = end
    return torch.cat([torch.from_numpy(rows).to(ids.device), ids[len(plan) :]])


def _ends(table: np.ndarray[tuple[int, ...], np.dtype[np.int64]], start: int, end: int) -> list[int]:
    """Where the first end token of each row is."""
    if table.shape[1] < 3:
        raise ValueError(f"rows of {table.shape[1]} token ids have no room for start, word and end")
    is_end = table == end
    ends: list[int] = is_end.argmax(axis=1).tolist()
    for row, place in enumerate(ends):
        if table[row, 0] != start:
            raise ValueError(f"row {row} of token ids begins with {table[row, 0]}, not with the start token {start}")
        if not is_end[row, place]:
            raise ValueError(f"row {row} of token ids has no end token {end}")
        if place == 1:
            raise ValueError(f"row {row} of token ids has no word: every pair needs a caption of a word at least")
    return ends
