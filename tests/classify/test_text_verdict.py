"""What is said of known outcomes: use, do not use, not told; and what should make one doubt it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from mvc.arms import Arm
from mvc.classify.outcomes import Outcome
from mvc.classify.text_verdict import conclude_texts

from .made_up_outcomes import outcome

REAL = [0.600, 0.610, 0.595, 0.605, 0.602]


def arm(name: str, accuracies: Sequence[float], validation: float | None = 0.6) -> Outcome:
    made = outcome("real", accuracies, None if validation is None else [validation] * len(accuracies))
    return replace(made, arm=Arm(name))


def plus(gains: Sequence[float]) -> list[float]:
    return [real + gain for real, gain in zip(REAL, gains, strict=True)]


GREAT = plus([0.10, 0.09, 0.11, 0.10, 0.10])


@pytest.mark.parametrize(
    ("arms", "decision", "sentence"),
    [
        ([arm("eda", GREAT, 0.7)], "use", r"^use eda: it beats real by 10\.0 points \(95 % interval .*, 5 seeds, p"),
        (
            [arm("eda", plus([-0.1, -0.09, -0.11, -0.1, -0.1]), 0.7)],
            "do not use",
            r"^do not use them: even the best arm, eda, is 10\.0 points worse",
        ),
        ([arm("eda", plus([0.2, -0.2, 0.1, -0.1, 0.02]))], "not told", "chance could explain it"),
        (
            [arm("eda", GREAT, 0.6), arm("back_speech", REAL, 0.7)],
            "not told",
            r"back_speech differs from real by \+0\.0 .*; eda, which the validation texts did not choose, beats real",
        ),
        ([], "not told", "no arm has augmented texts"),
    ],
)
def test_known_cases(arms: list[Outcome], decision: str, sentence: str) -> None:
    import re

    summaries, verdict = conclude_texts([arm("real", REAL), *arms], 500, 1000)
    assert verdict.decision == decision and re.search(sentence, verdict.sentence)
    assert verdict.helped == (decision == "use") and verdict.facts()["sentence"] == verdict.sentence
    assert [one.name for one in summaries] == ["real", *(one.arm.name for one in arms)]
    assert verdict.test_set.startswith("1000 test texts: an accuracy has a standard error of 1.5 points")


def test_validation_and_not_test_chooses_the_arm() -> None:
    _, verdict = conclude_texts([arm("real", REAL), arm("eda", GREAT, 0.5), arm("tmix", REAL, 0.9)], 500, 1000)
    assert verdict.best_arm == "tmix"
    _, verdict = conclude_texts([arm("real", REAL, None), arm("eda", REAL, None), arm("tmix", GREAT, None)], 0, 1000)
    assert verdict.best_arm == "eda"  # the first one
    assert "no validation texts: the last weights were used" in " ".join(verdict.warnings)


def test_doubts() -> None:
    few = [
        replace(one, test=one.test[:1], correct=one.correct[:1], units=one.units[:1], validation=None, labels=None)
        for one in (arm("real", REAL), arm("eda", GREAT))
    ]
    _, verdict = conclude_texts(few, 50, 60, ["so it is"])
    assert (
        verdict.decision == "not told"
        and "1 seed cannot tell whether eda helps; it differs by +10.0" in verdict.sentence
    )
    assert verdict.warnings[0].startswith("1 seed: no difference can be told")
    assert "only 50 validation texts" in verdict.warnings[1] and "only 60 test texts" in verdict.warnings[2]
    assert verdict.warnings[-1] == "so it is"
