"""Mixup and cutmix against torchvision's, draws, and training with every mixer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from mvc.arms import AUGMENTATIONS
from mvc.classify.mixing import blend, cutmix, mixer, mixup, own_share, partners, paste
from mvc.classify.networks import build_network
from mvc.randomness import generator, seeded_global

MIXING = ("mixup", "cutmix", "alignmixup", "puzzlemix")
"""Those that mix images and labels of any backbone; `mixgen` is tested with its own."""


def small(classes: int = 3, size: int = 16) -> nn.Module:
    return build_network("small", classes, size, 0, torch.full((3,), 0.5), torch.full((3,), 0.25))


def batch(count: int = 12, size: int = 16, classes: int = 3, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random images, and targets whose rows add up to weights from 1/2 to 3/2."""
    source = generator(seed, "pictures")
    images = torch.rand((count, 3, size, size), generator=source)
    labels = torch.randint(0, classes, (count,), generator=source)
    weights = 0.5 + torch.rand((count, 1), generator=source)
    return images, nn.functional.one_hot(labels, classes).float() * weights


def loss_of(logits: Tensor, targets: Tensor) -> Tensor:
    return -(targets * logits.log_softmax(dim=1)).sum(dim=1).mean()


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_blend_is_torchvisions_mixup(alpha: float) -> None:
    images, targets = batch()
    transform = v2.MixUp(alpha=alpha)
    with seeded_global(3, "compare"):
        share = transform.make_params([images])["lam"]
    with seeded_global(3, "compare"):
        their_images, their_targets = transform(images, targets)
    assert torch.allclose(blend(images, images.roll(1, 0), share), their_images, atol=1e-6)
    assert torch.allclose(blend(targets, targets.roll(1, 0), share), their_targets, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_paste_is_torchvisions_cutmix(seed: int) -> None:
    images, targets = batch()
    transform = v2.CutMix(alpha=1.0)
    with seeded_global(seed, "compare"):
        drawn = transform.make_params([images])
    with seeded_global(seed, "compare"):
        their_images, their_targets = transform(images, targets)
    assert torch.equal(paste(images, images.roll(1, 0), drawn["box"]), their_images)
    assert torch.allclose(blend(targets, targets.roll(1, 0), drawn["lam_adjusted"]), their_targets, atol=1e-6)


def test_blend_is_exact_at_both_ends() -> None:
    own, other = torch.rand(2, 4, 3, 8, 8, generator=generator(0, "ends")).unbind()
    assert torch.equal(blend(own, other, 1.0), own) and torch.equal(blend(own, other, 0.0), other)


def test_mixup_mixes_images_and_targets_by_the_same_share() -> None:
    # Images whose pixels all hold their number, and targets that hold it too: both must come out equal.
    numbers = torch.arange(10.0)
    images, targets = numbers.view(-1, 1, 1, 1).expand(-1, 3, 8, 8) / 10, numbers[:, None] / 10
    mixed, labels = mixup(nn.Identity(), images, targets, step=4, seed=2)
    assert torch.allclose(mixed, labels[:, :, None, None].expand_as(mixed), atol=1e-6)
    share, other = own_share(1.0, 2, 4), partners(10, 2, 4)
    assert torch.allclose(labels[:, 0], (share * numbers + (1 - share) * numbers[other]) / 10, atol=1e-6)


@pytest.mark.parametrize("step", range(8))
def test_cutmix_mixes_targets_by_the_true_area(step: int) -> None:
    numbers = torch.arange(10.0)
    images, targets = numbers.view(-1, 1, 1, 1).expand(-1, 3, 16, 16), numbers[:, None]
    mixed, labels = cutmix(nn.Identity(), images, targets, step, seed=2)
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), labels[:, 0], atol=1e-4)


def test_shares_have_the_moments_of_beta() -> None:
    for alpha in (1.0, 2.0):
        drawn = torch.tensor([own_share(alpha, 0, step) for step in range(4000)])
        assert abs(drawn.mean() - 0.5) < 0.02 and abs(drawn.var() - 1 / (4 * (2 * alpha + 1))) < 0.006


def test_partners_are_a_permutation_that_changes_with_seed_and_step() -> None:
    first = partners(50, 0, 0)
    assert torch.equal(first.sort().values, torch.arange(50)) and torch.equal(first, partners(50, 0, 0))
    assert not torch.equal(first, partners(50, 0, 1)) and not torch.equal(first, partners(50, 1, 0))


@pytest.mark.parametrize("name", MIXING)
def test_mixers_are_pure_and_keep_the_weight_of_partners(name: str) -> None:
    images, targets = batch()
    kept, mix = images.clone(), mixer(name, 5)
    assert mix is not None
    torch.rand(3, generator=torch.default_generator)
    before = torch.random.get_rng_state()
    logits, labels = mix(small(), images, targets, 7)
    again, labels_again = mix(small(), images, targets, 7)
    assert torch.equal(logits, again) and torch.equal(labels, labels_again)
    assert torch.equal(images, kept) and torch.equal(before, torch.random.get_rng_state())
    assert logits.shape == labels.shape == targets.shape and logits.requires_grad and not labels.requires_grad
    # The weight of a mixture is between those of its two images.
    own, other = targets.sum(dim=1), targets[partners(len(images), 5, 7)].sum(dim=1)
    assert (labels.sum(dim=1) >= torch.minimum(own, other) - 1e-6).all()
    assert (labels.sum(dim=1) <= torch.maximum(own, other) + 1e-6).all()
    assert not torch.equal(labels, mix(small(), images, targets, 8)[1])


@pytest.mark.parametrize("name", MIXING)
def test_mixers_work_under_autocast(name: str) -> None:
    # Puzzle mix goes through the net twice, and the second pass meets the first one's cached casts of the weights.
    images, targets = batch()
    network, mix = small(), mixer(name, 0)
    assert mix is not None
    for step in range(4):
        exact, _ = mix(network, images, targets, step)
        with torch.autocast("cpu", torch.bfloat16):
            logits, labels = mix(network, images, targets, step)
        if name != "puzzlemix":  # whose masks may differ where two are nearly as good
            assert torch.allclose(logits.float(), exact, atol=0.1)
        network.zero_grad()
        loss_of(logits.float(), labels).backward()
        assert labels.dtype == torch.float32
        assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in network.parameters())


@pytest.mark.parametrize("name", MIXING)
def test_training_with_a_mixer_lowers_the_loss(name: str) -> None:
    # Classes differ by their brightest channel; a plain batch tells how well it was learnt.
    noise, targets = batch(24)
    classes = targets.argmax(dim=1)
    images = noise / 2
    images[torch.arange(24), classes] += 0.5
    network, mix = small(), mixer(name, 0)
    assert mix is not None
    network.train()
    start = loss_of(network(images), targets).item()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
    for step in range(25):
        loss = loss_of(*mix(network, images, targets, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    logits = network(images)
    assert loss_of(logits, targets).item() < 0.6 * start
    assert (logits.argmax(dim=1) == classes).float().mean() > 0.9


def test_other_augmentations_mix_nothing_and_unknown_ones_are_refused() -> None:
    assert [name for name in AUGMENTATIONS if mixer(name, 0) is not None] == [*MIXING, "mixgen"]
    with pytest.raises(ValueError, match="unknown augmentation 'fmix'"):
        mixer("fmix", 0)
