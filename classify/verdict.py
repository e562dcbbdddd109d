"""Use synthetic images, do not use them, or not told: the decision, its sentence, and what should make one doubt it.

The recommended arm is chosen by mean VALIDATION accuracy among the arms that use synthetic images. Taking the
arm with the best test accuracy would report the luckiest of several numbers. Its gain over the real images alone, with
the same augmentation, is then judged on the test split:

- "use": the p value, Holm-corrected over all compared arms, is below 0.05, the gain is above 0, and so is its whole
  95 % interval, which counts other test images too.
- "do not use": shown to be worse in the same way; or the whole interval is at most half a point, so that making the
  images would not pay. The latter needs a test split on which half a point is an image at least. Neither is said while
  another arm with synthetic images is shown to be better.
- "not told": all else, as with one seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mvc.paired_test import Comparison

from .statistics import Summary, binomial_standard_error
from .verdict_words import gain_sentence, loss_sentence, no_use_sentence, open_sentence, p_text, plural, points

SIGNIFICANT = 0.05
WORTHWHILE = 0.005
"""A gain up to this share, half a point, does not pay for making synthetic images."""
USE, DO_NOT_USE, NOT_TOLD = "use", "do not use", "not told"
FIXED_ORDER = ("two_phase", "rsp", "weighted", "combined", "synthetic_only")
"""Which strategy stands for all where no validation image can choose: the paper's best first."""


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison; shares, not per cent.

    Args:
        decision: "use", "do not use" or "not told".
        sentence: the outcome in words; it begins with the decision.
        best_arm: the recommended arm; None where no arm uses synthetic images.
        strategy, source, augmentation, ratio: its parts; the ratio is of synthetic images to real ones.
        reference: name of the arm that it is compared with.
        difference: its mean test difference to the reference.
        standard_deviation: sample standard deviation of the paired differences; None with one sample.
        low, high: 95 % interval of the difference; None with one sample.
        effect_size: Hedges' g_z; None with fewer than three samples.
        p_value: Holm-corrected; None with one sample.
        seeds: number of independent samples: data seeds or folds, and model seeds where there is one data seed.
        helped: the decision is "use".
        control: mean test difference of the best arm to the count-matched `duplicate`; None where there is none.
        gains, losses: classes whose recall differs: {class, difference, low, high}.
        warnings: reasons to doubt the sentence.
        test_set: size of the test split and the standard error that it implies, in words.
    """

    decision: str
    sentence: str
    best_arm: str | None
    seeds: int
    helped: bool
    test_set: str
    strategy: str | None = None
    source: str | None = None
    augmentation: str | None = None
    ratio: float | None = None
    reference: str | None = None
    difference: float | None = None
    standard_deviation: float | None = None
    low: float | None = None
    high: float | None = None
    effect_size: float | None = None
    p_value: float | None = None
    control: float | None = None
    gains: list[dict[str, Any]] = field(default_factory=list)
    losses: list[dict[str, Any]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def choose(summaries: Sequence[Summary]) -> Summary | None:
    """The arm with synthetic images that has the best mean validation accuracy, the first one of equals.

    Without a validation split it is the first one by FIXED_ORDER: the test split never chooses.
    """
    candidates = [summary for summary in summaries if summary.arm.uses_synthetic]

    def merit(summary: Summary) -> float:
        if summary.validation_mean is None:
            return -FIXED_ORDER.index(summary.arm.strategy)
        return summary.validation_mean

    return max(candidates, key=merit, default=None)


def control_of(best: Summary, summaries: Sequence[Summary]) -> Summary | None:
    """The `duplicate` arm that repeats real images to the best arm's count, or the one that is nearest to it."""
    controls = [summary for summary in summaries if summary.arm.strategy == "duplicate"]

    def likeness(summary: Summary) -> tuple[bool, bool, bool]:
        arm = summary.arm
        return (
            summary.augmentation == best.augmentation,
            arm.ratio == best.arm.ratio,
            arm.source == best.arm.source,
        )

    return max(controls, key=likeness, default=None)


def shown_better(found: Comparison | None) -> bool:
    """Whether a gain is beyond chance, of the seeds as well as of the test images."""
    return _significant(found) and found is not None and found.difference > 0 and (found.low or 0.0) > 0


def shown_worse(found: Comparison | None) -> bool:
    """The same of a loss."""
    return _significant(found) and found is not None and found.difference < 0 and (found.high or 0.0) < 0


def _significant(found: Comparison | None) -> bool:
    return found is not None and found.corrected is not None and found.corrected < SIGNIFICANT


def not_worthwhile(found: Comparison, test_images: int) -> bool:
    """Whether a gain that would pay is unlikely, on a test split that could show it."""
    return found.high is not None and found.high <= WORTHWHILE and test_images * WORTHWHILE >= 1


def decide(best: Summary | None, summaries: Sequence[Summary], test_images: int, samples: str) -> tuple[str, str]:
    """The decision and its sentence.

    Args:
        best: what `choose` gave.
        summaries: all arms.
        test_images: size of the test split.
        samples: the independent samples in words, such as "5 seeds".
    """
    if best is None or best.comparison is None:
        return NOT_TOLD, "not told: no arm uses synthetic images, so whether they help was not measured"
    found = best.comparison
    if found.p_value is None:
        signed = points(found.difference, signed=True)
        return NOT_TOLD, (
            f"not told: {samples} cannot tell whether synthetic images help; best arm {best.name} differs from "
            f"{found.reference} by {signed} points"
        )
    if shown_better(found):
        return USE, gain_sentence(best, found, samples)
    better = [one for one in summaries if one.arm.uses_synthetic and one is not best and shown_better(one.comparison)]
    if not better and shown_worse(found):
        return DO_NOT_USE, loss_sentence(best, found, samples)
    if not better and not_worthwhile(found, test_images):
        return DO_NOT_USE, no_use_sentence(best, found, samples, WORTHWHILE)
    return NOT_TOLD, open_sentence(best, found, samples, _why_open(found, better))


def _why_open(found: Comparison, better: Sequence[Summary]) -> str:
    for other in better[:1]:
        if other.comparison is not None and other.comparison.corrected is not None:
            gain, p_value = points(other.comparison.difference), p_text(other.comparison.corrected)
            return (
                f"{other.name}, which the validation images did not choose, beats {other.comparison.reference} by "
                f"{gain} points ({p_value})"
            )
    if _significant(found):
        return "it holds for these test images, and may not for others"
    return "chance could explain it" if abs(found.difference) >= 0.0005 else "a difference may still be there"


def about_test_set(reference: Summary, test_images: int) -> str:
    """The size of the test split, and the standard error that it implies."""
    error = binomial_standard_error(float(np.mean(reference.samples)), test_images)
    return f"{plural(test_images, 'test image')}: an accuracy has a standard error of {points(error)} points"
