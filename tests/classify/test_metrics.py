"""Measures of a classifier against scikit-learn and numbers by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from sklearn import metrics as reference
from torch import Tensor

from mvc.classify.metrics import measure
from mvc.errors import NumericError
from mvc.randomness import generator

CLASSES = ["ash", "birch", "cedar", "dill"]


def made_up(seed: int, images: int = 200, classes: int = 4, absent: int | None = None) -> tuple[Tensor, Tensor]:
    """Probabilities of a middling classifier, and labels."""
    drawn = generator(seed, "metrics")
    labels = torch.randint(0, classes, (images,), generator=drawn)
    if absent is not None:
        labels[labels == absent] = (absent + 1) % classes
    logits = torch.randn(images, classes, generator=drawn) + 1.5 * torch.eye(classes)[labels]
    return logits.softmax(dim=1), labels


def calibration_by_hand(probabilities: Tensor, labels: Tensor) -> float:
    """15 bins of equal width, the last one with its upper end."""
    top, predicted = probabilities.double().max(dim=1)
    bins = (top * 15).floor().clamp_max(14)
    total = 0.0
    for number in range(15):
        inside = bins == number
        if bool(inside.any()):
            right = float((predicted == labels)[inside].double().mean())
            total += abs(right - float(top[inside].mean())) * float(inside.double().mean())
    return total


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_against_scikit_learn(seed: int) -> None:
    shares, labels = made_up(seed)
    found, y, p = measure(shares, labels, CLASSES), labels.numpy(), shares.double().numpy()
    p /= p.sum(axis=1, keepdims=True)
    predicted = p.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(y, predicted))
    assert found["balanced_accuracy"] == pytest.approx(reference.balanced_accuracy_score(y, predicted))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(y, predicted, average="macro"))
    assert found["auroc"] == pytest.approx(reference.roc_auc_score(y, p, multi_class="ovr", average="macro"), abs=1e-6)
    assert found["nll"] == pytest.approx(reference.log_loss(y, p), abs=1e-6)
    assert found["ece"] == pytest.approx(calibration_by_hand(shares, labels), abs=1e-6)
    assert found["confusion"] == reference.confusion_matrix(y, predicted).tolist()
    precision, recall, f1, images = reference.precision_recall_fscore_support(y, predicted)
    for number, name in enumerate(CLASSES):
        own = found["per_class"][name]
        assert (own["precision"], own["recall"]) == pytest.approx((precision[number], recall[number]))
        assert own["f1"] == pytest.approx(f1[number]) and own["images"] == images[number]
        assert own["auroc"] == pytest.approx(reference.roc_auc_score(y == number, p[:, number]), abs=1e-6)


def test_a_class_that_is_absent_counts_nowhere() -> None:
    shares, labels = made_up(3, absent=2)
    found, y = measure(shares, labels, CLASSES), labels.numpy()
    predicted = shares.argmax(dim=1).numpy()
    present = [0, 1, 3]
    assert found["per_class"]["cedar"] == {
        "recall": None,
        "precision": 0.0,
        "f1": None,
        "auroc": None,
        "images": 0,
    }
    assert found["macro_f1"] == pytest.approx(reference.f1_score(y, predicted, labels=present, average="macro"))
    recalls = reference.recall_score(y, predicted, labels=present, average=None)
    assert found["balanced_accuracy"] == pytest.approx(np.mean(recalls))
    ranked = [reference.roc_auc_score(y == number, shares[:, number].numpy()) for number in present]
    assert found["auroc"] == pytest.approx(np.mean(ranked), abs=1e-6)
    assert found["confusion"][2] == [0, 0, 0, 0]


def test_a_class_that_is_never_predicted_has_f1_zero_and_no_precision() -> None:
    shares = torch.tensor([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.4, 0.35, 0.25]])
    found = measure(shares, torch.tensor([0, 0, 1, 2]), CLASSES[:3])
    # Classes 0: two of three predictions right, F1 2 * 2 / (2 + 3); 1: F1 1; 2: never predicted.
    assert found["per_class"]["cedar"] == {"recall": 0.0, "precision": None, "f1": 0.0, "auroc": 1.0, "images": 1}
    assert found["macro_f1"] == pytest.approx((0.8 + 1 + 0) / 3)
    assert found["balanced_accuracy"] == pytest.approx(2 / 3) and found["accuracy"] == 0.75
    assert found["nll"] == pytest.approx(-sum(map(math.log, (0.7, 0.6, 0.7, 0.25))) / 4)


def test_calibration_by_hand() -> None:
    # Bins of width 1/15: 0.9 and 0.92 share the fourteenth [0.867, 0.933), 0.6 and 0.65 the tenth [0.6, 0.667).
    top = torch.tensor([0.9, 0.92, 0.61, 0.65])
    found = measure(torch.stack([top, 1 - top], dim=1), torch.tensor([0, 1, 0, 0]), CLASSES[:2])
    assert found["ece"] == pytest.approx((abs(0.91 - 0.5) + abs(0.63 - 1.0)) / 2, abs=1e-6)


def test_a_probability_of_one_falls_into_the_last_bin() -> None:
    # Both in one bin: accuracy 1/2, mean 0.985. Bins of their own would give (0.03 + 1) / 2.
    found = measure(torch.tensor([[1.0, 0.0], [0.97, 0.03]]), torch.tensor([1, 0]), CLASSES[:2])
    assert found["ece"] == pytest.approx(0.985 - 0.5, abs=1e-6)


def test_all_right() -> None:
    found = measure(torch.eye(4), torch.arange(4), CLASSES)
    assert [found[key] for key in ("accuracy", "balanced_accuracy", "macro_f1", "auroc")] == [1.0, 1.0, 1.0, 1.0]
    assert found["ece"] == pytest.approx(0, abs=1e-6) and found["nll"] == 0
    assert found["confusion"] == torch.eye(4, dtype=torch.int64).tolist()


def test_one_image_has_no_ranking() -> None:
    found = measure(torch.tensor([[0.2, 0.8]]), torch.tensor([1]), CLASSES[:2])
    assert (found["accuracy"], found["balanced_accuracy"], found["auroc"]) == (1.0, 1.0, None)
    assert found["per_class"]["ash"]["recall"] is None and found["per_class"]["birch"]["auroc"] is None


def test_a_true_class_of_probability_zero_is_finite_and_all_is_json() -> None:
    found = measure(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 0]), CLASSES[:2])
    assert 40 < found["nll"] < 50 and found["per_class"]["ash"]["auroc"] == 0.5
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_probabilities_that_are_not_finite_are_refused() -> None:
    with pytest.raises(NumericError, match="a classifier gave probabilities that are not finite\ndo: lower"):
        measure(torch.tensor([[float("nan"), 0.5]]), torch.tensor([0]), CLASSES[:2])
