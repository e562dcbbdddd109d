"""Which classes gain by synthetic images, and which lose: differences of recall that chance does not explain.

A class has few test images, so there is a t-test for each, with the variances of seeds and of images added up and
Welch-Satterthwaite's degrees of freedom, and Holm's correction over the classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from mvc.paired_test import holm

from .bootstrap import image_gains, shares_test
from .outcomes import Floats, Outcome, independent

LEAST_IMAGES = 10
"""A class with fewer test images is not judged."""
SIGNIFICANT = 0.05
_EQUAL = 1e-12


def class_changes(
    outcome: Outcome, reference: Outcome, classes: Sequence[str], folds: bool = False
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The classes whose recall differs between an arm and its reference, beyond chance.

    Args:
        outcome: of the arm.
        reference: of its reference, with the same units in the same order.
        classes: names, in the order of the labels.
        folds: units are folds, which have test images of their own.

    Returns:
        Gains and losses, the largest first: {class, difference, low, high}, shares of the class's test images with the
        95 % interval of each class by itself. Both are empty with one independent sample.
    """
    judged: list[dict[str, Any]] = []
    p_values = []
    for number, name in enumerate(classes):
        if min(row["per_class"][name]["images"] for row in outcome.test) < LEAST_IMAGES:
            continue
        gaps = np.array(independent(list(_recalls(outcome, name) - _recalls(reference, name)), outcome.units))
        if len(gaps) < 2:
            return [], []
        parts = [(_variance(gaps), len(gaps))]
        if shares_test(outcome, folds):
            parts.append(_image_part(outcome, reference, number, name))
        error, freedom = _combined(parts)
        change = float(gaps.mean())
        half = float(stats.t.ppf(0.975, freedom)) * error
        judged.append({"class": name, "difference": change, "low": change - half, "high": change + half})
        p_values.append(_p_value(change, error, freedom))
    told = [row for row, p_value in zip(judged, holm(p_values), strict=True) if p_value < SIGNIFICANT]
    told.sort(key=lambda row: -abs(row["difference"]))
    return [row for row in told if row["difference"] > 0], [row for row in told if row["difference"] < 0]


def _recalls(outcome: Outcome, name: str) -> Floats:
    return np.array([row["per_class"][name]["recall"] for row in outcome.test], dtype=np.float64)


def _variance(values: Floats) -> float:
    """Sample variance; exactly 0 where rounding alone parts the values."""
    return 0.0 if float(np.ptp(values)) < _EQUAL else float(values.var(ddof=1))


def _image_part(outcome: Outcome, reference: Outcome, number: int, name: str) -> tuple[float, int]:
    """Variance between the images of a class, and their number.

    Without labels, what two independent samples of images would have: more than it is, since both arms see the same.
    """
    images = int(min(row["per_class"][name]["images"] for row in outcome.test))
    labels = outcome.labels
    if not labels:
        means = (float(_recalls(outcome, name).mean()), float(_recalls(reference, name).mean()))
        return sum(mean * (1 - mean) for mean in means), images
    return _variance(image_gains(outcome, reference)[labels[0] == number]), images


def _combined(parts: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """Standard error of a sum of means, and Welch-Satterthwaite's degrees of freedom, of (variance, count) pairs."""
    terms = [(variance / count, count - 1) for variance, count in parts]
    total = sum(term for term, _ in terms)
    if total == 0:
        return 0.0, 1.0
    return math.sqrt(total), total**2 / sum(term**2 / freedom for term, freedom in terms)


def _p_value(change: float, error: float, freedom: float) -> float:
    if error == 0:
        return 1.0 if abs(change) < _EQUAL else 0.0
    return 2 * float(stats.t.sf(abs(change) / error, freedom))
