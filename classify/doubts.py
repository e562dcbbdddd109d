"""Reasons to doubt a verdict: what else may explain a gain, and what the numbers of images and seeds cannot tell."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mvc.paired_test import compare

from .statistics import Summary, binomial_standard_error, detectable_difference
from .verdict import SIGNIFICANT, control_of
from .verdict_words import listed, plural, points

FEW_SAMPLES = 5
FEW_IMAGES = 100
WORSE_CALIBRATION = 0.02
"""A mean calibration error that is larger by this much is worth a word, if chance does not explain it."""


def control_doubts(best: Summary, summaries: Sequence[Summary]) -> list[str]:
    """Arms without synthetic images that do as well: repeated real images, and other augmentations."""
    if best.comparison is None or best.comparison.difference <= 0:
        return []  # no gain that a control could explain
    found, control = [], control_of(best, summaries)
    if control is not None and not _beats(best, control):
        found.append(
            f"{control.name} is as good within noise ({best.name} differs from it by {_gap(best, control)} points): "
            "repeating real images may explain the gain"
        )
    for other in summaries:
        if other.arm.strategy == "real" and other.name != best.comparison.reference and not _beats(best, other):
            found.append(
                f"{other.name} is as good within noise without a synthetic image ({best.name} differs from it by "
                f"{_gap(best, other)} points): its augmentation may be all that is needed"
            )
    return found


def _beats(best: Summary, other: Summary) -> bool:
    against = compare(best.samples, other.samples)
    return against.p_value is not None and against.p_value < SIGNIFICANT and against.difference > 0


def _gap(best: Summary, other: Summary) -> str:
    return points(best.mean - other.mean, signed=True)


def class_doubts(gains: Sequence[Mapping[str, Any]], losses: Sequence[Mapping[str, Any]]) -> list[str]:
    """Classes that lose, beside those that gain."""

    def named(rows: Sequence[Mapping[str, Any]]) -> str:
        return listed([f"{row['class']} ({points(row['difference'], signed=True)} points)" for row in rows])

    if not losses:
        return []
    if not gains:
        return [f"classes that lose: {named(losses)}"]
    return [f"some classes gain where others lose: {named(gains)}; {named(losses)}"]


def calibration_doubts(best: Summary, reference: Summary) -> list[str]:
    """Probabilities that can be trusted less than before."""
    found = compare(best.calibration_errors, reference.calibration_errors)
    if found.difference < WORSE_CALIBRATION or found.p_value is None or found.p_value >= SIGNIFICANT:
        return []
    errors = f"{points(best.calibration_error)} against {points(reference.calibration_error)} points"
    return [f"the probabilities of {best.name} are calibrated worse than those of {reference.name}: {errors} of error"]


def validation_doubts(best: Summary | None, summaries: Sequence[Summary], images: int) -> list[str]:
    """What too few validation images mean for the choice of weights and of the arm.

    Args:
        best: the chosen arm.
        summaries: all arms.
        images: size of the validation split; 0 where there is none.
    """
    if images == 0:
        return [
            "no validation images: the last weights were used, and the arm is the first one of a fixed order, "
            "not the best one"
        ]
    if best is None or best.validation_mean is None:
        return []
    error = binomial_standard_error(best.validation_mean, images)
    found = []
    if images < FEW_IMAGES:
        found.append(
            f"only {plural(images, 'validation image')}: the choice of weights and of the arm is noisy (an accuracy "
            f"there has a standard error of {points(error)} points)"
        )
    apart = math.sqrt(2) * error
    near = [
        one.name
        for one in summaries
        if one.arm.uses_synthetic and one is not best and best.validation_mean - (one.validation_mean or 0.0) <= apart
    ]
    if near:
        found.append(
            f"on {plural(images, 'validation image')} accuracies within {points(apart)} points cannot be told apart: "
            f"choosing {best.name} and not {listed(near)} is a toss-up"
        )
    return found


def sample_doubts(summaries: Sequence[Summary], count: int, noun: str, decided: bool) -> list[str]:
    """How small a difference so many seeds can tell; said where they are few, or did not tell.

    Args:
        summaries: all arms.
        count: independent samples.
        noun: what they are.
        decided: the verdict is a clear one.
    """
    if count >= FEW_SAMPLES and decided:
        return []
    compared = [summary.comparison for summary in summaries if summary.comparison is not None]
    spreads = [found.standard_deviation for found in compared if found.standard_deviation is not None]
    smallest = detectable_difference(spreads, count)
    if smallest is None:
        return [f"{plural(count, noun)}: no difference can be told from chance"]
    return [f"{plural(count, noun)}: differences under about {points(smallest)} points cannot be told apart"]


def few_test_images(best: Summary | None, images: int) -> list[str]:
    """A test split so small that accuracies on it say little."""
    if best is None or images >= FEW_IMAGES:
        return []
    error = points(binomial_standard_error(best.mean, images))
    return [f"only {plural(images, 'test image')}: the accuracy of {best.name} has a standard error of {error} points"]
