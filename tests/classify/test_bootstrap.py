"""Intervals of gains: against closed forms, and how often they hold."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from mvc.arms import parse_arm
from mvc.classify.bootstrap import gain_intervals, image_gains, resampled_means, shares_test
from mvc.classify.conclude import Outcome
from mvc.randomness import numpy_generator

from .made_up_outcomes import outcome


def arm(name: str, correct: list[np.ndarray], units: list[tuple[int, int]]) -> Outcome:
    test = [{"accuracy": float(one.mean())} for one in correct]
    return Outcome(parse_arm(name), units, None, test, correct)


def drawn(rng: np.random.Generator, images: int, seeds: int, gain: float = 0.3) -> tuple[Outcome, Outcome, float]:
    """Two arms that share the difficulty of the images, with their own shifts of each seed; and the true gain."""
    hard, units, arms = rng.normal(0, 1, images), [(0, seed) for seed in range(seeds)], []
    for name, mean in (("real", 0.5), ("rsp", 0.5 + gain)):
        shifts = rng.normal(0, 0.15, (seeds, 1))
        right = mean + hard + shifts + rng.normal(0, 0.7, (seeds, images)) > 0
        arms.append(arm(name, list(right), units))
    spread = math.sqrt(1 + 0.15**2 + 0.7**2)
    return arms[1], arms[0], float(stats.norm.cdf((0.5 + gain) / spread) - stats.norm.cdf(0.5 / spread))


def test_image_gains_by_hand() -> None:
    # Three units: two model seeds of data seed 0, one of data seed 1, which counts as much as both together.
    units = [(0, 0), (0, 1), (1, 0)]
    ours = arm("rsp", [np.array([1, 1, 0], bool), np.array([1, 0, 0], bool), np.array([1, 1, 0], bool)], units)
    theirs = arm("real", [np.array([0, 0, 0], bool), np.array([1, 0, 0], bool), np.array([0, 1, 1], bool)], units)
    assert image_gains(ours, theirs) == pytest.approx([0.25 + 0.5, 0.25, -0.5])


def test_resampled_means_are_of_the_same_images_for_all_arms() -> None:
    gains = np.stack([np.arange(40.0), 2 * np.arange(40.0)])
    means = resampled_means(gains, 4000, numpy_generator(0, "test"))
    assert means[:, 1] == pytest.approx(2 * means[:, 0])
    assert means[:, 0].mean() == pytest.approx(19.5, abs=0.15)
    assert means[:, 0].std() == pytest.approx(np.arange(40.0).std() / math.sqrt(40), rel=0.05)


def test_many_images_are_drawn_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mvc.classify.bootstrap._CHUNK", 100)
    means = resampled_means(np.arange(40.0)[None], 301, numpy_generator(0, "test"))
    assert means.shape == (301, 1) and means.mean() == pytest.approx(19.5, abs=0.5)


def test_seeds_without_spread_leave_the_chance_of_the_images() -> None:
    # Right on 10 of 100 images more, whatever the seed: standard error sqrt(0.1 * 0.9 / 100) = 0.03.
    low, high = gain_intervals([(outcome("rsp", [0.8] * 3, images=100), outcome("real", [0.7] * 3, images=100))])[0]
    assert low == pytest.approx(0.1 - 1.96 * 0.03, abs=0.011) and high == pytest.approx(0.1 + 1.96 * 0.03, abs=0.011)


def test_folds_have_the_t_interval_of_their_gains() -> None:
    units = [(fold, 0) for fold in range(5)]
    gains, base = [0.04, 0.03, 0.05, 0.03, 0.01], 0.8
    pair = (outcome("rsp", [base + gain for gain in gains], units=units), outcome("real", [base] * 5, units=units))
    low, high = gain_intervals([pair], folds=True, replicates=20000)[0]
    expected = stats.t.interval(0.95, 4, np.mean(gains), stats.sem(gains))
    assert (low, high) == pytest.approx(expected, abs=1.5e-3)
    assert shares_test(pair[0], folds=False) and not shares_test(pair[0], folds=True)
    uneven = arm("rsp", [np.ones(3, bool), np.ones(4, bool)], [(0, 0), (1, 0)])
    assert not shares_test(uneven, folds=False)
    other = replace(outcome("rsp", [0.5, 0.5], units=[(0, 0), (1, 0)]), labels=[np.array([0, 1]), np.array([1, 1])])
    assert not shares_test(other, folds=False)


def test_equal_arms_gain_nothing_for_sure_and_one_seed_says_nothing() -> None:
    same = outcome("real", [0.8, 0.7, 0.75])
    assert gain_intervals([(same, same)]) == [(0.0, 0.0)]
    assert gain_intervals([(outcome("rsp", [0.9]), outcome("real", [0.8]))]) == [(None, None)]
    assert gain_intervals([]) == []


def test_draws_are_the_same_each_time_and_do_not_depend_on_other_arms() -> None:
    rng = np.random.default_rng(0)
    ours, theirs, _ = drawn(rng, 200, 3)
    alone = gain_intervals([(ours, theirs)])[0]
    assert gain_intervals([(theirs, ours), (ours, theirs)])[1] == pytest.approx(alone, abs=1e-12)


def test_pairing_stays() -> None:
    # Unpaired, images alone would give 1.96 * sqrt(2 * 0.8 * 0.2 / 1000), 3.5 points either way.
    low, high = gain_intervals([(outcome("rsp", [0.81, 0.81, 0.81]), outcome("real", [0.8, 0.8, 0.8]))])[0]
    assert low is not None and high is not None and high - low < 0.014


def test_seven_arms_of_five_seeds_and_2000_images_are_quick() -> None:
    pairs = [drawn(np.random.default_rng(seed), 2000, 5)[:2] for seed in range(7)]
    start = time.process_time()
    gain_intervals(pairs)
    assert time.process_time() - start < 1.5  # about 0.2 s where nothing else runs


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_hold_as_often_as_they_say(seeds: int) -> None:
    rng, held, repeats = np.random.default_rng(seeds), 0, 200
    for _ in range(repeats):
        ours, theirs, truth = drawn(rng, 200, seeds)
        low, high = gain_intervals([(ours, theirs)], replicates=500)[0]
        held += low is not None and high is not None and low <= truth <= high
    # 95 % of 200 repeats, with a standard error of 1.5 %.
    assert held / repeats >= 0.91
