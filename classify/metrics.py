"""How good a classifier's probabilities are on labelled images: one dict of plain numbers, ready for JSON.

The definitions are pinned here, because libraries differ where a class has no image or is never predicted:

- Accuracy, recall, precision, F1 and the confusion matrix are of the class with the largest probability.
- Balanced accuracy and macro F1 are means over the classes that have images. A class that is never predicted has F1 0.
- AUROC is one class against the rest, its mean over the classes that have both images and other images.
- ECE has 15 bins of equal width on [0, 1] of the largest probability, the last one with its upper end, weighted by
  images: Guo et al. 2017, "On Calibration of Modern Neural Networks".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mvc.errors import NumericError

CALIBRATION_BINS = 15
_BELOW_ONE = 1.0 - 2.0**-24
"""The largest float32 below 1: torchmetrics would give a probability of exactly 1 a bin of its own."""
_SMALLEST = torch.finfo(torch.float32).tiny


def measure(probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Measure a classifier on labelled images.

    Args:
        probabilities: (n, C) floats in [0, 1], rows that add up to 1; n at least 1.
        labels: (n,) integers in [0, C).
        classes: C names.

    Returns:
        accuracy, balanced_accuracy, macro_f1, auroc, ece (shares), nll (mean negative log-likelihood, nats),
        per_class {name: {recall, precision, f1, auroc, images}}, and confusion, C rows of true classes with C counts
        of predicted ones. None where a number is undefined: recall and F1 of a class without images, precision of a
        class that is never predicted, AUROC where there is nothing to rank.

    Raises:
        NumericError: a probability is not finite.
    """
    from torchmetrics.functional import classification

    probabilities, labels = probabilities.detach().float().cpu(), labels.to("cpu", torch.int64)
    if not bool(torch.isfinite(probabilities).all()):
        raise NumericError("a classifier gave probabilities that are not finite", do="lower classify.learning_rate")
    count = len(classes)
    confusion = classification.multiclass_confusion_matrix(probabilities, labels, num_classes=count)
    per_class = {
        name: {**_of_class(confusion, number), "auroc": _auroc(probabilities[:, number], labels == number)}
        for number, name in enumerate(classes)
    }
    calibration = classification.multiclass_calibration_error(
        probabilities.clamp_max(_BELOW_ONE), labels, num_classes=count, n_bins=CALIBRATION_BINS, norm="l1"
    )
    likely = probabilities.gather(1, labels[:, None]).clamp_min(_SMALLEST)
    return {
        "accuracy": float(confusion.trace() / confusion.sum()),
        "balanced_accuracy": _mean([row["recall"] for row in per_class.values()]),
        "macro_f1": _mean([row["f1"] for row in per_class.values()]),
        "auroc": _mean([row["auroc"] for row in per_class.values()]),
        "ece": float(calibration),
        "nll": float(-likely.log().double().mean()),
        "per_class": per_class,
        "confusion": confusion.tolist(),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _of_class(confusion: Tensor, number: int) -> dict[str, Any]:
    right = int(confusion[number, number])
    images, predicted = int(confusion[number].sum()), int(confusion[:, number].sum())
    return {
        "recall": right / images if images else None,
        "precision": right / predicted if predicted else None,
        "f1": 2 * right / (images + predicted) if images else None,
        "images": images,
    }


def _auroc(scores: Tensor, positive: Tensor) -> float | None:
    from torchmetrics.functional import classification

    if bool(positive.all()) or not bool(positive.any()):
        return None  # nothing to rank; torchmetrics would warn and say 0
    return float(classification.binary_auroc(scores, positive.long()))
