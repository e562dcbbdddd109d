"""What several seeds can tell: paired differences to `real`, their p values and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

_EQUAL = 1e-12
"""Differences this close are equal: accuracies are ratios of counts, and only rounding parts them."""


@dataclass(frozen=True)
class Comparison:
    """An arm against `real`, paired by seed; shares, not per cent.

    Args:
        difference: mean of the per-seed differences.
        standard_deviation: their sample standard deviation; None with one seed.
        low: lower end of the 95 % interval of the mean difference; None with one seed or equal differences.
        high: upper end.
        p_value: two-sided; None with one seed.
        corrected: p value after Holm's correction over all compared arms; None with one seed.
    """

    difference: float
    standard_deviation: float | None
    low: float | None
    high: float | None
    p_value: float | None
    corrected: float | None = None


@dataclass(frozen=True)
class Summary:
    """An arm over its seeds.

    Args:
        arm: its name.
        values: test accuracy of each seed, in the order of the seeds.
        mean: their mean.
        standard_deviation: sample standard deviation; None with one seed.
        validation_mean: mean validation accuracy; None where there was no validation split.
        comparison: against `real`; None for `real` itself.
    """

    arm: str
    values: list[float]
    mean: float
    standard_deviation: float | None
    validation_mean: float | None
    comparison: Comparison | None


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1), or None of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def compare(values: Sequence[float], reference: Sequence[float]) -> Comparison:
    """Paired t-test of per-seed values against a reference with the same seeds in the same order.

    Where all differences are equal the t statistic is 0/0 or infinite. Then p is 1 for differences of zero, and
    else that of the exact sign-flip test, 2 / 2^n, since a handful of equal accuracies proves little.

    Args:
        values: (n) of an arm.
        reference: (n) of `real`.
    """
    differences = np.asarray(values, dtype=np.float64) - np.asarray(reference, dtype=np.float64)
    count, mean = len(differences), float(differences.mean())
    if count == 1:
        return Comparison(mean, None, None, None, None)
    if float(np.ptp(differences)) < _EQUAL:
        p_value = 1.0 if abs(mean) < _EQUAL else 2.0 / 2**count
        return Comparison(mean, 0.0, None, None, p_value)
    spread = float(differences.std(ddof=1))
    half = float(stats.t.ppf(0.975, count - 1)) * spread / math.sqrt(count)
    p_value = float(stats.ttest_rel(values, reference).pvalue)
    return Comparison(mean, spread, mean - half, mean + half, p_value)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that keep the chance of any false alarm, in the order given."""
    count, corrected, running = len(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        running = max(running, (count - rank) * p_values[place])
        corrected[place] = min(1.0, running)
    return corrected


def detectable_difference(spreads: Sequence[float], seeds: int) -> float | None:
    """Smallest mean difference that a paired t-test would call significant at 5 %, before correction.

    Args:
        spreads: standard deviations of the per-seed differences of the arms; their root mean square is used.
        seeds: number of seeds, at least 2.

    Returns:
        A share; None where there are no spreads.
    """
    if not spreads or seeds < 2:
        return None
    pooled = math.sqrt(sum(spread**2 for spread in spreads) / len(spreads))
    return float(stats.t.ppf(0.975, seeds - 1)) * pooled / math.sqrt(seeds)


def binomial_standard_error(accuracy: float, images: int) -> float:
    """Standard error of an accuracy measured on so many independent images; a share."""
    return math.sqrt(accuracy * (1 - accuracy) / images)


def summarise(test: Mapping[str, Sequence[float]], validation: Mapping[str, Sequence[float]] | None) -> list[Summary]:
    """Summaries of all arms, in their order, with Holm's correction over all arms but `real`.

    Args:
        test: arm to test accuracies, one a seed, same seeds in the same order; must hold "real".
        validation: the same of validation accuracies; None where there was no validation split.
    """
    compared = {arm: compare(values, test["real"]) for arm, values in test.items() if arm != "real"}
    p_values = [found.p_value for found in compared.values() if found.p_value is not None]
    corrected = iter(holm(p_values))
    for arm, found in compared.items():
        if found.p_value is not None:
            compared[arm] = Comparison(**{**vars(found), "corrected": next(corrected)})
    return [
        Summary(
            arm,
            list(values),
            float(np.mean(values)),
            standard_deviation(values),
            None if validation is None else float(np.mean(validation[arm])),
            compared.get(arm),
        )
        for arm, values in test.items()
    ]
