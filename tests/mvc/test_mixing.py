"""Mixing: the batched form against Algorithm 1 row by row, its draws, and its invariants on a causal text tower."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.mixing import MixingPlan, _ordered_pairs, apply_plan, content_rows, draw_plan, mixing_limits
from mvc.randomness import generator
from tests.mvc.mixing_reference import mix_one
from tests.mvc.text_models import clip_tokenizer, text_encoder


def embeddings_of(captions: int, rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn((captions, rows, columns), generator=generator(seed, "test embeddings"))


def equal_plans(first: MixingPlan, second: MixingPlan) -> bool:
    pairs = [(first.base, second.base), (first.coarse, second.coarse), (first.fine, second.fine)]
    return all(np.array_equal(one, other) for one, other in pairs)


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    captions=st.integers(1, 6),
    rows=st.integers(2, 12),
    columns=st.integers(2, 9),
    coarse=st.integers(0, 5),
    fine=st.integers(0, 9),
    images=st.integers(0, 12),
)
def test_batch_equals_the_row_by_row_reference_to_the_bit(
    seed: int, captions: int, rows: int, columns: int, coarse: int, fine: int, images: int
) -> None:
    embeddings = embeddings_of(captions, rows, columns, seed)
    plan = draw_plan(seed, "cat", range(images), captions, rows, columns, coarse, fine)
    mixed = apply_plan(plan, embeddings)
    assert mixed.shape == (images, rows, columns)
    for image in range(images):
        assert torch.equal(mixed[image], mix_one(plan.row(image), embeddings))


def test_ranges_are_one_based_and_inclusive() -> None:
    embeddings = embeddings_of(3, 5, 4)
    whole = MixingPlan.from_rows([{"base": 0, "coarse": [[1, 1, 5]], "fine": []}])
    assert torch.equal(apply_plan(whole, embeddings)[0], embeddings[1])
    rows = [{"base": 0, "coarse": [[1, 2, 4]], "fine": [[2, 4, 1, 4], [0, 5, 2, 3]]}]
    mixed = apply_plan(MixingPlan.from_rows(rows), embeddings)[0]
    expected = torch.stack([embeddings[0, 0], embeddings[1, 1], embeddings[1, 2], embeddings[2, 3], embeddings[0, 4]])
    assert torch.equal(mixed, expected)
    two = MixingPlan.from_rows([{"base": 0, "coarse": [], "fine": [[1, 3, 2, 3]]}])
    expected = embeddings[0].clone()
    expected[2, 1:3] = embeddings[1, 2, 1:3]
    assert torch.equal(apply_plan(two, embeddings)[0], expected)


def test_a_later_replacement_overwrites_an_earlier_one() -> None:
    embeddings = embeddings_of(3, 4, 4)
    rows = [{"base": 0, "coarse": [[1, 1, 4], [2, 1, 2]], "fine": [[0, 1, 1, 4], [1, 1, 1, 2]]}]
    mixed = apply_plan(MixingPlan.from_rows(rows), embeddings)[0]
    assert torch.equal(mixed[0], torch.cat([embeddings[1, 0, :2], embeddings[0, 0, 2:]]))
    assert torch.equal(mixed[1], embeddings[2, 1])
    assert torch.equal(mixed[2:], embeddings[1, 2:])


def test_draws_stay_in_their_ranges_and_reach_both_ends() -> None:
    plan = draw_plan(3, "dog", range(4000), captions=5, rows=6, columns=7, coarse=2, fine=3)
    assert set(plan.base) == set(range(5))
    for partner in (plan.coarse[:, :, 0], plan.fine[:, :, 0]):
        assert set(partner.ravel()) == set(range(5))
        assert (partner != plan.base[:, None]).all()
    assert set(plan.fine[:, :, 1].ravel()) == set(range(1, 7))
    for first, last, size in (
        (plan.coarse[:, :, 1], plan.coarse[:, :, 2], 6),
        (plan.fine[:, :, 2], plan.fine[:, :, 3], 7),
    ):
        assert (first < last).all() and first.min() == 1 and last.max() == size


def chi_square(counts: np.ndarray) -> float:
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_are_uniform() -> None:
    """Chi-square of each draw within six standard deviations of its mean (degrees of freedom f: f + 6 sqrt(2 f))."""
    plan = draw_plan(11, "dog", range(60_000), captions=4, rows=9, columns=12, coarse=2, fine=1)
    pairs = {"rows": (plan.coarse[:, :, 1:].reshape(-1, 2), 9), "columns": (plan.fine[:, :, 2:].reshape(-1, 2), 12)}
    tables = []
    for drawn, size in pairs.values():
        table = np.zeros((size, size))
        np.add.at(table, (drawn[:, 0] - 1, drawn[:, 1] - 1), 1)
        tables.append(table[np.triu_indices(size, 1)])
    partners = np.zeros((4, 4))
    np.add.at(partners, (plan.base, plan.coarse[:, 0, 0]), 1)
    tables.append(partners[~np.eye(4, dtype=bool)])
    tables.append(np.bincount(plan.fine[:, 0, 1] - 1, minlength=9).astype(float))
    for counts in tables:
        freedom = counts.size - 1
        assert chi_square(counts) < freedom + 6 * (2 * freedom) ** 0.5


def test_pairs_are_exact_at_the_widths_of_real_text_encoders() -> None:
    size = 2048
    numbers = np.arange(size * (size - 1) // 2)
    first, last = _ordered_pairs(numbers.astype(np.uint64), size)
    assert (first >= 1).all() and (first < last).all() and (last <= size).all()
    assert np.array_equal((last - 1) * (last - 2) // 2 + first - 1, numbers)


def test_a_row_depends_on_seed_class_and_index_alone() -> None:
    sizes = {"captions": 7, "rows": 77, "columns": 16, "coarse": 2, "fine": 8}
    whole = draw_plan(5, "zero", range(20_000), **sizes)
    chosen = [19_999, 3, 4, 5, 0, 12_345, 3]
    part = draw_plan(5, "zero", chosen, **sizes)
    assert [part.row(number) for number in range(7)] == [whole.row(number) for number in chosen]
    middle = draw_plan(5, "zero", range(100, 200), **sizes)
    assert equal_plans(middle, MixingPlan.from_rows([whole.row(number) for number in range(100, 200)]))
    first = draw_plan(5, "zero", range(50), **sizes)
    for other in (draw_plan(6, "zero", range(50), **sizes), draw_plan(5, "one", range(50), **sizes)):
        assert (first.coarse == other.coarse).mean() < 0.2
    assert (first.coarse == draw_plan(5, "zero", range(50, 100), **sizes).coarse).mean() < 0.2


def test_a_recorded_plan_is_pinned() -> None:
    """The draws are part of every run's provenance: a change here changes what old records mean."""
    plan = draw_plan(0, "zero", [0, 7], captions=5, rows=77, columns=64, coarse=1, fine=1)
    assert [plan.row(0), plan.row(1)] == PINNED


PINNED = [
    {"base": 4, "coarse": [[1, 19, 53]], "fine": [[2, 34, 23, 61]]},
    {"base": 0, "coarse": [[2, 18, 23]], "fine": [[1, 64, 47, 58]]},
]


def test_rows_round_trip_through_plain_integers() -> None:
    for coarse, fine in ((2, 3), (0, 3), (2, 0), (0, 0)):
        plan = draw_plan(1, "cat", range(5), 4, 9, 9, coarse, fine)
        rows = [plan.row(number) for number in range(5)]
        assert all(type(row["base"]) is int for row in rows)
        assert equal_plans(MixingPlan.from_rows(rows), plan)


def test_one_caption_stays_unmixed() -> None:
    embeddings = embeddings_of(1, 6, 5)
    plan = draw_plan(1, "cat", range(20), 1, 6, 5, 2, 4)
    assert torch.equal(apply_plan(plan, embeddings), embeddings.expand(20, 6, 5))


@pytest.mark.parametrize(("captions", "rows", "columns"), [(0, 5, 5), (3, 1, 5), (3, 5, 1)])
def test_impossible_sizes_are_refused(captions: int, rows: int, columns: int) -> None:
    with pytest.raises(ValueError, match="no caption|too few"):
        draw_plan(0, "cat", [0], captions, rows, columns, 1, 1)
    with pytest.raises(ValueError, match="negative"):
        draw_plan(0, "cat", [-1], 3, 5, 5, 1, 1)


def test_class_words_survive_any_mixing_on_a_causal_text_tower() -> None:
    """Captions with a common prefix have identical rows there, so the prefix rows never change."""
    prefix = "this is an image of zero."
    tails = ["a red cat", "small and blue", "bright dog, left", "dark", "a big one, right and red"]
    tokenizer = clip_tokenizer()
    ids = tokenizer([f"{prefix} {tail}." for tail in tails], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        embeddings = text_encoder()(ids)[0]
    common = len(tokenizer(prefix).input_ids) - 1
    assert torch.equal(ids[:, :common], ids[:1, :common].expand(5, -1))
    plan = draw_plan(2, "zero", range(64), 5, 77, embeddings.shape[2], 4, 32)
    mixed = apply_plan(plan, embeddings)
    torch.testing.assert_close(mixed[:, :common], embeddings[:1, :common].expand(64, -1, -1), rtol=0, atol=1e-6)
    changed = (mixed != embeddings[torch.from_numpy(plan.base)]).flatten(1).any(1)
    assert changed.float().mean() > 0.9


def test_content_rows_bound_every_draw() -> None:
    ends = torch.tensor([4, 9, 6])
    rows = content_rows(ends)
    assert rows == 10
    embeddings = embeddings_of(3, 77, 8)
    plan = draw_plan(0, "cat", range(500), 3, rows, 8, 2, 4)
    assert plan.coarse[:, :, 2].max() == 10 and plan.fine[:, :, 1].max() == 10
    mixed = apply_plan(plan, embeddings)
    assert torch.equal(mixed[:, 10:], embeddings[torch.from_numpy(plan.base), 10:])


def test_classes_where_mixing_changes_nothing_are_named() -> None:
    captions = {"a": ["x"], "b": ["x", "x", "x"], "c": ["x", "y"], "d": ["x", "x", "y"]}
    assert mixing_limits(captions) == (["a"], ["b"])
