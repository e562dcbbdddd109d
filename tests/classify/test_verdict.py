"""Decisions, sentences and warnings for made-up results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from mvc.classify.class_changes import class_changes
from mvc.classify.conclude import Outcome, conclude
from mvc.classify.verdict import Verdict
from mvc.classify.verdict_words import listed, p_text, points

from .made_up_outcomes import CLASSES, outcome

REAL = [0.80, 0.82, 0.81, 0.79, 0.83]
BETTER = [0.84, 0.85, 0.86, 0.82, 0.84]
SAME = [0.81, 0.81, 0.80, 0.80, 0.83]
CHANCE = [0.85, 0.80, 0.85, 0.78, 0.83]
"""1 point better than REAL, by chance."""
TWO_DATA_SEEDS = [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1)]


def verdict(
    test: dict[str, list[float]],
    validation: dict[str, list[float]] | None = None,
    images: int = 400,
    *,
    units: Sequence[tuple[int, int]] | None = None,
    test_images: int = 1000,
    ece: dict[str, list[float]] | None = None,
    **more: Any,
) -> Verdict:
    """Of accuracies; validation accuracies are those of the test split where none are given."""
    chosen = validation or test

    def made(name: str) -> Outcome:
        known = chosen[name] if images else None
        errors = None if ece is None else ece.get(name)
        return outcome(name, test[name], known, units=units, images=test_images, ece=errors)

    found = conclude([made(name) for name in test], CLASSES, images, test_images, "default", **more).verdict
    # Whatever is found has to be JSON.
    assert json.loads(json.dumps(asdict(found), allow_nan=False)) == asdict(found)
    assert found.sentence.startswith(found.decision) and found.helped == (found.decision == "use")
    return found


def test_a_clear_gain() -> None:
    found = verdict({"real": REAL, "two_phase@finetuned": BETTER})
    assert found.decision == "use" and found.best_arm == "two_phase@finetuned" and found.seeds == 5
    assert found.low is not None and found.high is not None
    assert found.sentence == (
        "use synthetic images: two_phase@finetuned with 4 synthetic a real image beats real by 3.2 points "
        f"(95 % interval {points(found.low)} to {points(found.high)}, 5 seeds, p = 0.0085)"
    )
    assert (found.strategy, found.source, found.augmentation) == ("two_phase", "finetuned", "default")
    assert (found.ratio, found.reference, found.control) == (4.0, "real", None)
    assert found.difference == pytest.approx(0.032) and found.p_value == pytest.approx(0.0085, abs=1e-4)
    # d_z = 3.2 / 1.483 = 2.157, times Gamma(2) / (sqrt(2) Gamma(3/2)) = 0.7979.
    assert found.effect_size == pytest.approx(2.157 * 0.7979, abs=2e-3)
    # Both classes have more right images in all seeds.
    assert {row["class"] for row in found.gains} == {"dark", "light"} and found.losses == []
    assert found.warnings == []


def test_a_ratio_in_the_name_is_not_said_twice() -> None:
    assert "use synthetic images: rsp:2 beats real by" in verdict({"real": REAL, "rsp:2": BETTER}).sentence


def test_holm_correction_counts() -> None:
    # p = 0.0085 uncorrected; times three arms it is 0.025.
    found = verdict({"real": REAL, "duplicate": SAME, "two_phase": BETTER, "rsp": SAME})
    assert "p = 0.025" in found.sentence and found.decision == "use"


def test_a_clear_loss() -> None:
    found = verdict({"real": BETTER, "two_phase": REAL})
    assert found.sentence.startswith(
        "do not use synthetic images: even the best arm, two_phase with 4 synthetic a real image, is 3.2 points worse "
        "than real (95 % interval -"
    )
    assert "classes that lose: " in found.warnings[0] and found.difference == pytest.approx(-0.032)


def test_a_gain_that_is_not_worth_it_is_no_use() -> None:
    # All differences lie between -0.1 and +0.2 points.
    tiny = [value + gain for value, gain in zip(REAL, [0.002, 0.001, -0.001, 0.001, 0.0], strict=True)]
    found = verdict({"real": REAL, "rsp": tiny})
    assert found.decision == "do not use" and found.high is not None and found.high < 0.005
    assert "differs from real by +0.1 points" in found.sentence
    assert found.sentence.endswith("so a gain of more than 0.5 points is unlikely")


def test_half_a_point_is_no_claim_on_a_test_split_that_cannot_show_it() -> None:
    same = {"real": [0.8, 0.9, 0.8], "rsp": [0.8, 0.9, 0.8]}
    assert verdict(same, test_images=200).decision == "do not use"
    found = verdict(same, test_images=190)
    assert found.decision == "not told" and found.sentence.endswith("a difference may still be there")


def test_a_gain_that_chance_could_explain_is_not_told() -> None:
    found = verdict({"real": REAL, "rsp": CHANCE})
    assert found.decision == "not told"
    assert found.sentence.startswith("not told: rsp with 4 synthetic a real image differs from real by +1.2 points")
    assert found.sentence.endswith("chance could explain it")
    assert any(text.startswith("5 seeds: differences under about ") for text in found.warnings)


def test_a_gain_on_few_test_images_is_not_told() -> None:
    # One image of 50 in each seed: the t-test has no doubt, but other images may say otherwise.
    found = verdict({"real": [0.8, 0.82, 0.84, 0.8, 0.82], "rsp": [0.82, 0.84, 0.86, 0.82, 0.86]}, test_images=50)
    assert found.p_value is not None and found.p_value < 0.05 and found.decision == "not told"
    assert found.sentence.endswith("it holds for these test images, and may not for others")
    assert "only 50 test images: the accuracy of rsp has a standard error of 5.2 points" in found.warnings


def test_the_arm_is_chosen_on_validation_not_on_test() -> None:
    test = {"real": REAL, "two_phase": BETTER, "rsp": SAME}
    found = verdict(test, {"real": [0.9] * 5, "two_phase": [0.7] * 5, "rsp": [0.8] * 5})
    assert found.best_arm == "rsp" and found.decision == "not told"
    assert found.sentence.endswith(
        "two_phase, which the validation images did not choose, beats real by 3.2 points (p = 0.017)"
    )


def test_without_validation_images_a_fixed_order_chooses() -> None:
    found = verdict({"real": REAL, "combined": BETTER, "rsp": SAME}, images=0)
    assert found.best_arm == "rsp"
    assert (
        "no validation images: the last weights were used, and the arm is the first one of a fixed order, "
        "not the best one"
    ) in found.warnings


def test_the_control_is_never_recommended_and_its_difference_is_told() -> None:
    found = verdict({"real": REAL, "duplicate@finetuned": BETTER, "rsp": REAL})
    assert found.best_arm == "rsp" and found.control == pytest.approx(-0.032)


def test_warning_that_duplicate_explains_the_gain() -> None:
    copies = [value - 0.001 for value in reversed(BETTER)]
    found = verdict({"real": REAL, "duplicate": copies, "two_phase": BETTER})
    assert found.decision == "use" and found.control == pytest.approx(0.001)
    assert found.warnings == [
        "duplicate is as good within noise (two_phase differs from it by +0.1 points): repeating real images may "
        "explain the gain"
    ]


def test_the_control_of_the_same_augmentation_counts() -> None:
    arms = {"real": REAL, "real+mixup": REAL, "duplicate": REAL, "duplicate+mixup": BETTER, "rsp+mixup": BETTER}
    found = verdict(arms)
    assert found.reference == "real+mixup" and found.augmentation == "mixup" and found.control == 0
    assert found.warnings[0].startswith("duplicate+mixup is as good within noise")


def test_warning_that_another_augmentation_does_as_well() -> None:
    found = verdict({"real": REAL, "real+randaugment": list(reversed(BETTER)), "rsp": BETTER})
    assert found.decision == "use"
    assert found.warnings == [
        "real+randaugment is as good within noise without a synthetic image (rsp differs from it by +0.0 points): its "
        "augmentation may be all that is needed"
    ]


def test_no_control_warning_without_a_gain_or_with_a_proven_lead() -> None:
    worse = verdict({"real": BETTER, "duplicate": BETTER, "rsp": REAL}).warnings
    assert not any("as good" in text for text in worse)
    assert verdict({"real": REAL, "duplicate": REAL, "real+mixup": REAL, "rsp": BETTER}).warnings == []


def test_warning_about_few_validation_images() -> None:
    # sqrt(0.84 * 0.16 / 99), 3.7 points.
    found = verdict({"real": REAL, "rsp": BETTER}, {"real": [0.8] * 5, "rsp": [0.84] * 5}, images=99)
    assert found.warnings == [
        "only 99 validation images: the choice of weights and of the arm is noisy (an accuracy there has a standard "
        "error of 3.7 points)"
    ]


def test_warning_about_a_choice_that_is_a_toss_up() -> None:
    # sqrt(2 * 0.9 * 0.1 / 400) is 2.1 points; combined is 2 points behind, and rsp 3.
    validation = {"real": [0.95] * 5, "two_phase": [0.9] * 5, "combined": [0.88] * 5, "rsp": [0.87] * 5}
    test = {"real": REAL, "two_phase": BETTER, "combined": REAL, "rsp": REAL}
    assert verdict(test, validation).warnings == [
        "on 400 validation images accuracies within 2.1 points cannot be told apart: choosing two_phase and not "
        "combined is a toss-up"
    ]


def test_warning_about_few_seeds_states_what_they_can_tell() -> None:
    # Differences 4, 3, 5 points: standard deviation 1; t(0.975, 2) / sqrt(3) = 4.30265 / 1.73205 = 2.48.
    found = verdict({"real": REAL[:3], "rsp": BETTER[:3]})
    assert found.warnings == ["3 seeds: differences under about 2.5 points cannot be told apart"]


def test_one_seed_tells_nothing() -> None:
    found = verdict({"real": [0.8], "rsp": [0.85]})
    assert found.sentence == (
        "not told: 1 seed cannot tell whether synthetic images help; best arm rsp differs from real by +5.0 points"
    )
    assert found.p_value is None and found.standard_deviation is None and found.low is None
    assert found.warnings == ["1 seed: no difference can be told from chance"]


def test_data_seeds_are_what_counts() -> None:
    found = verdict({"real": REAL, "rsp": BETTER}, units=TWO_DATA_SEEDS)
    assert found.seeds == 2 and found.decision == "not told" and "2 data seeds, p = " in found.sentence
    # Means of 3 and of 2 model seeds: differences of 4 and 2 points.
    assert found.difference == pytest.approx(0.03)


def test_folds_are_called_folds() -> None:
    units = [(fold, 0) for fold in range(5)]
    found = verdict({"real": REAL, "rsp": BETTER}, units=units, folds=True, warnings=["a word of others"])
    assert found.decision == "use" and "5 folds, p = 0.0085" in found.sentence
    assert found.warnings == [
        "folds share most of their training images, so that their p values are somewhat too small",
        "a word of others",
    ]


def test_warning_about_worse_calibration() -> None:
    ece = {"real": [0.05, 0.06, 0.05, 0.04, 0.05], "rsp": [0.09, 0.10, 0.09, 0.09, 0.08]}
    found = verdict({"real": REAL, "rsp": BETTER}, ece=ece)
    assert found.warnings == [
        "the probabilities of rsp are calibrated worse than those of real: 9.0 against 5.0 points of error"
    ]
    ece["rsp"] = [0.06, 0.06, 0.06, 0.06, 0.06]
    assert verdict({"real": REAL, "rsp": BETTER}, ece=ece).warnings == []


def test_nothing_to_recommend_without_an_arm_with_synthetic_images() -> None:
    found = verdict({"real": REAL, "duplicate": SAME})
    assert found.decision == "not told" and found.best_arm is None and found.difference is None
    assert found.sentence == "not told: no arm uses synthetic images, so whether they help was not measured"


def test_size_of_the_test_set_is_stated() -> None:
    found = verdict({"real": [0.9] * 5, "rsp": [0.9] * 5}, test_images=900)
    assert found.test_set == "900 test images: an accuracy has a standard error of 1.0 points"


def classwise(name: str, recalls: Sequence[Sequence[float]], counts: Sequence[int], labelled: bool = True) -> Outcome:
    """An arm with its recalls of each class in each seed, on so many images of each class."""
    labels = np.repeat(np.arange(len(counts)), counts)
    made = outcome(name, [0.5] * len(recalls), [0.5] * len(recalls), images=len(labels))
    for seed, row in enumerate(recalls):
        parts = [np.arange(count) < round(recall * count) for recall, count in zip(row, counts, strict=True)]
        made.correct[seed] = np.concatenate(parts)
        made.test[seed]["accuracy"] = float(made.correct[seed].mean())
        per_class = zip("abc", row, counts, strict=False)
        made.test[seed]["per_class"] = {name: {"recall": recall, "images": count} for name, recall, count in per_class}
    return Outcome(
        made.arm,
        made.units,
        made.validation,
        made.test,
        made.correct,
        4.0,
        labels=[labels] * len(recalls) if labelled else None,
    )


REAL_RECALLS = [[0.5, 0.9, 0.1], [0.6, 0.9, 0.2], [0.5, 0.8, 0.1], [0.6, 0.9, 0.1]]
OUR_RECALLS = [[0.9, 0.7, 0.9], [0.9, 0.6, 0.9], [0.8, 0.6, 0.9], [0.9, 0.7, 0.9]]


def test_classes_that_gain_and_classes_that_lose() -> None:
    # Class c gains most, and has nine images only.
    real = classwise("real", REAL_RECALLS, (200, 200, 9))
    ours = classwise("rsp", OUR_RECALLS, (200, 200, 9))
    gains, losses = class_changes(ours, real, "abc")
    assert [row["class"] for row in gains] == ["a"] and [row["class"] for row in losses] == ["b"]
    assert gains[0]["difference"] == pytest.approx(0.325) and losses[0]["difference"] == pytest.approx(-0.225)
    assert 0 < gains[0]["low"] < 0.325 < gains[0]["high"]
    found = conclude([real, ours], "abc", 400, 409, "default").verdict
    assert found.gains == gains and found.losses == losses
    assert "some classes gain where others lose: a (+32.5 points); b (-22.5 points)" in found.warnings


def test_without_labels_the_intervals_of_classes_are_wider() -> None:
    counts = (200, 200, 9)
    with_labels, without = (
        class_changes(
            *(classwise(*arm, counts, labelled) for arm in (("rsp", OUR_RECALLS), ("real", REAL_RECALLS))), "abc"
        )
        for labelled in (True, False)
    )
    assert [row["class"] for row in without[0]] == ["a"]
    assert without[0][0]["low"] < with_labels[0][0]["low"]


def test_interval_of_a_class_by_hand() -> None:
    # Two seeds, 16 of 40 images gained in both: seeds have no spread, and images a variance of 0.4 * 0.6 * 40 / 39.
    real = classwise("real", [[0.5, 0.5]] * 2, (40, 40))
    ours = classwise("rsp", [[0.9, 0.5]] * 2, (40, 40))
    gains, losses = class_changes(ours, real, "ab")
    half = 2.022691 * np.sqrt(0.4 * 0.6 / 39)  # t(0.975, 39) from the table
    assert losses == [] and len(gains) == 1
    assert gains[0] == pytest.approx({"class": "a", "difference": 0.4, "low": 0.4 - half, "high": 0.4 + half})


def test_one_seed_judges_no_class() -> None:
    assert class_changes(classwise("rsp", [[1.0, 0.0]], (40, 40)), classwise("real", [[0.0, 1.0]], (40, 40)), "ab") == (
        [],
        [],
    )


def test_numbers_in_words() -> None:
    assert points(-0.0001, signed=True) == "+0.0" and points(0.0312) == "3.1" and points(-0.031, signed=True) == "-3.1"
    assert p_text(0.0123) == "p = 0.012" and p_text(0.00005) == "p < 0.001" and p_text(1.0) == "p = 1"
    assert listed(["a", "b", "c"], 2) == "a, b and 1 more" and listed(["a"]) == "a"
