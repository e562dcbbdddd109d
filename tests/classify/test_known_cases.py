"""Verdicts where the truth is known: synthetic images of the true classes, with wrong labels, and with nothing new."""

from __future__ import annotations

from collections import Counter

import pytest

from mvc.classify.verdict import DO_NOT_USE, USE

from .gaussian_classes import RATIO, conclusion


def decisions(case: str, repeats: int) -> Counter[str]:
    return Counter(conclusion(case, repeat).verdict.decision for repeat in range(repeats))


@pytest.mark.parametrize(("case", "right"), [("helps", USE), ("hurts", DO_NOT_USE)])
def test_the_truth_is_told_in_20_repeats(case: str, right: str) -> None:
    assert decisions(case, 20)[right] >= 19


def test_no_help_is_made_up_in_20_repeats() -> None:
    assert decisions("nothing", 20)[USE] <= 2


@pytest.mark.slow
@pytest.mark.parametrize(("case", "right"), [("helps", USE), ("hurts", DO_NOT_USE)])
def test_the_truth_is_told_in_95_of_100_repeats(case: str, right: str) -> None:
    assert decisions(case, 100)[right] >= 95


@pytest.mark.slow
def test_no_help_is_made_up_in_100_repeats() -> None:
    # Chance alone says "use" in 2.5 of 100: half of the 5 % that the test allows.
    assert decisions("nothing", 100)[USE] <= 6


def test_a_verdict_of_real_training_holds_all_its_parts() -> None:
    found = conclusion("helps", 0)
    verdict, combined = found.verdict, found.summaries[2]
    assert (verdict.best_arm, verdict.strategy, verdict.ratio, verdict.reference) == (
        "combined",
        "combined",
        RATIO,
        "real",
    )
    assert verdict.low is not None and verdict.high is not None and verdict.difference is not None
    assert 0 < verdict.low < verdict.difference < verdict.high
    assert verdict.difference == pytest.approx(combined.mean - found.summaries[0].mean)
    assert verdict.control == pytest.approx(combined.mean - found.summaries[1].mean)
    assert verdict.sentence.startswith("use synthetic images: combined with 10 synthetic a real image beats real by ")
