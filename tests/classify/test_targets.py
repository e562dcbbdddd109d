"""Soft labels and weights against hand-made rows and torch's own cross entropy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from mvc.classify.strategies import Mix, slots
from mvc.classify.targets import class_weights, targets


def loss_of(rows: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return -(rows * torch.log_softmax(logits, 1)).sum(1).mean()


def test_rows_by_hand() -> None:
    rows = targets(
        torch.tensor([0, 3, 3]),
        np.array([1.0, 0.5, 1.5], dtype=np.float32),
        np.array([False, False, True]),
        4,
        label_smoothing=0.2,
        synthetic_label_smoothing=0.4,
        class_weights=torch.tensor([2.0, 1.0, 1.0, 0.5]),
    )
    # Real: 1 - 0.2 + 0.05 and 0.05; synthetic: 1 - 0.4 + 0.1 and 0.1; times 2, 0.25, 0.75.
    expected = [[1.7, 0.1, 0.1, 0.1], [0.0125, 0.0125, 0.0125, 0.2125], [0.075, 0.075, 0.075, 0.525]]
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows, torch.tensor(expected))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_loss_is_that_of_torch_with_the_same_label_smoothing(smoothing: float) -> None:
    drawn = torch.Generator().manual_seed(0)
    labels, logits = torch.randint(5, (32,), generator=drawn), torch.randn(32, 5, generator=drawn)
    rows = targets(labels, torch.ones(32), torch.zeros(32, dtype=torch.bool), 5, smoothing, 0.0, None)
    expected = cross_entropy(logits, labels, label_smoothing=smoothing)
    torch.testing.assert_close(loss_of(rows, logits), expected)


def test_synthetic_label_smoothing_counts_only_where_it_is_larger() -> None:
    labels, ones, made = torch.tensor([1, 1]), torch.ones(2), torch.tensor([False, True])
    smaller = targets(labels, ones, made, 2, 0.3, 0.1, None)
    torch.testing.assert_close(smaller, torch.tensor([[0.15, 0.85], [0.15, 0.85]]))
    larger = targets(labels, ones, made, 2, 0.1, 0.3, None)
    torch.testing.assert_close(larger, torch.tensor([[0.05, 0.95], [0.15, 0.85]]))


def test_rows_add_up_to_their_weights() -> None:
    drawn = torch.Generator().manual_seed(1)
    labels = torch.randint(7, (64,), generator=drawn)
    weights = torch.rand(64, generator=drawn) + 0.1
    per_class = torch.rand(7, generator=drawn)
    rows = targets(labels, weights, torch.arange(64) % 2 == 0, 7, 0.05, 0.2, per_class)
    torch.testing.assert_close(rows.sum(1), weights * per_class[labels])
    assert torch.equal(rows.argmax(1), labels)


def test_weighted_batch_gives_real_images_their_share_of_the_loss() -> None:
    mix = Mix("weighted", 4, 10, np.arange(6) % 3, np.arange(9) % 3, real_weight=0.7)
    drawn = slots(mix, 0, 2)
    labels = np.concatenate([mix.real_labels, mix.synthetic_labels])[drawn.indices]
    made = drawn.indices >= 6
    rows = targets(labels, drawn.weights, made, 3, 0.1, 0.2, None)
    assert rows[torch.from_numpy(~made)].sum().item() / 10 == pytest.approx(0.7)
    assert rows.sum().item() / 10 == pytest.approx(1.0)


def test_class_weights_are_inverse_to_the_counts_with_mean_one_over_the_images() -> None:
    labels = np.array([0] * 6 + [1] * 3 + [2])
    weights = class_weights(labels, 3)
    # n / (C n_c): 10/18, 10/9, 10/3.
    torch.testing.assert_close(weights, torch.tensor([5 / 9, 10 / 9, 10 / 3]))
    assert weights[labels].mean().item() == pytest.approx(1.0)
    assert torch.equal(class_weights(torch.from_numpy(labels), 3), weights)


def test_equal_classes_have_weight_one() -> None:
    assert torch.equal(class_weights(np.arange(12) % 4, 4), torch.ones(4))


def test_class_without_real_images_has_the_weight_of_the_rarest_one() -> None:
    weights = class_weights(np.array([0, 0, 0, 2]), 4)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0, 2.0, 2.0]))
