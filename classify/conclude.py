"""From what all classifiers did on the test split to the table and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from .class_changes import class_changes
from .doubts import (
    calibration_doubts,
    class_doubts,
    control_doubts,
    few_test_images,
    sample_doubts,
    validation_doubts,
)
from .outcomes import Outcome, aligned, data_seeds
from .statistics import Summary, summarise
from .verdict import NOT_TOLD, USE, Verdict, about_test_set, choose, control_of, decide
from .verdict_words import plural

Rows = list[dict[str, Any]]

__all__ = ["Conclusion", "Outcome", "conclude"]

_FOLDS_SHARE = "folds share most of their training images, so that their p values are somewhat too small"


@dataclass(frozen=True)
class Conclusion:
    """What a comparison came to.

    Attributes:
        summaries: of all arms, in their order, for `table.write_table`.
        verdict: for verdict.json, by dataclasses.asdict; it holds nothing that JSON lacks.
    """

    summaries: list[Summary]
    verdict: Verdict


def conclude(
    outcomes: Sequence[Outcome],
    classes: Sequence[str],
    validation_images: int,
    test_images: int,
    default_augmentation: str,
    warnings: Sequence[str] = (),
    folds: bool = False,
) -> Conclusion:
    """Compare all arms and say whether to use synthetic images.

    Args:
        outcomes: of all arms, in the order of the table; a real one among them, all with the same units.
        classes: names, in the order of the labels.
        validation_images: size of the validation split; 0 where there is none.
        test_images: size of the test split, at least 1.
        default_augmentation: of arms that name none.
        warnings: reasons to doubt the verdict that others found; they come last.
        folds: the first number of a unit is a fold, with test images of its own, and not a data seed.

    Raises:
        ValueError: two arms have different units.
    """
    outcomes = aligned(outcomes)
    summaries = summarise(outcomes, default_augmentation, folds)
    best = choose(summaries)
    noun = "seed" if len(data_seeds(outcomes[0].units)) == 1 else "fold" if folds else "data seed"
    count = len(summaries[0].samples)
    decision, sentence = decide(best, summaries, test_images, plural(count, noun))
    doubts = validation_doubts(best, summaries, validation_images)
    doubts += sample_doubts(summaries, count, noun, decision != NOT_TOLD) + few_test_images(best, test_images)
    doubts += [_FOLDS_SHARE] * (noun == "fold") + list(warnings)
    reference = _reference(best, summaries)
    verdict = Verdict(
        decision=decision,
        sentence=sentence,
        best_arm=None if best is None else best.name,
        seeds=count,
        helped=decision == USE,
        test_set=about_test_set(reference, test_images),
        warnings=doubts,
    )
    if best is None:
        return Conclusion(summaries, verdict)
    of_best, of_reference = outcomes[summaries.index(best)], outcomes[summaries.index(reference)]
    changes = class_changes(of_best, of_reference, classes, folds)
    return Conclusion(summaries, _with_arm(verdict, best, reference, summaries, changes))


def _with_arm(
    verdict: Verdict, best: Summary, reference: Summary, summaries: Sequence[Summary], changes: tuple[Rows, Rows]
) -> Verdict:
    """The verdict with all that is known of the recommended arm."""
    found, control = best.comparison, control_of(best, summaries)
    assert found is not None  # an arm with synthetic images is compared with a real one
    gains, losses = changes
    doubts = control_doubts(best, summaries) + class_doubts(gains, losses) + calibration_doubts(best, reference)
    return replace(
        verdict,
        strategy=best.arm.strategy,
        source=best.arm.source,
        augmentation=best.augmentation,
        ratio=best.ratio,
        reference=found.reference,
        difference=found.difference,
        standard_deviation=found.standard_deviation,
        low=found.low,
        high=found.high,
        effect_size=found.effect_size,
        p_value=found.corrected,
        control=None if control is None else best.mean - control.mean,
        gains=gains,
        losses=losses,
        warnings=doubts + verdict.warnings,
    )


def _reference(best: Summary | None, summaries: Sequence[Summary]) -> Summary:
    """What the best arm is compared with; a real arm where there is none."""
    name = None if best is None or best.comparison is None else best.comparison.reference
    real = [summary for summary in summaries if summary.arm.strategy == "real"]
    return next((summary for summary in summaries if summary.name == name), real[0])
