"""What an arm does to a batch, against MixGen's own function and hand computations, in one process and in parts."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mvc.clip.contrastive import clip_loss
from mvc.config_clip import MIXGENS, TECHNIQUES, TechniquesSection
from mvc.mixgen import mixgen
from mvc.multimodal.policies import Policy
from mvc.randomness import generator, numpy_generator
from mvc.train.clip_batches import Look
from mvc.train.clip_techniques import Techniques
from tests.train.clip_runs import techniques

VARIANTS = [name for name in MIXGENS if name != "mixgen_embedding"]
SHARES = (0.25, 0.5, 0.75, 1.0)
STEPS = 5
FACTOR = torch.tensor(5.0)
BATCH = 8


def pictures(count: int, seed: int = 0) -> Tensor:
    return torch.rand(count, 3, 4, 4, generator=generator(seed, "pictures"))


def captions(count: int) -> list[str]:
    return [" ".join(f"{word}{row}" for word in ("a", "red", "cat", "sits")[: 2 + row % 3]) for row in range(count)]


def features(seed: int, count: int = BATCH) -> Tensor:
    return torch.randn(count, 5, generator=generator(seed, "features")).double().requires_grad_()


def cross_entropy(images: Tensor, texts: Tensor) -> Tensor:
    """The contrastive loss written out."""
    logits = FACTOR * F.normalize(images, dim=1) @ F.normalize(texts, dim=1).T
    rows, columns = logits.log_softmax(dim=1).diagonal(), logits.log_softmax(dim=0).diagonal()
    return -(rows.mean() + columns.mean()) / 2


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("arm", VARIANTS)
def test_a_whole_batch_is_mixed_as_by_mixgen(arm: str, share: float) -> None:
    own, images, texts = techniques(arm, BATCH, mixgen_share=share, mixgen_mix=0.7), pictures(BATCH), captions(BATCH)
    variant = arm.removeprefix("mixgen_") if arm != "mixgen" else "default"
    for step in range(STEPS):
        random = numpy_generator(0, "mixgen", step)
        expected = mixgen(images, texts, random, variant=variant, share=share, mix=0.7)
        assert own.places(step, 0, BATCH) == list(range(BATCH))
        found = own.mixed(step, images, texts, 0, BATCH)
        assert torch.equal(found[0], expected[0]) and found[1] == expected[1]
        assert variant == "b" or found[1] != texts


@settings(deadline=None, max_examples=80)
@given(
    arm=st.sampled_from(VARIANTS),
    share=st.sampled_from(SHARES),
    size=st.integers(2, 13),
    cut=st.integers(1, 12),
    step=st.integers(0, 50),
)
def test_parts_of_two_processes_are_the_rows_of_one(arm: str, share: float, size: int, cut: int, step: int) -> None:
    own, images, texts, cut = (
        techniques(arm, size, mixgen_share=share),
        pictures(size),
        captions(size),
        min(cut, size - 1),
    )
    whole_images, whole_texts = own.mixed(step, images, texts, 0, size)
    for low, high in ((0, cut), (cut, size)):
        places = own.places(step, low, high)
        assert places[: high - low] == list(range(low, high)) and len(set(places)) == len(places)
        found, said = own.mixed(step, images[places], [texts[place] for place in places], low, high)
        assert torch.equal(found, whole_images[low:high]) and said == whole_texts[low:high]


def test_a_process_asks_for_no_pairs_that_it_does_not_need() -> None:
    own = techniques("mixgen", BATCH, mixgen_share=0.25)  # rows 0 and 1 with partners 2 and 3
    assert own.places(0, 0, 2) == [0, 1, 2, 3] and own.places(0, 4, 8) == [4, 5, 6, 7]
    assert own.places(0, 1, 4) == [1, 2, 3]
    for arm in ("none", "mixup", "interpolation", "mixgen_embedding", "synchronised", "hard_negatives"):
        assert techniques(arm, BATCH).places(0, 0, 3) == [0, 1, 2]
        images, texts = techniques(arm, BATCH).mixed(0, pictures(3), captions(3), 0, 3)
        assert torch.equal(images, pictures(3)) and texts == captions(3)


def test_plans_change_from_step_to_step_and_with_the_seed() -> None:
    def plans(seed: int) -> list[float]:
        found = [techniques("mixgen_a", BATCH, seed).plan(step) for step in range(4)]
        return [float(plan.mix[0]) for plan in found if plan is not None]

    assert len(set(plans(0))) == 4 and plans(0) == plans(0) and set(plans(0)).isdisjoint(plans(1))
    assert techniques("mixup").plan(0) is None


def test_an_arm_decides_how_pairs_are_shown() -> None:
    settings = {"flip": 0.3, "degrees": 7.0, "operations": 3, "magnitude": 4}
    assert techniques("none", **settings).look(32, 0.9) == Look(0, 32, 0.9)
    assert techniques("mixgen+synchronised", **settings).look(32, 0.9) == Look(0, 32, 0.9, flip=0.3, degrees=7.0)
    assert techniques("policy", seed=2, **settings).look(16, 1.0) == Look(2, 16, 1.0, policy=Policy(3, 4))
    assert techniques("hard_negatives+mixup").mines and not techniques("mixup").mines


@pytest.mark.parametrize("arm", ["none", "synchronised", "policy", "hard_negatives", "mixgen"])
def test_without_mixed_features_the_loss_is_clips(arm: str) -> None:
    images, texts = features(1), features(2)
    found = techniques(arm, BATCH).objective(0)(images, texts, FACTOR)
    assert torch.equal(found, clip_loss(images, texts, FACTOR))
    torch.testing.assert_close(found, cross_entropy(images, texts))


def test_mixup_of_features_by_hand() -> None:
    images, texts = features(1), features(2)
    for step in range(STEPS):
        found = techniques("mixup", BATCH, mixup_alpha=0.6).objective(step)(images, texts, FACTOR)
        source = numpy_generator(0, "cross-modal mixup", step)
        order = source.permutation(BATCH).tolist()
        share = float(np.float32(source.beta(0.6, 0.6)))
        partner = {row: order[(place + 1) % BATCH] for place, row in enumerate(order)}
        mixed = []
        for values in (F.normalize(images, dim=1), F.normalize(texts, dim=1)):
            mixed.append(
                torch.stack([share * values[row] + (1 - share) * values[partner[row]] for row in range(BATCH)])
            )
        torch.testing.assert_close(found, cross_entropy(*mixed))


def test_interpolation_of_features_by_hand() -> None:
    images, texts = features(1), features(2)
    own = techniques("interpolation", BATCH, seed=3, interpolation_share=0.4)  # 3.2 new pairs, which is 3
    for step in (0, 4):
        found = own.objective(step)(images, texts, FACTOR)
        more: list[list[Tensor]] = [[], []]
        for number in range(step * 3, step * 3 + 3):
            source = numpy_generator(3, "latent interpolation", number)
            first = int(source.integers(BATCH))
            second = [row for row in range(BATCH) if row != first][int(source.integers(BATCH - 1))]
            t = float(np.float32(source.random()))
            for into, values in zip(more, (images, texts), strict=True):
                one, other = (F.normalize(values[row], dim=0) for row in (first, second))
                angle = torch.acos((one * other).sum())
                into.append((((1 - t) * angle).sin() * one + (t * angle).sin() * other) / angle.sin())  # Shoemake
        longer = [
            torch.cat([F.normalize(v, dim=1), torch.stack(new)]) for v, new in zip((images, texts), more, strict=True)
        ]
        torch.testing.assert_close(found, cross_entropy(*longer), rtol=1e-6, atol=1e-6)


def test_mixgen_of_features_by_hand() -> None:
    images, texts = features(1), features(2)
    found = techniques("mixgen_embedding", BATCH, mixgen_share=0.25, mixgen_mix=0.3).objective(0)(images, texts, FACTOR)
    unit, said = F.normalize(images, dim=1), F.normalize(texts, dim=1)
    mixed = torch.stack([0.3 * unit[0] + 0.7 * unit[2], 0.3 * unit[1] + 0.7 * unit[3], *unit[2:]])  # Eq. (2)
    joined = torch.stack([(said[0] + said[2]) / 2, (said[1] + said[3]) / 2, *said[2:]])
    torch.testing.assert_close(found, cross_entropy(mixed, joined))


def test_consistency_adds_cyclips_terms() -> None:
    images, texts = features(1), features(2)
    found = techniques("consistency", BATCH, consistency_weight=0.5).objective(0)(images, texts, FACTOR)
    unit, said = (F.normalize(values.detach(), dim=1) for values in (images, texts))
    cross = in_modal = 0.0
    for j in range(BATCH):
        for k in range(BATCH):
            cross += float((unit[j] @ said[k] - unit[k] @ said[j]) ** 2) / BATCH
            in_modal += float((unit[j] @ unit[k] - said[j] @ said[k]) ** 2) / BATCH
    assert found.item() == pytest.approx(cross_entropy(images, texts).item() + 0.5 * (cross + in_modal), rel=1e-6)


@pytest.mark.parametrize("arm", ["none", *TECHNIQUES, "mixup+consistency", "mixgen_embedding+consistency"])
def test_gradients_are_finite_and_reach_every_pair(arm: str) -> None:
    own = Techniques(arm, TechniquesSection(), 0, BATCH)
    for kind in ("any", "equal rows"):
        images, texts = (features(seed).float().detach().clone() for seed in (1, 2))
        if kind == "equal rows":
            images[1], texts[1] = images[0], texts[0]
        scale = torch.tensor(math.log(20)).requires_grad_()
        images, texts = images.requires_grad_(), texts.requires_grad_()
        loss = own.objective(2)(images, texts, scale.exp())
        assert loss.dtype == torch.float32
        found = torch.autograd.grad(loss, [images, texts, scale])
        assert all(bool(gradient.isfinite().all()) for gradient in found) and float(found[2].abs()) > 0
        assert all(bool((gradient.abs().sum(dim=1) > 0).all()) for gradient in found[:2])


def test_the_loss_of_a_mixed_batch_depends_on_seed_and_step_alone() -> None:
    images, texts = features(1), features(2)
    for arm in ("mixup", "interpolation"):
        losses = [techniques(arm, BATCH).objective(step)(images, texts, FACTOR).item() for step in (0, 1, 0)]
        assert losses[0] == losses[2] != losses[1]
        assert techniques(arm, BATCH, seed=1).objective(0)(images, texts, FACTOR).item() != losses[0]
