"""Statistics against scipy and hand numbers."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from mvc.classify.statistics import (
    binomial_standard_error,
    compare,
    detectable_difference,
    holm,
    standard_deviation,
    summarise,
)

REAL, ARM = [0.80, 0.82, 0.81, 0.79, 0.83], [0.84, 0.85, 0.86, 0.82, 0.84]


def test_comparison_by_hand() -> None:
    # Differences 4, 3, 5, 3, 1 points: mean 3.2, squares of deviations 0.64 + 0.04 + 3.24 + 0.04 + 4.84 = 8.8.
    found = compare(ARM, REAL)
    assert found.difference == pytest.approx(0.032)
    assert found.standard_deviation == pytest.approx(math.sqrt(8.8 / 4) / 100)
    # t(0.975, 4) = 2.776445 from the table.
    half = 2.776445 * math.sqrt(8.8 / 4) / 100 / math.sqrt(5)
    assert found.low == pytest.approx(0.032 - half, abs=1e-7)
    assert found.high == pytest.approx(0.032 + half, abs=1e-7)


def test_p_value_is_that_of_the_one_sample_test_of_the_differences() -> None:
    differences = [a - b for a, b in zip(ARM, REAL, strict=True)]
    assert compare(ARM, REAL).p_value == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert compare(ARM, REAL).p_value == pytest.approx(compare(REAL, ARM).p_value)


def test_equal_arms_have_p_one() -> None:
    found = compare(REAL, REAL)
    assert (found.difference, found.standard_deviation, found.p_value) == (0.0, 0.0, 1.0)


def test_equal_differences_get_the_sign_flip_p_value() -> None:
    # 0.8 + 0.1 and 0.7 + 0.1 differ by rounding; the t statistic would be about 1e15 and p about 0.
    found = compare([0.9, 0.8, 0.7], [0.8, 0.7, 0.6])
    assert found.p_value == 0.25 and found.low is None and found.difference == pytest.approx(0.1)


def test_one_seed_has_no_spread_and_no_p_value() -> None:
    found = compare([0.9], [0.8])
    assert found.difference == pytest.approx(0.1)
    assert (found.standard_deviation, found.low, found.high, found.p_value) == (None, None, None, None)


def test_holm_by_hand() -> None:
    # Sorted 0.005 0.01 0.03 0.04 times 4 3 2 1: 0.02 0.03 0.06 0.04, the last lifted to 0.06.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_is_at_most_one_and_of_one_value_nothing_changes() -> None:
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([0.04]) == [0.04]
    assert holm([]) == []


def test_standard_deviation_is_the_sample_one() -> None:
    assert standard_deviation([1.0, 2.0, 3.0, 4.0]) == pytest.approx(math.sqrt(5 / 3))
    assert standard_deviation([1.0]) is None


def test_detectable_difference_is_where_the_t_test_turns_significant() -> None:
    # Differences with a standard deviation of 1 point around the threshold have p = 0.05 exactly.
    threshold = detectable_difference([0.01], 3)
    assert threshold is not None
    differences = [threshold - 0.01, threshold, threshold + 0.01]
    assert stats.ttest_1samp(differences, 0).pvalue == pytest.approx(0.05)
    assert detectable_difference([0.03, 0.04], 3) == pytest.approx(threshold * math.sqrt(12.5))
    assert detectable_difference([0.01], 1) is None and detectable_difference([], 3) is None


def test_binomial_standard_error() -> None:
    assert binomial_standard_error(0.9, 900) == pytest.approx(0.01)


def test_summaries_keep_the_order_and_correct_over_all_compared_arms() -> None:
    rows = summarise({"real": REAL, "rsp": ARM, "combined": REAL}, {"real": [0.5], "rsp": [0.6], "combined": [0.7]})
    assert [row.arm for row in rows] == ["real", "rsp", "combined"]
    assert rows[0].comparison is None and rows[0].mean == pytest.approx(0.81)
    rsp, combined = rows[1].comparison, rows[2].comparison
    assert rsp is not None and combined is not None and rsp.p_value is not None
    assert rsp.corrected == pytest.approx(2 * rsp.p_value) and combined.corrected == 1.0
    assert rows[2].validation_mean == 0.7


def test_summaries_of_one_seed() -> None:
    rows = summarise({"real": [0.8], "rsp": [0.9]}, None)
    assert rows[1].comparison is not None and rows[1].comparison.corrected is None
    assert rows[1].standard_deviation is None and rows[1].validation_mean is None
