"""What paired values tell: the differences of an arm to its reference, their t-test, and Holm's correction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special, stats

_EQUAL = 1e-12
"""Differences this close are equal: accuracies are ratios of counts, and only rounding parts them."""


@dataclass(frozen=True)
class Comparison:
    """An arm against its reference, paired; shares, not per cent.

    Args:
        difference: mean of the paired differences.
        standard_deviation: their sample standard deviation; None with one sample.
        low: lower end of the 95 % interval of the mean difference; None with one sample.
        high: upper end.
        p_value: of the paired t-test, two-sided; None with one sample.
        corrected: p value after Holm's correction over all compared arms; None with one sample.
        effect_size: Hedges' g_z of the differences; None with fewer than three samples or equal differences.
        reference: name of the arm that it is compared with.
    """

    difference: float
    standard_deviation: float | None
    low: float | None
    high: float | None
    p_value: float | None
    corrected: float | None = None
    effect_size: float | None = None
    reference: str = "real"


def standard_deviation(values: Sequence[float]) -> float | None:
    """Sample standard deviation (n - 1), or None of one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def hedges_g(differences: Sequence[float]) -> float | None:
    """Cohen's d_z, the mean of paired differences over their standard deviation, with Hedges' exact correction.

    The correction takes away what few samples add to d_z: Gamma(m/2) / (sqrt(m/2) Gamma((m-1)/2)) with m = n - 1
    (Hedges 1981, "Distribution theory for Glass's estimator of effect size").

    Returns:
        g_z; None with fewer than three differences, where it has no expectation, or where they are equal.
    """
    freedom = len(differences) - 1
    if freedom < 2 or float(np.ptp(differences)) < _EQUAL:
        return None
    correction = math.exp(special.gammaln(freedom / 2) - special.gammaln((freedom - 1) / 2)) / math.sqrt(freedom / 2)
    return correction * float(np.mean(differences)) / float(np.std(differences, ddof=1))


def compare(values: Sequence[float], reference: Sequence[float]) -> Comparison:
    """Paired t-test of values against a reference with the same independent samples in the same order.

    Where all differences are equal the t statistic is 0/0 or infinite. Then p is 1 for differences of zero, and
    else that of the exact sign-flip test, 2 / 2^n, since a handful of equal accuracies proves little.

    Args:
        values: (n) of an arm.
        reference: (n) of the arm that it is compared with.

    Returns:
        The comparison with the t interval, which counts no test image as chance.
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
    return Comparison(mean, spread, mean - half, mean + half, p_value, effect_size=hedges_g(differences.tolist()))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: p values that keep the chance of any false alarm, in the order given."""
    count, corrected, running = len(p_values), [0.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(count), key=lambda index: p_values[index])):
        running = max(running, (count - rank) * p_values[place])
        corrected[place] = min(1.0, running)
    return corrected


def p_value_text(p_value: float) -> str:
    """ "0.012", or "< 0.001"."""
    return "< 0.001" if p_value < 0.001 else f"{p_value:.2g}"
