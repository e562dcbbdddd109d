"""Augmentations: identities, inverses, ranges and determinism."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from mvc.arms import AUGMENTATIONS
from mvc.classify.augment import MIXING, affine, augmentation, by_policy, default, to_float
from mvc.classify.erasing import AREA, RATIO, draw_rectangles, random_erasing
from mvc.classify.policies import POLICIES, apply_policy
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


@pytest.mark.parametrize("name", AUGMENTATIONS)
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


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_an_image_does_not_depend_on_the_others_of_its_batch(name: str) -> None:
    images, others = pictures(12), pictures(12)
    others[:5], others[6:] = 255 - others[:5], 255 - others[6:]
    augment = augmentation(name, 3, True)
    assert torch.equal(augment(images, 1)[5], augment(others, 1)[5])


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_the_global_generators_are_left_alone(name: str) -> None:
    before, numpys = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    augmentation(name, 0, False)(pictures(), 0)
    assert torch.equal(before, torch.random.get_rng_state())
    assert np.random.get_state()[1].tolist() == numpys


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_black_and_white_stay_within_bounds(name: str) -> None:
    extremes = torch.zeros(32, 3, 8, 8, dtype=torch.uint8)
    extremes[16:] = 255
    extremes[8:24, :, :4] = 255
    for step in range(4):
        changed = augmentation(name, 1, True)(extremes, step)
        assert changed.min() >= 0 and changed.max() <= 1


@pytest.mark.parametrize("name", MIXING)
def test_single_images_get_the_default_where_batches_are_mixed(name: str) -> None:
    images = pictures()
    assert torch.equal(augmentation(name, 2, True)(images, 9), default(images, 2, 9, True))


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("random_flip", [False, True])
def test_policies_come_after_the_crop_and_the_mirror(name: str, random_flip: bool) -> None:
    # A flat image shows no crop: what is left is the policy. Elsewhere the crop's draws are those of the default.
    flat = torch.full((8, 3, 16, 16), 90, dtype=torch.uint8)
    assert torch.equal(by_policy(name, flat, 4, 1, random_flip), to_float(apply_policy(flat, name, 4, 1)))
    spot = torch.zeros(64, 3, 16, 16, dtype=torch.uint8)
    spot[:, :, 6:10, 6:10] = 255
    augmented = augmentation(name, 4, random_flip)(spot, 1)
    assert not torch.allclose(augmented, to_float(apply_policy(spot, name, 4, 1)))


def test_half_of_the_images_are_erased_in_the_published_sizes() -> None:
    count, side = 4000, 32
    corners, sizes = draw_rectangles(count, side, 7, 0)
    erased = sizes[:, 0] > 0
    assert abs(erased.mean() - 0.5) <= 5 * 0.5 / count**0.5
    height, width = sizes[erased].T
    # Rounding to whole pixels moves each side by half a pixel at most.
    assert ((height - 0.5) * (width - 0.5) <= AREA[1] * side**2).all()
    assert ((height + 0.5) * (width + 0.5) >= AREA[0] * side**2).all()
    assert ((height + 0.5) / (width - 0.5) >= RATIO[0]).all() and ((height - 0.5) / (width + 0.5) <= RATIO[1]).all()
    assert (corners >= 0).all() and (corners + sizes <= side).all()
    # Areas are drawn evenly and seldom refused: their mean is the middle of the range.
    assert abs((height * width).mean() / side**2 - sum(AREA) / 2) < 0.01
    again, _ = draw_rectangles(10, side, 7, 0)
    assert (again == corners[:10]).all()


def test_erasing_is_torchvisions_erase_with_even_noise() -> None:
    images = torch.full((256, 3, 32, 32), 0.25)
    erased = random_erasing(images, 5, 2)
    corners, sizes = draw_rectangles(256, 32, 5, 2)
    noise = []
    for before, after, (top, left), (height, width) in zip(
        images, erased, corners.astype(int), sizes.astype(int), strict=True
    ):
        part = after[:, top : top + height, left : left + width]
        assert torch.equal(after, functional.erase(before, top, left, height, width, part))
        noise.append(part.flatten())
    values = torch.cat(noise)
    assert values.min() == 0 and values.max() == 1
    # Mean and standard deviation of a whole number from 0 to 255, by its 255th part.
    assert abs(values.mean() - 0.5) < 0.01 and abs(values.std() - (256**2 - 1) ** 0.5 / 12**0.5 / 255) < 0.01


def test_random_erasing_comes_after_the_default() -> None:
    images = pictures(16)
    assert torch.equal(
        augmentation("random_erasing", 1, True)(images, 3), random_erasing(default(images, 1, 3, True), 1, 3)
    )


def test_inputs_are_not_written_to() -> None:
    images = pictures()
    copy = images.clone()
    for name in AUGMENTATIONS:
        augmentation(name, 0, True)(images, 0)
    assert torch.equal(images, copy)


def test_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown augmentation 'cutout'"):
        augmentation("cutout", 0, False)
