"""Paired tests against scipy, tables and textbooks."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from mvc.paired_test import compare, hedges_g, holm, p_value_text, standard_deviation

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


def test_students_sleep_data() -> None:
    # Extra hours of sleep under two drugs, Student 1908: R's t.test(paired = TRUE) gives t = -4.0621, df = 9,
    # p = 0.002833, mean -1.58, interval -2.4598858 to -0.7001142.
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    found = compare(first, second)
    assert found.p_value == pytest.approx(0.002833, abs=5e-7) and found.difference == pytest.approx(-1.58)
    assert (found.low, found.high) == pytest.approx((-2.4598858, -0.7001142))
    # d_z = t / sqrt(10) = -1.2846; times 1 - 3 / (4 * 9 - 1) = 0.9143, which is Hedges' correction nearly.
    assert found.effect_size == pytest.approx(-1.2846 * 0.9143, abs=1e-3)


def test_effect_size_by_hand() -> None:
    # Mean 2, standard deviation 1; with m = 2 Gamma(1) / (sqrt(1) Gamma(1/2)) = 1 / sqrt(pi).
    assert hedges_g([1.0, 2.0, 3.0]) == pytest.approx(2 / math.sqrt(math.pi))
    assert hedges_g([1.0, 2.0]) is None and hedges_g([0.1, 0.1, 0.1]) is None


def test_holm_rejects_as_in_the_textbook() -> None:
    # The usual example at 5 %: 0.005 and 0.01 are rejected; 0.03 > 0.05 / 2 ends it, for 0.04 too.
    assert [p_value < 0.05 for p_value in holm([0.01, 0.04, 0.03, 0.005])] == [True, False, False, True]


def test_p_values_are_short() -> None:
    assert [p_value_text(value) for value in (0.0004, 0.0123, 0.5, 1.0)] == ["< 0.001", "0.012", "0.5", "1"]
