"""MixGen of token ids against open_clip's tokenizer on the joined strings, cutting, and refusals."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor
from transformers import CLIPTokenizer

from mvc.mixgen import mix_texts
from mvc.mixgen_plan import VARIANTS, MixGenPlan, plan_mixgen
from mvc.mixgen_tokens import CLIP_END, CLIP_START, mix_token_ids
from mvc.randomness import numpy_generator
from mvc.tiny import WEIGHTS

TOKENIZER = SimpleTokenizer()
WORDS = [
    "A",
    "dog's",
    "rain-coat",
    "!?",
    "isn't",
    "unbelievableness",
    "(left)",
    "3.5",
    "naïve",
    "&",
    "a!!b",
    "café,",
    "犬",
]


def plan_of(rows: int, variant: str = "default", share: float = 0.5, step: int = 0) -> MixGenPlan:
    return plan_mixgen(rows, numpy_generator(1, "mixgen", step), variant, share)


def row_of(*words: int, length: int = 8, end: int = 99, pad: int = 0) -> list[int]:
    """start 98, words, end, padding."""
    return [98, *words, end, *[pad] * (length - len(words) - 2)]


@settings(deadline=None, max_examples=100)
@given(
    texts=st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6), min_size=2, max_size=9),
    variant=st.sampled_from(("default", "a", "b", "c")),
    share=st.floats(0.01, 1),
    step=st.integers(0, 100),
)
def test_it_equals_tokenising_the_new_strings(texts: list[list[str]], variant: str, share: float, step: int) -> None:
    plan, joined = plan_of(len(texts), variant, share, step), [" ".join(words) for words in texts]
    found = mix_token_ids(plan, TOKENIZER(joined))
    assert found.dtype == torch.int64 and torch.equal(found, TOKENIZER(mix_texts(plan, joined)))


def test_what_does_not_fit_is_cut_as_the_tokenizer_does_it_and_keeps_its_end() -> None:
    texts = ["one two three four five six", "seven eight nine ten", "a", "b"]
    plan = plan_of(4)
    for length in (8, 9, 10):
        found = mix_token_ids(plan, TOKENIZER(texts, length))
        assert torch.equal(found, TOKENIZER(mix_texts(plan, texts), length))
        assert found.argmax(dim=1).tolist() == [min(8, length - 1), 6, 2, 2]
    # Words that the first text lost when it was tokenised cannot come back, but the other's follow.
    short = TOKENIZER(["one two three four five six", "b", "two", "b"], 5)
    assert torch.equal(mix_token_ids(plan, short)[0], short[0])


def test_a_pad_that_is_the_end_token_and_words_with_the_id_of_padding() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(str(WEIGHTS / "tokenizer"))
    start, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    texts = ["a large white three", "a small red two tilted left", "a black one", "a pink nine"]

    def ids(lines: list[str]) -> Tensor:
        made: Tensor = tokenizer(
            lines, padding="max_length", max_length=20, truncation=True, return_tensors="pt"
        ).input_ids
        return made

    plan = plan_of(4)
    assert pad == end
    assert torch.equal(mix_token_ids(plan, ids(texts), start, end, pad), ids(mix_texts(plan, texts)))
    zeros = torch.tensor([row_of(0, 7), row_of(5, 0, 0)])
    assert mix_token_ids(plan_of(2), zeros, 98, 99, 0)[0].tolist() == row_of(0, 7, 5, 0, 0)
    # An end token that is not the largest id, as other tokenizers have it.
    small = torch.tensor([row_of(120, 7, end=2, pad=1), row_of(130, end=2, pad=1)])
    assert mix_token_ids(plan_of(2), small, 98, 2, 1)[0].tolist() == row_of(120, 7, 130, end=2, pad=1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_by_hand(variant: str) -> None:
    words = [[10 * row + place for place in range(1, 2 + row)] for row in range(6)]
    ids = torch.tensor([row_of(*line, length=16) for line in words])
    before = ids.clone()
    for step in range(20):
        plan = plan_of(6, variant, 1.0, step)
        found = mix_token_ids(plan, ids, 98, 99)
        for row, partner in enumerate(plan.partner.tolist()):
            both = words[row] + words[partner]
            kept = [both[place] for place in plan.tokens(row, len(words[row]), len(words[partner]))]
            assert found[row].tolist() == row_of(*kept, length=16)
    assert torch.equal(ids, before)
    plan = plan_of(6, variant, 0.3)
    assert torch.equal(mix_token_ids(plan, ids, 98, 99)[2:], ids[2:])


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([row_of(1), row_of()], "row 1 of token ids has no word"),
        ([row_of(1), [97, 2, 99, 0, 0, 0, 0, 0]], "row 1 of token ids begins with 97, not with the start token 98"),
        ([[98, 1, 2, 3, 4, 5, 6, 7], row_of(1)], "row 0 of token ids has no end token 99"),
        ([row_of(1)] * 3, "the plan is for a batch of 2 pairs, and there are 3 rows of token ids"),
        ([98, 1], r"torch.int64 tensor of shape \(2,\): give \(B, L\) of int64"),
        ([[98.0, 1.0, 99.0]] * 2, r"torch.float32 tensor of shape \(2, 3\)"),
        ([[98, 99]] * 2, "rows of 2 token ids have no room"),
    ],
)
def test_rows_of_another_form_are_named(ids: list[object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mix_token_ids(plan_of(2), torch.tensor(ids), 98, 99)


def test_the_default_ids_are_open_clips() -> None:
    assert (TOKENIZER.sot_token_id, TOKENIZER.eot_token_id) == (CLIP_START, CLIP_END)
