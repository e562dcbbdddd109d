"""Cross-modal mixup against closed forms: one lambda for both modalities, its law, and the targets that follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mvc.multimodal.mixup import (
    Mixture,
    contrastive_targets,
    draw_mixture,
    hard_targets,
    mix,
    mix_masks,
    mix_pairs,
    soft_contrastive_loss,
    soft_targets,
)
from mvc.tiny.clip import contrastive_loss

PAGE = Path(__file__).resolve().parents[3] / "docs/multimodal/mixup.md"
RING = torch.tensor([1, 2, 3, 0])


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixture(*shares: float) -> Mixture:
    return Mixture(RING, torch.tensor(shares))


@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 7, 5), (4, 5)])
def test_a_mixture_is_the_closed_form_row_by_row(shape: tuple[int, ...]) -> None:
    values, own = random(*shape), mixture(0.9, 0.25, 0.5, 0.0)
    mixed = mix(values, own)
    for row, (partner, share) in enumerate(zip(own.partner.tolist(), own.share.tolist(), strict=True)):
        torch.testing.assert_close(mixed[row], share * values[row] + (1 - share) * values[partner])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_shares_of_0_a_half_and_1_are_exact(dtype: torch.dtype) -> None:
    values = random(4, 3, 8).to(dtype)
    kept = values.clone()
    assert torch.equal(mix(values, mixture(1, 1, 1, 1)), values)
    assert torch.equal(mix(values, mixture(0, 0, 0, 0)), values[RING])
    torch.testing.assert_close(mix(values, mixture(0.5, 0.5, 0.5, 0.5)), (values + values[RING]) / 2)
    assert torch.equal(values, kept) and mix(values, mixture(0.3, 0.3, 0.3, 0.3)).dtype == dtype


def test_partners_are_taken_from_a_copy() -> None:
    """One after another in place, row 3 would get a row 0 that was mixed before."""
    values, own, in_place = random(4, 5), mixture(0.6, 0.6, 0.6, 0.6), random(4, 5)
    for row, partner in enumerate(RING.tolist()):
        in_place[row] = 0.6 * in_place[row] + 0.4 * in_place[partner]
    assert (mix(values, own)[3] - in_place[3]).abs().max() > 0.1
    torch.testing.assert_close(mix(values, own)[3], 0.6 * values[3] + 0.4 * values[0])


def test_both_modalities_share_one_lambda_and_partner() -> None:
    """Through any linear encoder, mixed inputs give the mixture of the features: input and embedding level agree."""
    images, texts, own = random(4, 3, 4, 4), random(4, 6, 5, seed=1), draw_mixture(4, 0.7, 0, 3, per_pair=True)
    pairs = mix_pairs(images, texts, own)
    encode_image, encode_text = random(48, 5, seed=2), random(30, 5, seed=3)
    mixed = mix_pairs(images.flatten(1) @ encode_image, texts.flatten(1) @ encode_text, own)
    torch.testing.assert_close(pairs.images.flatten(1) @ encode_image, mixed.images)
    torch.testing.assert_close(pairs.texts.flatten(1) @ encode_text, mixed.texts)
    # The same numbers as both modalities come back as the same mixture of them.
    twice = mix_pairs(images, images, own)
    assert torch.equal(twice.images, twice.texts) and twice.attention_mask is None


def test_token_ids_and_uint8_images_are_refused() -> None:
    ids, levels = torch.randint(0, 700, (4, 77)), torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"values of torch.int64 cannot be mixed: token ids have to be embedded first"):
        mix_pairs(random(4, 3, 8, 8), ids, mixture(0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"values of torch.uint8 cannot be mixed"):
        mix(levels, mixture(0.5, 0.5, 0.5, 0.5))


def test_a_mixed_text_attends_to_tokens_of_all_that_have_a_share_in_it() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]])
    found = mix_pairs(random(4, 2), random(4, 4, 3), mixture(0.5, 1.0, 0.0, 0.2), mask).attention_mask
    wanted = torch.tensor([[1, 1, 1, 0], [1, 0, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]]).bool()
    assert found is not None and torch.equal(found, wanted)
    with pytest.raises(ValueError, match=r"attention_mask of shape \(3, 4\) have not the 4 rows"):
        mix_masks(mask[:3], mixture(0.5, 0.5, 0.5, 0.5))


@pytest.mark.parametrize("value", [1.5, -0.25, float("nan")])
def test_a_lambda_outside_0_to_1_is_named(value: float) -> None:
    with pytest.raises(ValueError, match=rf"share {value:g} is outside \[0, 1\]"):
        mixture(0.5, 0.5, value, 0.5)


def test_other_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="partner 4 is no row of a batch of 4"):
        Mixture(RING + 1, torch.zeros(4))
    with pytest.raises(ValueError, match=r"partner has the shape \(4,\) and share \(3,\)"):
        Mixture(RING, torch.zeros(3))
    with pytest.raises(ValueError, match=r"shape \(5, 2\) have not the 4 rows"):
        mix(random(5, 2), mixture(0.5, 0.5, 0.5, 0.5))
    for alpha in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"alpha {alpha:g} is no number above 0"):
            draw_mixture(4, alpha, 0, 0)
    with pytest.raises(ValueError, match="a batch of 0 pairs"):
        draw_mixture(0, 1.0, 0, 0)
    with pytest.raises(ValueError, match="label 3 is none of 3 classes"):
        soft_targets(torch.tensor([0, 1, 2, 3]), 3, mixture(0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match="label -1 is none of 3 classes"):
        soft_targets(torch.tensor([0, 1, 2, -1]), 3, mixture(0.5, 0.5, 0.5, 0.5))
    with pytest.raises(ValueError, match=r"logits are \(4, 5\) and targets \(4, 4\), not both \(B, B\)"):
        soft_contrastive_loss(random(4, 5), torch.eye(4))


@settings(deadline=None, max_examples=40)
@given(count=st.integers(1, 40), step=st.integers(0, 1000), per_pair=st.booleans())
def test_partners_are_one_ring_and_draws_repeat(count: int, step: int, per_pair: bool) -> None:
    before = torch.get_rng_state()
    own, again = (draw_mixture(count, 0.4, 7, step, per_pair) for _ in range(2))
    assert torch.equal(own.partner, again.partner) and torch.equal(own.share, again.share)
    assert torch.equal(torch.get_rng_state(), before)
    place, seen = 0, set()
    for _ in range(count):
        seen.add(place)
        place = int(own.partner[place])
    assert place == 0 and len(seen) == count  # so for 3 or more none is its own partner, nor are two each other's
    assert per_pair or own.share.unique().numel() == 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_follow_the_beta_law(alpha: float) -> None:
    """Mean 1/2 and variance 1 / (4 (2 alpha + 1))."""
    variance = 1 / (4 * (2 * alpha + 1))
    drawn = {
        "batch": torch.cat([draw_mixture(1, alpha, 0, step).share for step in range(2000)]),
        "pair": torch.cat([draw_mixture(100, alpha, 1, step, per_pair=True).share for step in range(20)]),
    }
    for shares in drawn.values():
        assert abs(shares.mean().item() - 0.5) < 4 * (variance / 2000) ** 0.5
        assert shares.var().item() == pytest.approx(variance, rel=0.1)


def test_class_targets_soft_and_hard() -> None:
    labels, own = torch.tensor([0, 2, 1, 2]), mixture(0.9, 0.25, 0.5, 0.0)
    soft = soft_targets(labels, 3, own)
    wanted = [[0.9, 0, 0.1], [0, 0.75, 0.25], [0, 0.5, 0.5], [1, 0, 0]]
    torch.testing.assert_close(soft, torch.tensor(wanted))
    torch.testing.assert_close(soft.sum(1), torch.ones(4))
    assert hard_targets(labels, own).tolist() == [0, 1, 1, 0]  # at a half its own
    assert soft_targets(torch.tensor([1, 1, 1, 1]), 2, own).tolist() == [[0, 1]] * 4


def test_contrastive_targets_say_which_text_is_in_which_image() -> None:
    own = mixture(0.9, 0.25, 0.5, 0.0)
    one_mixed = contrastive_targets(own, both_mixed=False)
    wanted = [[0.9, 0.1, 0, 0], [0, 0.25, 0.75, 0], [0, 0, 0.5, 0.5], [1, 0, 0, 0]]
    torch.testing.assert_close(one_mixed, torch.tensor(wanted))
    torch.testing.assert_close(one_mixed.sum(1), torch.ones(4))
    assert torch.equal(contrastive_targets(own, both_mixed=True), torch.eye(4))
    alone = Mixture(torch.tensor([0, 1]), torch.tensor([0.3, 1.0]))
    torch.testing.assert_close(contrastive_targets(alone, both_mixed=False), torch.eye(2))
    # With one share and a ring, columns add up to 1 as well.
    ring = contrastive_targets(draw_mixture(9, 1.0, 0, 0), both_mixed=False)
    torch.testing.assert_close(ring.sum(0), torch.ones(9))


def test_contrastive_targets_are_the_similarities_of_mixed_features() -> None:
    """Where pairs are orthonormal, a mixed image is as similar to each text as the targets say."""
    features, own = torch.linalg.qr(random(6, 6)).Q, draw_mixture(6, 0.5, 0, 0, per_pair=True)
    torch.testing.assert_close(mix(features, own) @ features.T, contrastive_targets(own, both_mixed=False))


def test_the_loss_of_unmixed_pairs_is_that_of_clip() -> None:
    logits = 3 * random(8, 8)
    torch.testing.assert_close(soft_contrastive_loss(logits, torch.eye(8)), contrastive_loss(logits))


def test_the_contrastive_loss_against_its_sum() -> None:
    logits, targets = 2 * random(4, 4), contrastive_targets(mixture(0.9, 0.25, 0.5, 0.0), both_mixed=False)
    total = 0.0
    for i in range(4):
        for k in range(4):
            by_row = logits[i, k] - logits[i].logsumexp(0)
            by_column = logits[i, k] - logits[:, k].logsumexp(0)
            total -= float(targets[i, k] * (by_row + by_column / targets[:, k].sum())) / 8
    assert soft_contrastive_loss(logits, targets).item() == pytest.approx(total, rel=1e-5)


def test_the_loss_is_least_at_its_targets_and_a_text_in_no_image_adds_nothing() -> None:
    own = Mixture(torch.tensor([1, 0]), torch.tensor([0.5, 0.5]))
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = soft_contrastive_loss(logits, contrastive_targets(own, both_mixed=False))
    loss.backward()
    assert loss.item() == pytest.approx(0.693147, abs=1e-5) and logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.zeros(2, 2))
    # Both images are text 0, so text 1 is in none: its column has no weight.
    gone = contrastive_targets(Mixture(torch.tensor([1, 0]), torch.tensor([1.0, 0.0])), both_mixed=False)
    assert gone.tolist() == [[1, 0], [1, 0]]
    found = soft_contrastive_loss(random(2, 2), gone)
    rows, column = random(2, 2).log_softmax(1)[:, 0], random(2, 2).log_softmax(0)[:, 0]
    assert found.item() == pytest.approx(-(float(rows.mean()) + float(column.mean()) / 2) / 2, rel=1e-5)


def test_mixing_trains_both_encoders() -> None:
    """The gradient reaches the encoders of both modalities through a mixed batch."""
    own, towers = draw_mixture(4, 1.0, 0, 0), [random(8, 3).requires_grad_(), random(6, 3).requires_grad_()]
    mixed = mix_pairs(random(4, 8) @ towers[0], random(4, 6, seed=1) @ towers[1], own)
    images, texts = F.normalize(mixed.images, dim=1), F.normalize(mixed.texts, dim=1)
    soft_contrastive_loss(10 * images @ texts.T, contrastive_targets(own, both_mixed=True)).backward()
    assert all(tower.grad is not None and tower.grad.abs().max() > 0 for tower in towers)
