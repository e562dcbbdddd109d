"""Statistics against scipy and hand numbers."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from mvc.arms import parse_arm
from mvc.classify.outcomes import aligned, independent, references, unit_weights
from mvc.classify.statistics import (
    binomial_standard_error,
    compare,
    detectable_difference,
    hedges_g,
    holm,
    standard_deviation,
    summarise,
)

from .made_up_outcomes import outcome

SIX = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
"""Three data seeds of two model seeds each."""
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


def test_several_data_seeds_are_the_samples_and_one_leaves_the_model_seeds() -> None:
    assert independent([0.1, 0.3, 0.5, 0.5, 0.2, 0.6], SIX) == pytest.approx([0.2, 0.5, 0.4])
    assert independent([0.1, 0.3], [(7, 0), (7, 1)]) == [0.1, 0.3]
    assert unit_weights([(0, 0), (0, 1), (1, 0)]) == pytest.approx([0.25, 0.25, 0.5])


def test_a_test_over_data_seeds_is_that_of_their_means() -> None:
    arms = [outcome("real", [0.5, 0.54, 0.6, 0.62, 0.7, 0.71], units=SIX)]
    arms.append(outcome("rsp", [0.55, 0.57, 0.63, 0.69, 0.7, 0.75], units=SIX))
    found = summarise(arms, "default")[1]
    assert found.samples == pytest.approx([0.56, 0.66, 0.725]) and len(found.values) == 6
    assert found.comparison is not None
    expected = stats.ttest_rel([0.56, 0.66, 0.725], [0.52, 0.61, 0.705]).pvalue
    assert found.comparison.corrected == pytest.approx(expected)
    assert found.comparison.difference == pytest.approx((0.04 + 0.05 + 0.02) / 3)


def test_units_are_paired_whatever_their_order() -> None:
    real, other = outcome("real", [0.5, 0.6]), outcome("rsp", [0.7, 0.9], [0.1, 0.2], units=[(0, 1), (0, 0)])
    turned = aligned([real, other])[1]
    assert turned.units == real.units and turned.validation == [0.2, 0.1]
    assert [row["accuracy"] for row in turned.test] == [0.9, 0.7] and turned.correct[0].mean() == 0.9
    with pytest.raises(ValueError, match=r"arm rsp has the units \[\(0, 0\)\], and others have"):
        aligned([real, outcome("rsp", [0.7])])


def test_each_arm_is_compared_with_real_of_its_augmentation() -> None:
    names = ["real", "rsp", "rsp+randaugment", "real+randaugment", "two_phase@finetuned:2+mixup", "rsp+default"]
    arms = [parse_arm(name) for name in names]
    assert references(arms, "default") == [None, 0, 3, 0, 0, 0]
    # Under another default the arm that names none is the one of that augmentation.
    assert references(arms, "randaugment") == [None, 0, 0, 0, 0, 0]
    assert references([parse_arm("rsp"), parse_arm("real+mixup")], "default") == [1, None]


def test_summaries_keep_the_order_and_correct_over_all_compared_arms() -> None:
    arms = [outcome("real", REAL), outcome("rsp", ARM, [0.6] * 5), outcome("combined", REAL, [0.7] * 5)]
    rows = summarise([*arms, outcome("real+mixup", ARM)], "default")
    assert [row.name for row in rows] == ["real", "rsp", "combined", "real+mixup"]
    assert rows[0].comparison is None and rows[0].mean == pytest.approx(0.81)
    rsp, combined = rows[1].comparison, rows[2].comparison
    assert rsp is not None and combined is not None and rsp.p_value is not None
    assert rsp.corrected == pytest.approx(3 * rsp.p_value) and combined.corrected == 1.0
    assert rows[2].validation_mean == pytest.approx(0.7) and rows[3].augmentation == "mixup"
    assert rsp.low is not None and rsp.high is not None and rsp.low < rsp.difference < rsp.high
    assert (rows[1].balanced_accuracy, rows[1].macro_f1, rows[1].auroc) == (0.5, 0.25, None)
    assert rows[1].calibration_error == pytest.approx(0.05) and rows[1].ratio == 4.0


def test_summaries_of_one_seed() -> None:
    rows = summarise([outcome("real", [0.8]), outcome("rsp", [0.9], ratio=math.inf)], "default")
    assert rows[1].comparison is not None and rows[1].comparison.corrected is None
    assert rows[1].comparison.low is None and rows[1].ratio is None
    assert rows[1].standard_deviation is None and rows[1].validation_mean is None
