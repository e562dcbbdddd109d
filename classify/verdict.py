"""One sentence that says whether synthetic images helped, and what should make one doubt it.

The recommended arm is chosen by mean VALIDATION accuracy among the arms that use synthetic images. Taking the
arm with the best test accuracy would report the luckiest of several numbers. Its difference to `real` on the
test split is then judged by a p value that is Holm-corrected over all compared arms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .statistics import Summary, binomial_standard_error, compare, detectable_difference
from .strategies import USES_SYNTHETIC

SIGNIFICANT = 0.05
FEW_SEEDS = 5
FEW_VALIDATION_IMAGES = 100


@dataclass(frozen=True)
class Verdict:
    """The outcome of a comparison; shares, not per cent.

    Args:
        sentence: the outcome in words.
        best_arm: the recommended arm; None where no arm uses synthetic images.
        difference: its mean test difference to `real`.
        standard_deviation: sample standard deviation of the per-seed differences; None with one seed.
        p_value: Holm-corrected; None with one seed.
        seeds: number of seeds.
        helped: corrected p below 0.05 and a difference above 0.
        warnings: reasons to doubt the sentence.
        test_set: size of the test split and the standard error that it implies, in words.
    """

    sentence: str
    best_arm: str | None
    difference: float | None
    standard_deviation: float | None
    p_value: float | None
    seeds: int
    helped: bool
    warnings: list[str]
    test_set: str


def points(share: float, signed: bool = False) -> str:
    """A share as percentage points with one decimal; never "-0.0"."""
    value = round(100 * share, 1) + 0.0
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def p_text(p_value: float) -> str:
    """ "p = 0.012", or "p < 0.001"."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.2g}"


def strategy_of(arm: str) -> str:
    """The strategy of an arm such as "two_phase@finetuned"."""
    return arm.split("@")[0]


def choose(summaries: Sequence[Summary]) -> Summary | None:
    """The arm with synthetic images that has the best mean validation accuracy, the first one of equals.

    Without a validation split the choice falls back on test accuracy, and a warning says so.
    """
    candidates = [summary for summary in summaries if strategy_of(summary.arm) in USES_SYNTHETIC]

    def merit(summary: Summary) -> float:
        return summary.mean if summary.validation_mean is None else summary.validation_mean

    return max(candidates, key=merit, default=None)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _sentence(best: Summary | None, seeds: int) -> tuple[str, bool]:
    if best is None or best.comparison is None:
        return "no arm uses synthetic images, so whether they help was not measured", False
    found = best.comparison
    if found.standard_deviation is None or found.corrected is None:
        signed = points(found.difference, signed=True)
        return (
            f"one seed cannot tell whether synthetic images help: best arm {best.arm} differs from real by "
            f"{signed} points"
        ), False
    spread, p_value = points(found.standard_deviation), p_text(found.corrected)
    if found.corrected < SIGNIFICANT and found.difference > 0:
        gain = points(found.difference)
        return f"{best.arm} beats real by {gain} +- {spread} points over {seeds} seeds, {p_value}", True
    signed = points(found.difference, signed=True)
    # A gain that chance could explain is neither a success nor a failure.
    outcome = "were not shown to help here" if round(found.difference, 3) > 0 else "did not help here"
    return (
        f"synthetic images {outcome}: best arm {best.arm} differs from real by {signed} +- {spread} "
        f"points over {seeds} seeds, {p_value}"
    ), False


def _control_warnings(best: Summary, summaries: Sequence[Summary]) -> list[str]:
    if best.comparison is None or best.comparison.difference <= 0:
        return []  # no gain that a control could explain
    found = []
    for control in summaries:
        if strategy_of(control.arm) != "duplicate":
            continue
        against = compare(best.values, control.values)
        proven = against.p_value is not None and against.p_value < SIGNIFICANT and against.difference > 0
        if not proven:
            gap = points(against.difference, signed=True)
            found.append(
                f"{control.arm} is as good within noise ({best.arm} differs from it by {gap} points): repeating "
                "real images may explain the gain"
            )
    return found


def _seed_warning(summaries: Sequence[Summary], seeds: int) -> list[str]:
    if seeds >= FEW_SEEDS:
        return []
    compared = [summary.comparison for summary in summaries if summary.comparison is not None]
    spreads = [found.standard_deviation for found in compared if found.standard_deviation is not None]
    smallest = detectable_difference(spreads, seeds)
    if smallest is None:
        return [f"{_plural(seeds, 'seed')}: no difference can be told from chance"]
    return [f"{seeds} seeds: differences under about {points(smallest)} points cannot be told apart"]


def judge(summaries: Sequence[Summary], validation_images: int, test_images: int) -> Verdict:
    """Put the outcome of a comparison in words.

    Args:
        summaries: all arms, `real` among them, in the order of the table.
        validation_images: size of the validation split; 0 where there is none.
        test_images: size of the test split, at least 1.
    """
    seeds = len(summaries[0].values)
    best = choose(summaries)
    sentence, helped = _sentence(best, seeds)
    warnings = [] if best is None else _control_warnings(best, summaries)
    if validation_images == 0:
        warnings.append("no validation images: the last weights were used, and the arm was chosen by test accuracy")
    elif validation_images < FEW_VALIDATION_IMAGES:
        warnings.append(
            f"only {_plural(validation_images, 'validation image')}: the choice of weights and of the arm is noisy"
        )
    warnings += _seed_warning(summaries, seeds)
    error = binomial_standard_error(next(s.mean for s in summaries if s.arm == "real"), test_images)
    found = best.comparison if best is not None else None
    return Verdict(
        sentence=sentence,
        best_arm=None if best is None else best.arm,
        difference=None if found is None else found.difference,
        standard_deviation=None if found is None else found.standard_deviation,
        p_value=None if found is None else found.corrected,
        seeds=seeds,
        helped=helped,
        warnings=warnings,
        test_set=f"{_plural(test_images, 'test image')}: an accuracy has a standard error of {points(error)} points",
    )
