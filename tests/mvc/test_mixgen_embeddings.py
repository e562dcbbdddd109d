"""MixGen of features: Eq. (2) by hand, masks, gradients to both partners, and refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mvc.mixgen_embeddings import join_text_features, mean_text_features, mix_image_features
from mvc.mixgen_plan import MixGenPlan, plan_mixgen
from mvc.randomness import generator, numpy_generator


def plan_of(rows: int, variant: str = "default", share: float = 0.25, mix: float = 0.5) -> MixGenPlan:
    return plan_mixgen(rows, numpy_generator(2, "mixgen", 0), variant, share, mix)


def features(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(0, "test features", *shape))


@pytest.mark.parametrize("shape", [(8, 5), (8, 4, 5)])
@pytest.mark.parametrize(("variant", "share"), [("default", 0.25), ("a", 1.0), ("default", 0.0)])
def test_image_features_are_interpolated(shape: tuple[int, ...], variant: str, share: float) -> None:
    plan, own = plan_of(8, variant, share, 0.3), features(*shape)
    found = mix_image_features(plan, own)
    for row in range(8):
        wanted = own[row]
        if row < len(plan):
            mix = float(plan.mix[row])
            wanted = mix * own[row] + (1 - mix) * own[int(plan.partner[row])]
        torch.testing.assert_close(found[row], wanted)
    assert torch.equal(found[len(plan) :], own[len(plan) :])


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("as_lengths", [False, True])
def test_text_features_are_joined_with_their_masks(as_lengths: bool, share: float) -> None:
    plan, own, lengths = plan_of(4, share=share), features(4, 3, 5), torch.tensor([3, 1, 2, 0])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]])
    found, there = join_text_features(plan, own, lengths if as_lengths else mask)
    assert found.shape == (4, 6, 5) and there.shape == (4, 6) and there.dtype == torch.bool
    for row in range(4):
        assert torch.equal(found[row, :3], own[row]) and torch.equal(there[row, :3], mask[row].bool())
        if row < len(plan):
            partner = int(plan.partner[row])
            assert torch.equal(found[row, 3:], own[partner]) and torch.equal(there[row, 3:], mask[partner].bool())
        else:
            assert not found[row, 3:].any() and not there[row, 3:].any()


def test_pooled_texts_are_the_mean_and_that_is_the_mean_of_the_concatenation() -> None:
    plan, own = plan_of(8, "a", 0.5), features(8, 6, 5)
    pooled = mean_text_features(plan, own.mean(dim=1))
    for row in range(4):
        torch.testing.assert_close(pooled[row], (own[row].mean(dim=0) + own[row + 4].mean(dim=0)) / 2)
    joined, there = join_text_features(plan, own, torch.full((8,), 6))
    torch.testing.assert_close((joined * there[..., None]).sum(dim=1) / there.sum(dim=1, keepdim=True), pooled)
    assert torch.equal(pooled[4:], own.mean(dim=1)[4:])


def test_padding_of_unmixed_rows_is_not_seen_by_attention() -> None:
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    plan, own, mask = plan_of(4), features(4, 3, 8), torch.tensor([3, 2, 3, 1])
    with torch.no_grad():
        there = torch.arange(3) < mask[:, None]
        plain = attention(own, own, own, key_padding_mask=~there)[0]
        joined, both = join_text_features(plan, own, mask)
        found = attention(joined, joined, joined, key_padding_mask=~both)[0]
    torch.testing.assert_close(found[1:, :3], plain[1:])
    assert (found[0, :3] - plain[0]).abs().max() > 1e-3


def test_gradients_flow_to_both_partners() -> None:
    plan = plan_of(4, mix=0.3)  # row 0 with row 1
    images, texts, pooled = (features(*shape).requires_grad_() for shape in ((4, 5), (4, 3, 5), (4, 5)))
    mix_image_features(plan, images)[0].sum().backward()
    join_text_features(plan, texts, torch.tensor([3, 3, 3, 3]))[0][0].sum().backward()
    mean_text_features(plan, pooled)[0].sum().backward()
    for leaf, weights in ((images, [0.3, 0.7, 0, 0]), (texts, [1.0, 1, 0, 0]), (pooled, [0.5, 0.5, 0, 0])):
        assert leaf.grad is not None
        wanted = torch.tensor(weights).view(-1, *[1] * (leaf.dim() - 1)).expand_as(leaf)
        torch.testing.assert_close(leaf.grad, wanted)


LENGTHS = torch.tensor([1, 2, 3, 3])
REFUSED: list[tuple[Any, tuple[Any, ...], str]] = [
    (mix_image_features, (plan_of(4, "b"), features(4, 5)), r"variant 'b' of MixGen is of words and images"),
    (mean_text_features, (plan_of(4, "e"), features(4, 5)), r"variant 'e' .* one of default, a"),
    (join_text_features, (plan_of(4, "d"), features(4, 3, 5), LENGTHS), "variant 'd'"),
    (mix_image_features, (plan_of(4), features(3, 5)), "a batch of 4 pairs, and there are 3 rows of image features"),
    (mix_image_features, (plan_of(4), features(4)), r"torch.float32 tensor of shape \(4,\): give floats, 2 dimensions"),
    (mean_text_features, (plan_of(4), features(4, 5).long()), "torch.int64 tensor"),
    (join_text_features, (plan_of(4), features(4, 5), LENGTHS), r"shape \(4, 5\): give floats, 3 dimensions"),
    (join_text_features, (plan_of(4), features(4, 3, 5), LENGTHS + 1), "lengths go from 2 to 4, outside 0 to 3"),
    (
        join_text_features,
        (plan_of(4), features(4, 3, 5), torch.ones(4, 2)),
        r"shape \(4, 2\): give \(4, 3\), or \(4,\)",
    ),
    (join_text_features, (plan_of(4), features(4, 3, 5), torch.ones(4)), r"torch.float32 tensor of shape \(4,\)"),
]


@pytest.mark.parametrize(("function", "arguments", "message"), REFUSED)
def test_wrong_features_are_named(function: Any, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        function(*arguments)
