"""Augmentations: identities, inverses, ranges and determinism."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from mvc.classify.augment import affine, augmentation, default, randaugment, to_float
from mvc.randomness import generator


def pictures(count: int = 6, size: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator(1, "pictures"))


def move(images: Tensor, degrees=0.0, scale=1.0, right=0.0, down=0.0, mirrored=False) -> Tensor:
    count = len(images)
    return affine(
        images,
        torch.full((count,), float(degrees)),
        torch.full((count,), float(scale)),
        torch.tensor([[right, down]]).expand(count, 2),
        torch.full((count,), mirrored),
    )


def test_affine_of_nothing_is_the_identity() -> None:
    images = to_float(pictures())
    assert torch.allclose(move(images), images, atol=1e-5)


def test_mirror_is_the_reverse() -> None:
    images = to_float(pictures())
    assert torch.allclose(move(images, mirrored=True), images.flip(3), atol=1e-5)


def test_shift_moves_whole_pixels_and_repeats_the_border() -> None:
    images = to_float(pictures())
    moved = move(images, right=3 / 16, down=-2 / 16)
    assert torch.allclose(moved[..., :14, 3:], images[..., 2:, :13], atol=1e-5)
    assert torch.allclose(moved[..., :14, :3], images[..., 2:, :1].expand(-1, -1, -1, 3), atol=1e-5)
    assert torch.allclose(moved[..., 14:, 3:], images[..., 15:, :13].expand(-1, -1, 2, -1), atol=1e-5)


def test_quarter_turn_is_rot90() -> None:
    images = to_float(pictures())
    assert torch.allclose(move(images, degrees=90), torch.rot90(images, -1, (2, 3)), atol=1e-4)


def test_enlarging_twice_shows_the_centre() -> None:
    # Linear ramp: enlarging about the centre halves its slope.
    ramp = torch.linspace(0, 1, 17)[None, None, None, :].expand(1, 3, 17, 17)
    bigger = move(ramp, scale=2.0)
    assert torch.allclose(bigger, 0.25 + ramp / 2, atol=1e-5)


def test_default_without_strength_is_the_identity_or_a_mirror() -> None:
    images = pictures(64)
    plain = default(images, 0, 3, random_flip=False, strength=0.0)
    assert torch.allclose(plain, to_float(images), atol=1e-5)
    mirrored = default(images, 0, 3, random_flip=True, strength=0.0)
    flipped = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(mirrored, plain, strict=True)]
    kept = [torch.allclose(a, b, atol=1e-5) for a, b in zip(mirrored, plain, strict=True)]
    assert all(a != b for a, b in zip(flipped, kept, strict=True)) and 16 <= sum(flipped) <= 48


@pytest.mark.parametrize("name", ["none", "default", "randaugment"])
@pytest.mark.parametrize("random_flip", [False, True])
def test_draws_depend_on_seed_and_step_alone(name: str, random_flip: bool) -> None:
    images = pictures()
    first = augmentation(name, 5, random_flip)(images, 7)
    augmentation(name, 5, random_flip)(images, 8)
    assert torch.equal(first, augmentation(name, 5, random_flip)(images, 7))
    assert first.dtype == torch.float32 and first.shape == images.shape
    assert first.min() >= 0 and first.max() <= 1
    if name != "none":
        assert not torch.allclose(first, augmentation(name, 5, random_flip)(images, 8))
        assert not torch.allclose(first, augmentation(name, 6, random_flip)(images, 7))


def test_slots_get_the_same_draws_whatever_images_they_hold() -> None:
    # The spot of a single bright pixel tells the draw; both batches must move it alike.
    one, two = torch.zeros(4, 3, 16, 16, dtype=torch.uint8), torch.zeros(4, 3, 16, 16, dtype=torch.uint8)
    one[:, 0, 8, 8], two[:, 1, 8, 8] = 255, 255
    assert torch.equal(default(one, 2, 0, True)[:, 0], default(two, 2, 0, True)[:, 1])


def test_randaugment_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    randaugment(pictures(), 0, 0, False)
    assert torch.equal(before, torch.random.get_rng_state())


def test_inputs_are_not_written_to() -> None:
    images = pictures()
    copy = images.clone()
    for name in ("none", "default", "randaugment"):
        augmentation(name, 0, True)(images, 0)
    assert torch.equal(images, copy)


def test_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown augmentation 'cutout'"):
        augmentation("cutout", 0, False)
