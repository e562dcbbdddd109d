"""Slots, counts and phases of the strategies."""

from __future__ import annotations

import numpy as np
import pytest

from mvc.classify.strategies import NEEDS_SYNTHETIC, batch, phase_steps, shuffled

STRATEGIES = ("real", *NEEDS_SYNTHETIC)


def slots(strategy: str, seed: int = 0, steps: int = 30, size: int = 16, real: int = 50, synthetic: int = 223):
    return [batch(strategy, seed, step, steps, size, real, synthetic) for step in range(steps)]


def test_stream_is_a_permutation_in_every_epoch_whatever_the_batch_size() -> None:
    small = np.concatenate([shuffled(3, "x", 10, step, 4) for step in range(15)])
    large = np.concatenate([shuffled(3, "x", 10, step, 30) for step in range(2)])
    assert np.array_equal(small, large)
    for epoch in range(6):
        assert sorted(small[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert not np.array_equal(small[:10], small[10:20])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_arm_fills_every_batch_of_every_step(strategy: str) -> None:
    drawn = slots(strategy)
    assert len(drawn) == 30
    assert sum(phase_steps(strategy, 30, 0.3)) == 30
    for one in drawn:
        assert one.indices.shape == (16,) and one.indices.dtype == np.int64
        assert one.indices.min() >= 0 and one.indices.max() < 273


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_batches_depend_on_seed_and_step_alone(strategy: str) -> None:
    forwards, again = slots(strategy), slots(strategy)
    backwards = [batch(strategy, 0, step, 30, 16, 50, 223) for step in reversed(range(30))][::-1]
    for first, second, third in zip(forwards, again, backwards, strict=True):
        assert np.array_equal(first.indices, second.indices) and np.array_equal(first.indices, third.indices)
    assert any(not np.array_equal(a.indices, b.indices) for a, b in zip(forwards, slots(strategy, 1), strict=True))


def test_real_and_duplicate_show_no_synthetic_image() -> None:
    for strategy in ("real", "duplicate"):
        assert max(one.indices.max() for one in slots(strategy)) < 50


def test_duplicate_pool_repeats_each_real_image_floor_or_ceil_times() -> None:
    # One epoch of the pool is 273 slots: 39 steps of 7.
    pool = np.concatenate([one.indices for one in slots("duplicate", steps=39, size=7)])
    counts = np.bincount(pool, minlength=50)
    assert counts.sum() == 273 and set(counts) == {5, 6} and (counts == 6).sum() == 23


def test_duplicate_spreads_the_remainder_over_the_classes_by_seed() -> None:
    def more_often(seed: int) -> set[int]:
        pool = np.concatenate([one.indices for one in slots("duplicate", seed, steps=39, size=7)])
        return set(np.flatnonzero(np.bincount(pool, minlength=50) == 6))

    assert more_often(0) != set(range(23)) and more_often(0) != more_often(1)


def test_combined_uses_each_image_once_an_epoch() -> None:
    pool = np.concatenate([one.indices for one in slots("combined", steps=39, size=7)])
    assert sorted(pool) == list(range(273))


@pytest.mark.parametrize("probability", [0.0, 0.3, 0.8, 1.0])
def test_rsp_share_of_synthetic_slots(probability: float) -> None:
    steps, size = 200, 64
    drawn = [batch("rsp", 4, step, steps, size, 50, 223, rsp_probability=probability).indices for step in range(steps)]
    share = (np.concatenate(drawn) >= 50).mean()
    four_sigma = 4 * np.sqrt(probability * (1 - probability) / (steps * size))
    assert abs(share - probability) <= four_sigma


def test_rsp_uses_the_images_of_a_kind_about_equally_often() -> None:
    drawn = np.concatenate([one.indices for one in slots("rsp", steps=400, size=64)])
    counts = np.bincount(drawn[drawn >= 50] - 50, minlength=223)
    # About 92 times each, in epochs that are thinned at random: far narrower than draws with replacement.
    assert counts.min() > 70 and counts.max() < 115


def test_two_phase_ends_on_real_images_only() -> None:
    drawn = slots("two_phase", steps=40)
    first, second = phase_steps("two_phase", 40, 0.3)
    assert (first, second) == (28, 12)
    assert [one.phase for one in drawn] == [1] * 28 + [2] * 12
    assert max(one.indices.max() for one in drawn[first:]) < 50
    assert max(one.indices.max() for one in drawn[:first]) >= 50


def test_phase_two_has_a_step_and_leaves_one_for_phase_one() -> None:
    assert phase_steps("two_phase", 10, 0.01) == (9, 1)
    assert phase_steps("two_phase", 10, 0.99) == (1, 9)
    assert phase_steps("combined", 10, 0.99) == (10,)


@pytest.mark.parametrize("strategy", NEEDS_SYNTHETIC)
def test_missing_synthetic_images_are_refused(strategy: str) -> None:
    with pytest.raises(ValueError, match=f"{strategy} with 5 real and 0 synthetic"):
        batch(strategy, 0, 0, 10, 4, 5, 0)


def test_unknown_strategy_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown strategy 'magic'"):
        batch("magic", 0, 0, 10, 4, 5, 5)
