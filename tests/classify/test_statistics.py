"""Statistics against scipy and hand numbers."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from mvc.arms import parse_arm
from mvc.classify.outcomes import aligned, independent, references, unit_weights
from mvc.classify.statistics import binomial_standard_error, detectable_difference, summarise

from .made_up_outcomes import outcome

SIX = [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
"""Three data seeds of two model seeds each."""
REAL, ARM = [0.80, 0.82, 0.81, 0.79, 0.83], [0.84, 0.85, 0.86, 0.82, 0.84]


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
