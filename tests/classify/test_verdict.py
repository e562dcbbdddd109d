"""Sentences and warnings for made-up results."""

from __future__ import annotations

from mvc.classify.statistics import summarise
from mvc.classify.verdict import Verdict, judge, p_text, points

REAL = [0.80, 0.82, 0.81, 0.79, 0.83]
BETTER = [0.84, 0.85, 0.86, 0.82, 0.84]
SAME = [0.81, 0.81, 0.80, 0.80, 0.83]
FIVE = {"real": REAL, "duplicate": SAME, "two_phase": BETTER, "rsp": SAME}


def verdict(test: dict[str, list[float]], validation=None, images: int = 400, test_images: int = 900) -> Verdict:
    if validation is None and images:
        validation = test
    return judge(summarise(test, validation), images, test_images)


GAINS = [0.05, -0.02, 0.04, -0.01, 0.0]


def test_a_clear_gain() -> None:
    found = verdict({"real": REAL, "two_phase": BETTER})
    assert found.sentence == "two_phase beats real by 3.2 +- 1.5 points over 5 seeds, p = 0.0085"
    assert found.helped and found.best_arm == "two_phase" and found.seeds == 5
    assert found.warnings == []


def test_holm_correction_counts() -> None:
    # p = 0.0085 uncorrected; times three arms it is 0.025.
    assert "p = 0.025" in verdict(FIVE).sentence


def test_no_gain() -> None:
    found = verdict({"real": REAL, "rsp": SAME})
    assert not found.helped
    assert found.sentence == (
        "synthetic images did not help here: best arm rsp differs from real by +0.0 +- 1.0 points over 5 seeds, p = 1"
    )


def test_a_gain_that_chance_could_explain_is_not_called_a_failure() -> None:
    found = verdict({"real": REAL, "rsp": [value + gain for value, gain in zip(REAL, GAINS, strict=True)]})
    assert not found.helped
    assert found.sentence.startswith(
        "synthetic images were not shown to help here: best arm rsp differs from real by +1"
    )


def test_a_clear_loss_is_no_help() -> None:
    found = verdict({"real": BETTER, "two_phase": REAL})
    assert not found.helped and "differs from real by -3.2 +- 1.5 points" in found.sentence


def test_the_arm_is_chosen_on_validation_not_on_test() -> None:
    validation = {"real": [0.9] * 5, "duplicate": [0.9] * 5, "two_phase": [0.7] * 5, "rsp": [0.8] * 5}
    found = verdict(FIVE, validation)
    assert found.best_arm == "rsp" and not found.helped


def test_the_control_is_never_recommended() -> None:
    found = verdict({"real": REAL, "duplicate@finetuned": BETTER, "rsp": REAL})
    assert found.best_arm == "rsp"


def test_warning_that_duplicate_explains_the_gain() -> None:
    copies = [value - 0.001 for value in reversed(BETTER)]
    found = verdict({"real": REAL, "duplicate": copies, "two_phase": BETTER})
    assert found.helped
    assert len(found.warnings) == 1
    assert found.warnings[0].startswith(
        "duplicate is as good within noise (two_phase differs from it by +0.1 points): repeating real images may"
    )


def test_no_duplicate_warning_without_a_gain_or_with_a_proven_lead() -> None:
    assert verdict({"real": BETTER, "duplicate": BETTER, "rsp": REAL}).warnings == []
    assert verdict({"real": REAL, "duplicate": REAL, "rsp": BETTER}).warnings == []


def test_warning_about_few_validation_images() -> None:
    found = verdict({"real": REAL, "rsp": BETTER}, images=99)
    assert found.warnings == ["only 99 validation images: the choice of weights and of the arm is noisy"]


def test_warning_about_no_validation_images() -> None:
    found = verdict(FIVE, images=0)
    assert found.best_arm == "two_phase"
    assert "no validation images: the last weights were used, and the arm was chosen by test accuracy" in found.warnings


def test_warning_about_few_seeds_states_what_they_can_tell() -> None:
    # Differences 4, 3, 5 points: standard deviation 1; t(0.975, 2) / sqrt(3) = 4.30265 / 1.73205 = 2.48.
    found = verdict({"real": REAL[:3], "rsp": BETTER[:3]})
    assert found.warnings == ["3 seeds: differences under about 2.5 points cannot be told apart"]


def test_one_seed_has_no_p_value() -> None:
    found = verdict({"real": [0.8], "rsp": [0.85]})
    assert found.sentence == (
        "one seed cannot tell whether synthetic images help: best arm rsp differs from real by +5.0 points"
    )
    assert found.p_value is None and found.standard_deviation is None and not found.helped
    assert found.warnings == ["1 seed: no difference can be told from chance"]


def test_nothing_to_recommend_without_an_arm_with_synthetic_images() -> None:
    found = verdict({"real": REAL, "duplicate": SAME})
    assert found.best_arm is None and found.difference is None and not found.helped
    assert found.sentence == "no arm uses synthetic images, so whether they help was not measured"


def test_size_of_the_test_set_is_stated() -> None:
    found = verdict({"real": [0.9] * 5, "rsp": [0.9] * 5}, test_images=900)
    assert found.test_set == "900 test images: an accuracy has a standard error of 1.0 points"


def test_numbers_in_words() -> None:
    assert points(-0.0001, signed=True) == "+0.0" and points(0.0312) == "3.1" and points(-0.031, signed=True) == "-3.1"
    assert p_text(0.0123) == "p = 0.012" and p_text(0.00005) == "p < 0.001" and p_text(1.0) == "p = 1"
