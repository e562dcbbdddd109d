"""95 % intervals of gains that count both kinds of chance: the seeds, and the test images.

A plain hierarchical bootstrap resamples data seeds, model seeds within and test images. With the three to five seeds
that people can afford it is too sure of itself: for n seeds the spread is too small by sqrt((n - 1) / n), and its tails
are those of a normal law. Of its 95 % intervals 86 to 93 % held in simulations with 3 or 5 seeds and 300 test images,
of those here 95 to 97 %. So only the test images are resampled, which are many, and the independent samples
(`outcomes.independent`) are drawn from Student's law with n - 1 degrees of freedom around their mean, as in the t
interval. The spread between data seeds contains that of the model seeds within, which needs no draw of its own. Arm and
reference always lose or gain the same images: the pairing stays.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from mvc.randomness import numpy_generator

from .outcomes import Floats, Outcome, data_seeds, independent, unit_weights

REPLICATES = 2000
LEVEL = 0.95
_CHUNK = 2_000_000
"""Draws held in memory at once."""
_EQUAL = 1e-12

Interval = tuple[float | None, float | None]


def shares_test(outcome: Outcome, folds: bool) -> bool:
    """Whether the units may have been tested on the same images, which then is a chance of its own.

    Images of equal number and equal classes are taken for the same ones: if they are not, the interval is a little too
    wide. Where each data seed has test images of its own, they vary along with it, and the spread between data seeds
    contains them.
    """
    if len(data_seeds(outcome.units)) == 1:
        return True
    labels = outcome.labels or []
    alike = all(np.array_equal(labels[0], other) for other in labels)
    return not folds and alike and len({len(correct) for correct in outcome.correct}) == 1


def image_gains(outcome: Outcome, reference: Outcome) -> Floats:
    """(n,) of each test image how much more often the arm is right on it than the reference, in [-1, 1].

    Args:
        outcome, reference: with the same units in the same order, and the same test images in all of them.
    """
    gaps = np.stack([a.astype(np.float64) - b for a, b in zip(outcome.correct, reference.correct, strict=True)])
    return np.asarray(unit_weights(outcome.units) @ gaps)


def resampled_means(gains: Floats, replicates: int, generator: np.random.Generator) -> Floats:
    """Means over images drawn with replacement, the same draw for all arms.

    Args:
        gains: (arms, n).
        replicates: how many draws.
        generator: of the draws.

    Returns:
        (replicates, arms).
    """
    count = gains.shape[1]
    rows, parts = max(1, _CHUNK // count), []
    for start in range(0, replicates, rows):
        size = min(rows, replicates - start)
        drawn = generator.integers(0, count, (size, count), dtype=np.int32)
        drawn += np.arange(size, dtype=np.int32)[:, None] * count
        times = np.bincount(drawn.ravel(), minlength=size * count).reshape(size, count)
        parts.append(times @ gains.T / count)
    return np.concatenate(parts)


def gain_intervals(
    pairs: Sequence[tuple[Outcome, Outcome]], folds: bool = False, replicates: int = REPLICATES
) -> list[Interval]:
    """The interval of the mean gain in accuracy of each arm over its reference.

    Args:
        pairs: arm and reference; all with the same units in the same order, and the same images in the same order.
        folds: units are folds, which have test images of their own.
        replicates: how many draws.

    Returns:
        (low, high) of each pair, shares; (None, None) with one independent sample. The draws do not depend on the
        results: numpy_generator(0, "bootstrap").
    """
    if not pairs:
        return []
    samples = np.array([_sample_gains(*pair) for pair in pairs])
    count = samples.shape[1]
    if count == 1:
        return [(None, None)] * len(pairs)
    spread = samples.std(axis=1, ddof=1)
    spread[np.ptp(samples, axis=1) < _EQUAL] = 0.0
    generator = numpy_generator(0, "bootstrap")
    values = samples.mean(axis=1) + generator.standard_t(count - 1, (replicates, 1)) * spread / math.sqrt(count)
    if shares_test(pairs[0][0], folds):
        gains = np.stack([image_gains(*pair) for pair in pairs])
        values = values + resampled_means(gains, replicates, generator) - gains.mean(axis=1)
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    # A difference of two shares lies between -1 and 1, which two samples far apart do not know.
    return [(max(float(a), -1.0), min(float(b), 1.0)) for a, b in zip(low, high, strict=True)]


def _sample_gains(outcome: Outcome, reference: Outcome) -> list[float]:
    pairs = zip(outcome.test, reference.test, strict=True)
    return independent([a["accuracy"] - b["accuracy"] for a, b in pairs], outcome.units)
