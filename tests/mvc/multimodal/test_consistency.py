"""Consistency losses against closed forms and sums, their gradients, and what they do to a model that is trained."""

from __future__ import annotations

from collections.abc import Callable
from math import log
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy
from torch import Tensor, nn

from mvc.multimodal.consistency import (
    cross_modal_geometry,
    feature_distance,
    in_modal_geometry,
    jensen_shannon,
    symmetric_kl,
)

PAGE = Path(__file__).resolve().parents[3] / "docs/multimodal/consistency.md"
Loss = Callable[[Tensor, Tensor], Tensor]
PREDICTIONS: list[Loss] = [symmetric_kl, jensen_shannon]
PAIRED: list[Loss] = [*PREDICTIONS, feature_distance]
ALL: list[Loss] = [*PAIRED, cross_modal_geometry, in_modal_geometry]


def two(rows: int = 5, columns: int = 4, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    drawn = scale * torch.randn(2, rows, columns, generator=random, dtype=torch.float64)
    return drawn[0], drawn[1]


@pytest.mark.parametrize("loss", ALL)
@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.01, 30), rows=st.integers(1, 6))
def test_losses_are_0_for_equal_inputs_above_it_for_others_and_symmetric(
    loss: Loss, seed: int, scale: float, rows: int
) -> None:
    one, other = two(rows, scale=scale, seed=seed)
    assert abs(loss(one, one).item()) < 1e-12 and abs(loss(one.float(), one.float()).item()) < 1e-6
    found = loss(one, other).item()
    assert found == pytest.approx(loss(other, one).item(), rel=1e-9, abs=1e-12) and found >= 0
    # One pair has the same angle to itself in both modalities, and a table of one row is its own transpose.
    assert found > 0 or (rows == 1 and loss in (cross_modal_geometry, in_modal_geometry))


@pytest.mark.parametrize("loss", ALL)
def test_gradients(loss: Loss) -> None:
    one, other = (values.requires_grad_() for values in two())
    assert torch.autograd.gradcheck(loss, (one, other))
    same = one.detach().clone().requires_grad_()
    loss(same, one.detach()).backward()
    assert same.grad is not None and same.grad.abs().max() < 1e-12  # the least value is at equality


def test_divergences_against_scipy() -> None:
    one, other = two(6, 5, 2.0)
    pairs = list(zip(one.softmax(1).numpy(), other.softmax(1).numpy(), strict=True))
    both = [(entropy(p, q) + entropy(q, p)) / 2 for p, q in pairs]
    assert symmetric_kl(one, other).item() == pytest.approx(np.mean(both))
    squared = [jensenshannon(p, q) ** 2 for p, q in pairs]
    assert jensen_shannon(one, other).item() == pytest.approx(np.mean(squared))


def test_divergences_in_closed_form() -> None:
    """Of p = (s, 1 - s) and q = (1 - s, s): the symmetric KL is (2 s - 1) times the logit."""
    logit = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    share = 1 / (1 + float(np.exp(-2)))
    assert symmetric_kl(*logit).item() == pytest.approx((2 * share - 1) * 2, rel=1e-5)
    halves = share * log(share) + (1 - share) * log(1 - share) + log(2)
    assert jensen_shannon(*logit).item() == pytest.approx(halves, rel=1e-5)
    # Sure of different classes: no more than ln 2, but the KL grows with the logits.
    certain = torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]])
    assert jensen_shannon(*certain).item() == pytest.approx(log(2), rel=1e-6)
    assert symmetric_kl(*certain).item() == pytest.approx(500, rel=1e-6)
    # A constant added to the logits changes no prediction.
    assert symmetric_kl(logit[0], logit[0] + 7).item() == pytest.approx(0, abs=1e-6)


def test_the_distance_of_features_is_that_of_their_angle() -> None:
    angle = torch.linspace(0, torch.pi, 7, dtype=torch.float64)
    one = torch.tensor([[3.0, 0.0]], dtype=torch.float64).expand(7, 2)
    other = 0.1 * torch.stack([angle.cos(), angle.sin()], dim=1)
    for row in range(7):
        found = feature_distance(one[row : row + 1], other[row : row + 1]).item()
        assert found == pytest.approx(2 - 2 * float(angle[row].cos()), abs=1e-12)
    first, second = two()
    cosines = torch.cosine_similarity(first, second)
    assert feature_distance(first, second).item() == pytest.approx(float((2 - 2 * cosines).mean()))
    assert feature_distance(torch.zeros(2, 3), torch.zeros(2, 3)).item() == 0


def test_geometry_against_its_sums() -> None:
    images, texts = two(4, 6)
    one, other = (values / values.norm(dim=1, keepdim=True) for values in (images, texts))
    cross = inside = 0.0
    for j in range(4):
        for k in range(4):
            cross += float(one[j] @ other[k] - one[k] @ other[j]) ** 2 / 16
            inside += float(one[j] @ one[k] - other[j] @ other[k]) ** 2 / 16
    assert cross_modal_geometry(images, texts).item() == pytest.approx(cross)
    assert in_modal_geometry(images, texts).item() == pytest.approx(inside)


def test_geometry_is_blind_to_a_rotation_of_one_space() -> None:
    """Within modalities angles alone count, whatever the width; a reflection leaves the cross table symmetric."""
    images, texts = two(4, 6)
    turned = torch.linalg.qr(texts.new_tensor(np.random.default_rng(0).standard_normal((6, 6)))).Q
    assert in_modal_geometry(images, images @ turned).item() == pytest.approx(0, abs=1e-12)
    wider = torch.cat([images, torch.zeros(4, 3, dtype=torch.float64)], dim=1)
    assert in_modal_geometry(images, wider).item() == pytest.approx(0, abs=1e-12)
    assert cross_modal_geometry(images, -images).item() == pytest.approx(0, abs=1e-12)
    assert cross_modal_geometry(images, images @ turned).item() > 0.01


def test_half_precision_is_computed_in_float32() -> None:
    one, other = (values.bfloat16() for values in two())
    for loss in ALL:
        found = loss(one, other)
        assert found.dtype == torch.float32 and found.shape == ()
        assert found.item() == pytest.approx(loss(one.double(), other.double()).item(), rel=1e-4)


@pytest.mark.parametrize("loss", PREDICTIONS)
def test_two_heads_come_to_agree_on_what_only_one_was_taught(loss: Loss) -> None:
    """Only images have labels; by consistency the head of the texts learns them too."""
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(20)
    images, texts = (torch.randn(3, 6, generator=random)[labels] for _ in range(2))
    heads = nn.ModuleList([nn.Linear(6, 3), nn.Linear(6, 3)])
    for number, parameter in enumerate(heads.parameters()):
        nn.init.normal_(parameter, std=0.1, generator=torch.Generator().manual_seed(number))
    optimizer = torch.optim.Adam(heads.parameters(), lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        one, other = heads[0](images), heads[1](texts)
        (nn.functional.cross_entropy(one, labels) + loss(one, other)).backward()
        optimizer.step()
    assert (heads[1](texts).argmax(1) == labels).float().mean() == 1


def test_wrong_arguments_are_named() -> None:
    one, other = two()
    for loss in PAIRED:
        with pytest.raises(ValueError, match=r"are \(5, 4\) and \(4, 4\), not of one shape \(B, n\)"):
            loss(one, other[:4])
        with pytest.raises(ValueError, match=r"are \(0, 4\) and \(0, 4\)"):
            loss(one[:0], other[:0])
        with pytest.raises(ValueError, match="of torch.int64 are no floating-point numbers"):
            loss(one.long(), other.long())
    with pytest.raises(ValueError, match=r"features are \(5, 4\) and \(5, 3\)"):
        cross_modal_geometry(one, other[:, :3])
    with pytest.raises(ValueError, match=r"features are \(5, 4\) and \(4, 4\), not of B pairs each"):
        in_modal_geometry(one, other[:4])
    assert in_modal_geometry(one, other[:, :3]).item() > 0
