"""Slots, shares, epochs and phases of the strategies, counted by hand or held to the streams of earlier versions."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from math import factorial
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from mvc.arms import NEEDS_SYNTHETIC, STRATEGIES
from mvc.classify.strategies import Mix, Pool, Slots, phase_steps, seen, shuffled, slots

SCOPES = ("slot", "class", "global")
FROZEN = {
    "real": ([[0, 2, 1, 2], [1, 0, 2, 1], [0, 0, 1, 2], [1, 2, 0, 0]], "4e37e4fa0bad7552"),
    "duplicate": ([[1, 0, 1, 2], [0, 2, 2, 0], [2, 0, 2, 0], [1, 2, 0, 1]], "6278e75153e2d127"),
    "combined": ([[6, 2, 0, 1], [5, 7, 3, 4], [5, 1, 2, 3], [7, 4, 0, 6]], "639286b90d1c18aa"),
    "rsp": ([[4, 5, 6, 3], [2, 0, 1, 6], [4, 5, 7, 0], [2, 6, 4, 5]], "b5a2d072d9de8057"),
    "two_phase": ([[5, 7, 3, 1], [4, 2, 6, 0], [2, 0, 1, 1], [0, 2, 2, 1]], "88d66ce2104d0f3b"),
}
"""Seed 5, 3 real and 5 synthetic images, batches of 4; and a digest of longer streams."""


def mix_of(
    strategy: str, steps: int = 30, size: int = 16, real: int = 50, synthetic: int = 223, **settings: Any
) -> Mix:
    """Ten classes, image i of a kind being of class i modulo 10."""
    return Mix(strategy, steps, size, np.arange(real) % 10, np.arange(synthetic) % 10, **settings)


def all_slots(mix: Mix, seed: int = 0) -> list[Slots]:
    return [slots(mix, seed, step) for step in range(mix.steps)]


def images(mix: Mix, seed: int = 0) -> npt.NDArray[np.int64]:
    return np.concatenate([one.indices for one in all_slots(mix, seed)])


def within_four_sigma(count: int, draws: int, probability: float) -> bool:
    return bool(abs(count - probability * draws) <= 4 * np.sqrt(draws * probability * (1 - probability)))


def check_epochs(epochs: npt.NDArray[np.int64], members: npt.NDArray[np.int64]) -> None:
    """Each row is a permutation of the members, and rows repeat no more than there are permutations."""
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(members, (len(epochs), 1)))
    different = len({tuple(epoch) for epoch in epochs.tolist()})
    assert different > 0.9 * min(len(epochs), factorial(len(members)))


# Streams


@pytest.mark.parametrize("strategy", FROZEN)
def test_streams_of_earlier_versions_stay_as_they_were(strategy: str) -> None:
    batches, digest = FROZEN[strategy]
    mix = mix_of(strategy, 4, 4, 3, 5, rsp_probability=0.5, phase_two_share=0.5)
    assert [one.indices.tolist() for one in all_slots(mix, 5)] == batches
    made = hashlib.sha256()
    for seed in range(3):
        for real, synthetic in ((50, 223), (7, 3), (1200, 3000)):
            made.update(images(mix_of(strategy, 60, 16, real, synthetic), seed).astype("<i8").tobytes())
    assert made.hexdigest()[:16] == digest


def test_stream_is_a_permutation_in_every_epoch_whatever_the_batch_size() -> None:
    small = np.concatenate([shuffled(3, "x", 10, step, 4) for step in range(750)])
    large = np.concatenate([shuffled(3, "x", 10, step, 30) for step in range(100)])
    assert np.array_equal(small, large)
    check_epochs(small.reshape(300, 10), np.arange(10))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_arm_fills_every_batch_of_every_step(strategy: str, balanced: bool) -> None:
    drawn = all_slots(mix_of(strategy, balanced=balanced))
    assert len(drawn) == 30
    for one in drawn:
        assert one.indices.shape == one.weights.shape == (16,)
        assert (one.indices.dtype, one.weights.dtype) == (np.int64, np.float32)
        assert one.indices.min() >= 0 and one.indices.max() < 273
        assert one.weights.mean() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize(
    "strategy, settings",
    [(name, {}) for name in STRATEGIES]
    + [("rsp", {"rsp_scope": scope, "rsp_mode": mode}) for scope in SCOPES for mode in ("replace", "append")],
)
def test_batches_depend_on_mix_seed_and_step_alone(strategy: str, settings: dict[str, Any], balanced: bool) -> None:
    mix, other = (mix_of(strategy, balanced=balanced, **settings) for _ in range(2))
    forwards = all_slots(mix)
    other_seed = all_slots(mix, 1)
    backwards = [slots(other, 0, step) for step in reversed(range(30))][::-1]
    for first, second in zip(forwards, backwards, strict=True):
        assert np.array_equal(first.indices, second.indices) and np.array_equal(first.weights, second.weights)
    assert any(not np.array_equal(a.indices, b.indices) for a, b in zip(forwards, other_seed, strict=True))


def test_a_batch_may_be_written_to() -> None:
    mix = mix_of("real")
    before = slots(mix, 0, 3).indices.copy()
    slots(mix, 0, 3).indices[:] = -1
    assert np.array_equal(slots(mix, 0, 3).indices, before)


# Strategies of one phase


def test_real_and_duplicate_show_no_synthetic_image_and_synthetic_only_no_real_one() -> None:
    assert images(mix_of("real")).max() < 50 and images(mix_of("duplicate")).max() < 50
    alone = images(mix_of("synthetic_only", steps=223))
    # 3568 slots are 16 epochs of 223 images.
    assert np.array_equal(np.bincount(alone, minlength=273), [0] * 50 + [16] * 223)


def test_synthetic_only_needs_no_real_image() -> None:
    drawn = images(Mix("synthetic_only", 3, 5, np.array([]), np.array([0, 1, 0, 1, 1])))
    assert sorted(drawn) == sorted(3 * [0, 1, 2, 3, 4])


def test_duplicate_pool_repeats_each_real_image_floor_or_ceil_times() -> None:
    # One epoch of the pool is 273 slots: 39 steps of 7.
    counts = np.bincount(images(mix_of("duplicate", 39, 7)), minlength=50)
    assert counts.sum() == 273 and set(counts) == {5, 6} and (counts == 6).sum() == 23


def test_duplicate_sees_as_many_images_as_combined() -> None:
    duplicate, combined = mix_of("duplicate", 39, 7), mix_of("combined", 39, 7)
    assert seen(duplicate, 0) == (273, 0) and seen(combined, 0) == (50, 223)
    # The labels of synthetic images play no part in it.
    unlabelled = Mix("duplicate", 39, 7, duplicate.real_labels, np.zeros(223, np.int64))
    assert np.array_equal(images(unlabelled), images(duplicate))


def test_duplicate_spreads_the_remainder_over_the_classes_by_seed() -> None:
    def more_often(seed: int) -> set[int]:
        return set(np.flatnonzero(np.bincount(images(mix_of("duplicate", 39, 7), seed), minlength=50) == 6))

    assert more_often(0) != set(range(23)) and more_often(0) != more_often(1)


def test_combined_uses_each_image_once_an_epoch() -> None:
    assert sorted(images(mix_of("combined", 39, 7))) == list(range(273))


@pytest.mark.parametrize("size, real_half", [(16, 8), (7, 4)])
def test_weighted_halves_the_batch_and_gives_real_images_their_share_of_the_loss(size: int, real_half: int) -> None:
    mix = mix_of("weighted", 200, size, 40, 60, real_weight=0.8)
    for one in all_slots(mix):
        real = one.indices < 40
        assert real.sum() == real_half
        assert one.weights[real].sum() / size == pytest.approx(0.8, abs=1e-6)
        assert one.weights[~real].sum() / size == pytest.approx(0.2, abs=1e-6)
        assert len(set(one.weights[real])) == len(set(one.weights[~real])) == 1
    assert seen(mix, 0) == (200 * real_half, 200 * (size - real_half))


def test_weighted_goes_through_both_kinds_in_epochs_and_mixes_their_places() -> None:
    mix = mix_of("weighted", 15, 16, 40, 60)
    # 120 slots of each kind: three epochs of 40, two of 60.
    assert np.array_equal(np.bincount(images(mix)), [3] * 40 + [2] * 60)
    at_first = sum(int((one.indices[:8] < 40).sum()) for one in all_slots(mix_of("weighted", 200, 16, 40, 60)))
    assert within_four_sigma(at_first, 1600, 0.5)


# rsp


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("probability", [0.0, 0.3, 0.8, 1.0])
def test_rsp_share_of_synthetic_images(scope: str, probability: float) -> None:
    steps, size = 300, 32
    real, synthetic = seen(mix_of("rsp", steps, size, rsp_probability=probability, rsp_scope=scope), 4)
    assert real + synthetic == steps * size
    if scope == "global":
        assert synthetic % size == 0 and within_four_sigma(synthetic // size, steps, probability)
    else:
        assert within_four_sigma(synthetic, steps * size, probability)


def test_rsp_slot_uses_the_images_of_a_kind_about_equally_often() -> None:
    drawn = images(mix_of("rsp", 400, 64))
    counts = np.bincount(drawn[drawn >= 50] - 50, minlength=223)
    # About 92 times each, in epochs that are thinned at random: far narrower than draws with replacement.
    assert counts.min() > 70 and counts.max() < 115


def test_rsp_class_takes_a_synthetic_image_of_the_class_of_the_real_one() -> None:
    mix = mix_of("rsp", 100, 16, rsp_scope="class")
    stayed = 0
    for step in range(100):
        drawn, real = slots(mix, 0, step).indices, shuffled(0, "rsp real", 50, step, 16)
        made = drawn >= 50
        assert np.array_equal((drawn - 50)[made] % 10, real[made] % 10)
        assert np.array_equal(drawn[~made], real[~made])
        stayed += int((~made).sum())
    assert within_four_sigma(stayed, 1600, 0.2)


def test_rsp_class_goes_through_the_synthetic_images_of_each_class_in_epochs() -> None:
    # Two real images of each of two classes; three synthetic images of class 0 and five of class 1.
    labels = np.array([0, 1, 1, 0, 1, 0, 1, 1])
    mix = Mix("rsp", 1500, 4, np.array([0, 0, 1, 1]), labels, rsp_probability=1.0, rsp_scope="class")
    drawn = images(mix) - 4
    assert drawn.min() >= 0
    for label, count in ((0, 3), (1, 5)):
        epochs = drawn[labels[drawn] == label].reshape(-1, count)
        assert len(epochs) == 3000 // count
        check_epochs(epochs, np.flatnonzero(labels == label))


def test_rsp_class_keeps_the_real_images_of_a_class_without_synthetic_ones() -> None:
    real_labels = np.array([0, 1, 2, 0, 1, 2])
    mixes = {
        mode: Mix("rsp", 20, 6, real_labels, np.array([2, 0]), 1.0, rsp_scope="class", rsp_mode=mode)
        for mode in ("replace", "append")
    }
    for replaced, appended in zip(*map(all_slots, mixes.values()), strict=True):
        # 6 real images: 1 and 4 are of class 1, which has no synthetic one; 6 is of class 2 and 7 of class 0.
        assert sorted(replaced.indices) == [1, 4, 6, 6, 7, 7]
        assert sorted(appended.indices) == [0, 1, 2, 3, 4, 5, 6, 6, 7, 7]
    assert seen(mixes["replace"], 0) == (40, 80) and seen(mixes["append"], 0) == (120, 80)


def test_rsp_global_decides_for_whole_batches() -> None:
    mix = mix_of("rsp", 200, rsp_probability=0.5, rsp_scope="global")
    kinds = [set((one.indices >= 50).tolist()) for one in all_slots(mix)]
    assert all(len(kind) == 1 for kind in kinds) and {True} in kinds and {False} in kinds


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("balanced", [False, True])
def test_rsp_append_keeps_all_real_images_beside_the_synthetic_ones_of_replace(scope: str, balanced: bool) -> None:
    settings: dict[str, Any] = {"rsp_probability": 0.6, "rsp_scope": scope, "balanced": balanced}
    append, replace = (mix_of("rsp", 60, rsp_mode=mode, **settings) for mode in ("append", "replace"))
    stream = Pool(append.real_labels, balanced)
    sizes = set()
    for step in range(60):
        kept, added = slots(append, 7, step), slots(replace, 7, step).indices
        real = stream.draw(7, "rsp real", step, 16)
        assert Counter(kept.indices.tolist()) == Counter([*real.tolist(), *added[added >= 50].tolist()])
        assert kept.weights.shape == kept.indices.shape and set(kept.weights) == {1.0}
        sizes.add(len(kept.indices))
    assert sizes == {16, 32} if scope == "global" else len(sizes) > 5
    assert seen(append, 7) == (960, seen(replace, 7)[1])


def test_rsp_scopes_are_paired_by_their_real_images() -> None:
    mixes = [mix_of("rsp", rsp_scope=scope, rsp_probability=0.0) for scope in SCOPES]
    assert np.array_equal(images(mixes[0]), images(mixes[1])) and np.array_equal(images(mixes[0]), images(mixes[2]))


# two_phase


def test_two_phase_by_hand() -> None:
    # Phase 1: 24 slots, two epochs of 4 + 8 images. Phase 2: 16 slots, four epochs of the 4 real ones.
    mix = Mix("two_phase", 10, 4, np.array([0, 0, 1, 1]), np.array([0, 1] * 4), phase_two_share=0.4)
    assert phase_steps("two_phase", 10, 0.4) == (6, 4)
    drawn = all_slots(mix)
    assert [one.phase for one in drawn] == [1] * 6 + [2] * 4
    first, second = (np.concatenate([one.indices for one in part]) for part in (drawn[:6], drawn[6:]))
    assert np.array_equal(np.bincount(first), [2] * 12) and sorted(first[:12]) == list(range(12))
    assert np.array_equal(np.bincount(second), [4] * 4)
    assert all(sorted(one.indices) == [0, 1, 2, 3] for one in drawn[6:])
    assert seen(mix, 0) == (24, 16)


def test_phase_two_has_a_step_and_leaves_one_for_phase_one() -> None:
    assert phase_steps("two_phase", 10, 0.01) == (9, 1)
    assert phase_steps("two_phase", 10, 0.99) == (1, 9)
    assert phase_steps("combined", 10, 0.99) == (10,)
    assert all(sum(phase_steps("two_phase", steps, 0.3)) == steps for steps in range(1, 50))


# Equal shares of the classes


def test_balanced_stream_has_each_class_once_a_round_and_its_images_in_epochs() -> None:
    labels = np.array([4] * 7 + [0] * 2 + [9] * 20)
    pool = Pool(labels, balanced=True)
    drawn = np.concatenate([pool.draw(3, "x", step, 10) for step in range(840)])
    rounds = labels[drawn].reshape(-1, 3)
    assert np.array_equal(np.sort(rounds, axis=1), np.tile([0, 4, 9], (2800, 1)))
    # All six orders of three classes, about equally often.
    orders = Counter(map(tuple, rounds.tolist()))
    assert len(orders) == 6 and all(within_four_sigma(count, 2800, 1 / 6) for count in orders.values())
    for label, count in ((4, 7), (0, 2), (9, 20)):
        check_epochs(drawn[labels[drawn] == label].reshape(-1, count), np.flatnonzero(labels == label))
    again = np.concatenate([pool.draw(3, "x", step, 7) for step in range(1200)])
    assert np.array_equal(drawn, again)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_balanced_arms_show_each_class_equally_often(strategy: str) -> None:
    # Whole batches of three classes; the classes hold 20, 5, 2 real and 3, 30, 9 synthetic images.
    real, synthetic = np.repeat([0, 1, 2], [20, 5, 2]), np.repeat([0, 1, 2], [3, 30, 9])
    labels = np.concatenate([real, synthetic])
    shown = {
        balanced: np.bincount(labels[images(Mix(strategy, 300, 12, real, synthetic, balanced=balanced))], minlength=3)
        for balanced in (True, False)
    }
    if strategy == "rsp":
        # Which slots are synthetic is by chance, so is which class has one more.
        assert all(within_four_sigma(count, 3600, 1 / 3) for count in shown[True])
    else:
        assert shown[True].tolist() == [1200, 1200, 1200]
    assert np.ptp(shown[False]) > 600


@pytest.mark.parametrize("mode", ["replace", "append"])
def test_balanced_rsp_of_scope_class_has_exactly_equal_shares(mode: str) -> None:
    real, synthetic = np.repeat([0, 1, 2], [20, 5, 2]), np.repeat([0, 1, 2], [3, 30, 9])
    mix = Mix("rsp", 300, 12, real, synthetic, rsp_scope="class", rsp_mode=mode, balanced=True)
    labels = np.concatenate([real, synthetic])
    for one in all_slots(mix):
        kept = one.indices if mode == "replace" else one.indices[one.indices < 27]
        assert np.bincount(labels[kept]).tolist() == [4, 4, 4]


# Cost, and what is refused


@pytest.mark.parametrize(
    "strategy, settings",
    [("two_phase", {}), ("duplicate", {"balanced": True}), ("rsp", {"rsp_scope": "class", "rsp_mode": "append"})],
)
def test_a_step_costs_less_than_a_millisecond(strategy: str, settings: dict[str, Any]) -> None:
    mix, spent = mix_of(strategy, 200, 128, 2000, 8000, **settings), []
    for step in range(200):
        before = time.perf_counter()
        slots(mix, 0, step)
        spent.append(time.perf_counter() - before)
    assert median(spent) < 1e-3


def test_a_mix_can_be_the_key_of_a_cache() -> None:
    one, same = mix_of("real"), mix_of("real")
    assert one == one and one != same and len({one: 1, same: 2}) == 2


@pytest.mark.parametrize("strategy", NEEDS_SYNTHETIC)
def test_missing_synthetic_images_are_refused(strategy: str) -> None:
    with pytest.raises(ValueError, match=f"{strategy} needs synthetic images"):
        mix_of(strategy, synthetic=0)


@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "synthetic_only"])
def test_missing_real_images_are_refused(strategy: str) -> None:
    with pytest.raises(ValueError, match=f"{strategy} needs real images"):
        mix_of(strategy, real=0)


@pytest.mark.parametrize(
    "settings, text",
    [
        ({"strategy": "magic"}, "unknown strategy 'magic'; one of real, duplicate"),
        ({"strategy": "rsp", "rsp_scope": "image"}, "unknown rsp_scope 'image'; one of slot, class, global"),
        ({"strategy": "rsp", "rsp_mode": "add"}, "unknown rsp_mode 'add'; one of replace, append"),
        ({"strategy": "weighted", "size": 1}, "a batch of a real and a synthetic image, not of 1"),
    ],
)
def test_settings_that_make_no_batch_are_refused(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        mix_of(**settings)
