"""Transport plans against exact assignments and closed forms, alignment against permutations."""

from __future__ import annotations

import itertools
import re

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mvc.classify.alignmixup import align, aligned_blend, alignmixup, transport_plan
from mvc.classify.mixing import blend, own_share, partners
from mvc.classify.networks import build_network
from mvc.errors import ConfigError
from mvc.randomness import generator, numpy_generator


def small() -> nn.Module:
    return build_network("small", 3, 32, 0, torch.full((3,), 0.5), torch.full((3,), 0.25))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=generator(seed, "features"))


def kind(seed: int, step: int) -> tuple[bool, bool]:
    of_images, keep_own = numpy_generator(seed, "alignmixup kind", step).random(2) < 0.5
    return bool(of_images), bool(keep_own)


def step_of(of_images: bool, keep_own: bool) -> int:
    return next(step for step in itertools.count() if kind(0, step) == (of_images, keep_own))


def test_plan_has_uniform_marginals() -> None:
    plan = transport_plan(draw(5, 12, 12).abs())
    uniform = torch.full((5, 12), 1 / 12)
    assert torch.allclose(plan.sum(dim=2), uniform, atol=1e-6) and torch.allclose(plan.sum(dim=1), uniform, atol=1e-4)
    assert (plan >= 0).all()


def test_plan_of_two_places_has_its_closed_form() -> None:
    # With costs a on the diagonal and b beside it, the plan is exp(-cost / epsilon) scaled to marginals of 1/2.
    plan = transport_plan(torch.tensor([[[0.1, 0.3], [0.3, 0.1]]]), epsilon=0.2)
    ratio = torch.exp(torch.tensor((0.3 - 0.1) / 0.2))
    assert torch.allclose(plan[0, 0], torch.stack([ratio, torch.ones(())]) / (1 + ratio) / 2, atol=1e-6)


def test_plan_minimises_the_entropic_cost() -> None:
    # Moving mass around any square keeps the marginals: the objective's slope along it must be zero.
    cost, epsilon = draw(1, 6, 6).abs(), 0.5
    slope = (cost + epsilon * transport_plan(cost, epsilon, 500).log())[0].double()
    square = slope[:-1, :-1] - slope[:-1, 1:] - slope[1:, :-1] + slope[1:, 1:]
    assert torch.allclose(square, torch.zeros_like(square), atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_plan_becomes_the_best_assignment_as_epsilon_falls(seed: int) -> None:
    cost = torch.rand((4, 6, 6), generator=generator(seed, "costs"))
    plan = transport_plan(cost, epsilon=0.003, iterations=3000) * 6
    for one, assigned in zip(cost, plan, strict=True):
        rows, columns = linear_sum_assignment(one.numpy())
        assert (assigned * one).sum().item() == pytest.approx(one[rows, columns].sum().item(), abs=0.01)
        assert torch.equal(assigned.argmax(dim=1), torch.from_numpy(columns))


def test_alignment_with_itself_changes_nothing() -> None:
    features = draw(3, 16, 4, 4)
    assert torch.allclose(align(features, features, epsilon=0.01), features, atol=1e-4)


def test_alignment_undoes_a_permutation_of_places() -> None:
    features = draw(3, 16, 3, 5)
    order = torch.stack([torch.randperm(15, generator=generator(n, "order")) for n in range(3)])
    shuffled = features.flatten(2).gather(2, order[:, None].expand(3, 16, 15)).view_as(features)
    assert not torch.allclose(shuffled, features, atol=0.1)
    assert torch.allclose(align(features, shuffled, epsilon=0.01), features, atol=1e-4)


def test_alignment_moves_values_and_not_directions_alone() -> None:
    # Distances see directions only, so vectors of twice the length are matched alike and keep their length.
    features = draw(2, 16, 3, 3)
    assert torch.allclose(align(features, 2 * features.flip(3), epsilon=0.01), 2 * features, atol=1e-3)


def test_gradient_flows_through_the_values_alone() -> None:
    fixed, moving = draw(2, 8, 3, 3).requires_grad_(), draw(2, 8, 3, 3, seed=1).requires_grad_()
    align(fixed, moving).sum().backward()
    assert fixed.grad is None and moving.grad is not None
    # Rows of the assignment add up to 1, and so do the gradients over all places of a channel.
    assert torch.allclose(moving.grad.sum(dim=(2, 3)), torch.full((2, 8), 9.0), atol=1e-3)


def test_share_of_one_is_the_plain_pass() -> None:
    network, images = small(), torch.rand((6, 3, 32, 32), generator=generator(0, "images"))
    features = network.features(images)
    partner = partners(6, 0, 0)
    assert torch.equal(aligned_blend(features, partner, 1.0, keep_own=True), features)
    assert torch.allclose(network.head(aligned_blend(features, partner, 1.0, True)), network(images), atol=1e-6)
    assert torch.equal(aligned_blend(features, partner, 0.0, keep_own=False), features[partner])


def test_large_maps_are_averaged_to_eight_places_a_side() -> None:
    features = draw(2, 4, 32, 32)
    mixed = aligned_blend(features, torch.tensor([1, 0]), 1.0, keep_own=True)
    assert torch.allclose(mixed, nn.functional.avg_pool2d(features, 4), atol=1e-6)


@pytest.mark.parametrize("keep_own", [True, False])
def test_features_are_blended_by_the_drawn_share(keep_own: bool) -> None:
    step, network = step_of(False, keep_own), small()
    images = torch.rand((6, 3, 32, 32), generator=generator(0, "images"))
    targets = torch.eye(3).repeat(2, 1)
    logits, labels = alignmixup(network, images, targets, step, seed=0)
    features, partner, share = network.features(images), partners(6, 0, step), own_share(2.0, 0, step)
    other = features[partner]
    pair = (features, align(features, other)) if keep_own else (align(other, features), other)
    assert torch.allclose(logits, network.head(share * pair[0] + (1 - share) * pair[1]), atol=1e-5)
    assert torch.allclose(labels, share * targets + (1 - share) * targets[partner], atol=1e-6)
    logits.sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


def test_half_of_the_batches_mix_images() -> None:
    drawn = [kind(0, step) for step in range(2000)]
    assert 900 < sum(of_images for of_images, _ in drawn) < 1100
    step = step_of(True, True)
    network, images, targets = small(), torch.rand((6, 3, 32, 32), generator=generator(0, "images")), torch.eye(6, 3)
    share, partner = own_share(2.0, 0, step), partners(6, 0, step)
    logits, _ = alignmixup(network, images, targets, step, seed=0)
    assert torch.allclose(logits, network(blend(images, images[partner], share)), atol=1e-6)


def test_half_precision_features_keep_their_type() -> None:
    features = draw(4, 8, 4, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = aligned_blend(features, torch.tensor([1, 0, 3, 2]), 0.5, keep_own=True)
        single = aligned_blend(features.float(), torch.tensor([1, 0, 3, 2]), 0.5, keep_own=True)
    assert mixed.dtype == torch.bfloat16 and single.dtype == torch.float32
    assert torch.allclose(mixed.float(), single, atol=0.05)


@pytest.mark.parametrize("shape", [(4, 17, 64), (4, 64, 17, 1), (4, 64)])
def test_features_that_are_no_maps_are_refused(shape: tuple[int, ...]) -> None:
    words = rf"alignmixup needs feature maps .* shape {re.escape(str(shape))}(.|\n)*or mixup"
    with pytest.raises(ConfigError, match=words):
        aligned_blend(torch.zeros(shape), torch.arange(4), 0.5, keep_own=True)
