"""Outcomes with wanted accuracies, to the nearest image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mvc.arms import parse_arm
from mvc.classify.conclude import Outcome

CLASSES = ["dark", "light"]
IMAGES = 1000


def outcome(
    name: str,
    accuracies: Sequence[float],
    validation: Sequence[float] | None = None,
    *,
    units: Sequence[tuple[int, int]] | None = None,
    images: int = IMAGES,
    ece: Sequence[float] | None = None,
    ratio: float | None = None,
) -> Outcome:
    """An arm whose classifiers are right on the first images and wrong on the others.

    Images alternate between the two classes, so that recalls are as the accuracy.
    """
    arm = parse_arm(name)
    correct = [np.arange(images) < round(accuracy * images) for accuracy in accuracies]
    labels = np.arange(images) % len(CLASSES)
    test = []
    for number, right in enumerate(correct):
        recalls = {name: float(right[labels == label].mean()) for label, name in enumerate(CLASSES)}
        per_class = {
            name: {"recall": recall, "images": int((labels == label).sum())}
            for label, (name, recall) in enumerate(recalls.items())
        }
        row = {"accuracy": float(right.mean()), "ece": 0.05 if ece is None else ece[number], "per_class": per_class}
        test.append({**row, "balanced_accuracy": 0.5, "macro_f1": 0.25, "auroc": None})
    return Outcome(
        arm=arm,
        units=list(units or [(0, seed) for seed in range(len(accuracies))]),
        validation=None if validation is None else list(validation),
        test=test,
        correct=correct,
        ratio=(4.0 if arm.uses_synthetic else 0.0) if ratio is None else ratio,
        labels=[labels] * len(accuracies),
    )
