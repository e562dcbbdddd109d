"""What several seeds can tell: paired differences to a reference arm, their p values and Holm's correction.

Values are paired by unit (data seed, model seed). The independent samples are the data seeds where there are
several, each the mean over its model seeds, and else the model seeds (`outcomes.independent`). The intervals are those
of `bootstrap.py`, which count the test images as chance too; the p values hold for the test images at hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from mvc.arms import Arm
from mvc.paired_test import Comparison, compare, holm, standard_deviation

from .bootstrap import gain_intervals
from .outcomes import Outcome, augmentation_of, independent, references


@dataclass(frozen=True)
class Summary:
    """An arm over its units; shares, and None where a number is unknown or undefined.

    Args:
        arm: the arm.
        augmentation: what it was trained with.
        values: test accuracy of each unit, in the order of the units.
        samples: of each independent sample: a data seed, or with one data seed a model seed.
        mean: of the samples.
        standard_deviation: sample standard deviation of the samples; None with one.
        validation_mean: mean validation accuracy; None where there was no validation split.
        comparison: against its reference; None for plain `real`.
        balanced_accuracy, macro_f1, auroc: means over the samples.
        calibration_errors: expected calibration error of each sample.
        ratio: synthetic images for each real one.
        diversity, affinity: of the outcome.
    """

    arm: Arm
    augmentation: str
    values: list[float]
    samples: list[float]
    mean: float
    standard_deviation: float | None
    validation_mean: float | None
    comparison: Comparison | None
    balanced_accuracy: float | None
    macro_f1: float | None
    auroc: float | None
    calibration_errors: list[float]
    ratio: float | None
    diversity: float | None
    affinity: float | None

    @property
    def name(self) -> str:
        """Of the arm."""
        return self.arm.name

    @property
    def calibration_error(self) -> float:
        """Mean expected calibration error."""
        return float(np.mean(self.calibration_errors))


def detectable_difference(spreads: Sequence[float], samples: int) -> float | None:
    """Smallest mean difference that a paired t-test would call significant at 5 %, before correction.

    Args:
        spreads: standard deviations of the paired differences of the arms; their root mean square is used.
        samples: number of independent samples.

    Returns:
        A share; None where there are no spreads.
    """
    if not spreads or samples < 2:
        return None
    pooled = math.sqrt(sum(spread**2 for spread in spreads) / len(spreads))
    return min(float(stats.t.ppf(0.975, samples - 1)) * pooled / math.sqrt(samples), 1.0)


def binomial_standard_error(accuracy: float, images: int) -> float:
    """Standard error of an accuracy measured on so many independent images; a share."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def summarise(outcomes: Sequence[Outcome], default_augmentation: str, folds: bool = False) -> list[Summary]:
    """Summaries of all arms, in their order, with Holm's correction over all of them that have a reference.

    Args:
        outcomes: of all arms, with the same units in the same order (`outcomes.aligned`).
        default_augmentation: of arms that name none.
        folds: units are folds, which have test images of their own.
    """
    found = references([outcome.arm for outcome in outcomes], default_augmentation)
    places = [place for place, reference in enumerate(found) if reference is not None]
    pairs = [(outcomes[place], outcomes[found[place] or 0]) for place in places]
    compared = [compare(_samples(outcome), _samples(reference)) for outcome, reference in pairs]
    p_values = [one.p_value for one in compared if one.p_value is not None]
    corrected = holm(p_values) if p_values else [None] * len(compared)
    comparisons = {
        place: replace(one, corrected=p_value, low=low, high=high, reference=reference.arm.name)
        for place, one, p_value, (low, high), (_, reference) in zip(
            places, compared, corrected, gain_intervals(pairs, folds=folds), pairs, strict=True
        )
    }
    return [_summary(one, comparisons.get(place), default_augmentation) for place, one in enumerate(outcomes)]


def _samples(outcome: Outcome) -> list[float]:
    return independent([row["accuracy"] for row in outcome.test], outcome.units)


def _mean_of(outcome: Outcome, key: str) -> float | None:
    values = [row.get(key) for row in outcome.test]
    known = [float(value) for value in values if value is not None]
    return float(np.mean(independent(known, outcome.units))) if len(known) == len(values) else None


def _finite(value: float | None) -> float | None:
    return float(value) if value is not None and math.isfinite(value) else None


def _summary(outcome: Outcome, comparison: Comparison | None, default_augmentation: str) -> Summary:
    samples, validation = _samples(outcome), outcome.validation
    return Summary(
        arm=outcome.arm,
        augmentation=augmentation_of(outcome.arm, default_augmentation),
        values=[float(row["accuracy"]) for row in outcome.test],
        samples=samples,
        mean=float(np.mean(samples)),
        standard_deviation=standard_deviation(samples),
        validation_mean=None if validation is None else float(np.mean(independent(validation, outcome.units))),
        comparison=comparison,
        balanced_accuracy=_mean_of(outcome, "balanced_accuracy"),
        macro_f1=_mean_of(outcome, "macro_f1"),
        auroc=_mean_of(outcome, "auroc"),
        calibration_errors=independent([row["ece"] for row in outcome.test], outcome.units),
        ratio=_finite(outcome.ratio),
        diversity=_finite(outcome.diversity),
        affinity=_finite(outcome.affinity),
    )
