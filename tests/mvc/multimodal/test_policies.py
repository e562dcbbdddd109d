"""Policies: each operation against torchvision, what is drawn, and that all of a sample goes along."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from mvc.multimodal.paired import PairedSample
from mvc.multimodal.policies import (
    DEFAULT_OPERATIONS,
    LARGEST_MAGNITUDE,
    OPERATIONS,
    Operation,
    Policy,
    apply_policy,
    draw_operations,
    operate,
)
from mvc.randomness import generator

GEOMETRIC = ("horizontal_flip", "vertical_flip", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "crop")


def sample_of(size: tuple[int, int] = (24, 32), dtype: torch.dtype = torch.uint8) -> PairedSample:
    coarse = torch.rand((1, 3, 6, 6), generator=generator(0, "coarse"))
    smooth = functional.resize(coarse[0], list(size), antialias=True)
    return PairedSample(
        (smooth * 255).byte() if dtype == torch.uint8 else smooth,
        "a cat on the left, above a dog",
        tv_tensors.BoundingBoxes([[6.0, 4, 14, 12], [18, 14, 28, 22]], format="XYXY", canvas_size=size),
        ("cat", "dog"),
        tv_tensors.KeyPoints([[10.0, 8], [23, 18]], canvas_size=size),
        ("left eye", "tail"),
    )


def done(name: str, magnitude: int, sign: int = 1, sample: PairedSample | None = None) -> PairedSample:
    return operate(sample or sample_of(), Operation(name, sign, (0.0, 0.0)), magnitude)


def pixels_of(sample: PairedSample) -> Tensor:
    assert isinstance(sample.image, Tensor)
    return sample.image


def reference(image: Any, name: str, magnitude: int, sign: int) -> Any:
    """By hand from the published ranges, scaled from 0..30 to 0..10."""
    strength = magnitude / 10
    factor = 1 + 0.9 * strength * sign
    match name:
        case "brightness":
            return functional.adjust_brightness(image, factor)
        case "contrast":
            return functional.adjust_contrast(image, factor)
        case "color":
            return functional.adjust_saturation(image, 1 + 0.5 * strength * sign)
        case "sharpness":
            return functional.adjust_sharpness(image, factor)
        case "posterize":
            return functional.posterize(image, 8 - round(4 * strength))
        case "autocontrast":
            return functional.autocontrast(image)
    return image


@pytest.mark.parametrize("name", ["brightness", "contrast", "color", "sharpness", "posterize", "autocontrast"])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_operations_on_colours_are_torchvisions_and_touch_the_image_alone(name: str, dtype: torch.dtype) -> None:
    sample = sample_of(dtype=dtype)
    for magnitude in (0, 3, 10):
        for sign in (-1, 1):
            found = done(name, magnitude, sign, sample)
            assert torch.equal(pixels_of(found), reference(sample.image, name, magnitude, sign))
            assert found.boxes is sample.boxes and found.keypoints is sample.keypoints
            assert found.caption == sample.caption and found.labels == sample.labels and found.dropped == ()


def points_after(name: str, magnitude: int, sign: int) -> Tensor:
    places: Tensor = done(name, magnitude, sign).keypoints.as_subclass(Tensor)
    return places


@pytest.mark.parametrize("sign", [-1, 1])
def test_movements_of_a_magnitude_are_the_ones_stated(sign: int) -> None:
    """Of points about the middle (16, 12), at M = 5: half of the largest movement."""
    start = torch.tensor([[-6.0, -4], [7, 6]])
    angle = math.radians(15 * sign)
    turned = start @ torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    torch.testing.assert_close(points_after("rotate", 5, sign), turned + torch.tensor([16.0, 12]), rtol=0, atol=1e-4)
    for name, axis in (("shear_x", 0), ("shear_y", 1)):
        moved = start.clone()
        moved[:, axis] += 0.15 * sign * start[:, 1 - axis]
        found = points_after(name, 5, sign) - torch.tensor([16.0, 12])
        # A shear moves against or along by the same amount; torchvision's sign is its own.
        back = start.clone()
        back[:, axis] -= 0.15 * sign * start[:, 1 - axis]
        assert min((found - moved).abs().max(), (found - back).abs().max()) < 1e-4
    for name, side, axis in (("translate_x", 32, 0), ("translate_y", 24, 1)):
        shift = int(150 / 331 * side / 2)
        moved = start + torch.tensor([16.0, 12])
        moved[:, axis] += sign * shift
        assert torch.equal(points_after(name, 5, sign), moved)


def test_a_crop_of_a_magnitude_has_its_size_and_place() -> None:
    sample = sample_of()
    found = operate(sample, Operation("crop", 1, (0.99, 0.0)), 5)
    # A fifth of each side is cut off: 26 of 32 columns, 19 of 24 rows, as far right and up as there is room.
    wanted = functional.resized_crop(sample.image, 0, 6, 19, 26, [24, 32])
    assert torch.equal(pixels_of(found), wanted) and found.size == sample.size


def test_no_magnitude_changes_nothing() -> None:
    sample = sample_of()
    for name in set(OPERATIONS) - {"horizontal_flip", "vertical_flip", "autocontrast"}:
        found = done(name, 0, sample=sample)
        assert (pixels_of(found).int() - pixels_of(sample).int()).abs().max() <= 1, name
        torch.testing.assert_close(found.keypoints.as_subclass(Tensor), sample.keypoints.as_subclass(Tensor))


@pytest.mark.parametrize("name", GEOMETRIC)
def test_movements_take_everything_along(name: str) -> None:
    sample, found = sample_of(), done(name, 4)
    assert not torch.equal(pixels_of(found), pixels_of(sample))
    assert not torch.equal(found.boxes.as_subclass(Tensor), sample.boxes.as_subclass(Tensor))
    assert not torch.equal(found.keypoints.as_subclass(Tensor), sample.keypoints.as_subclass(Tensor))
    said = {"horizontal_flip": "a cat on the right, above a dog", "vertical_flip": "a cat on the left, below a dog"}
    assert found.caption == said.get(name, sample.caption)
    assert found.keypoint_names == (("right eye", "tail") if name == "horizontal_flip" else ("left eye", "tail"))


@settings(deadline=None, max_examples=60)
@given(n=st.integers(0, 4), m=st.integers(0, LARGEST_MAGNITUDE), index=st.integers(0, 10**6), half=st.booleans())
def test_every_draw_gives_a_whole_sample_of_the_same_size(n: int, m: int, index: int, half: bool) -> None:
    sample = sample_of(dtype=torch.float32 if half else torch.uint8)
    found = apply_policy(sample, Policy(n, m, OPERATIONS), 5, index)  # a sample that is not valid would raise
    assert found.size == sample.size and pixels_of(found).dtype == pixels_of(sample).dtype
    assert sorted([*found.labels, *found.dropped]) == ["cat", "dog"] and len(found.boxes) == len(found.labels)
    assert pixels_of(found).float().max() <= (1 if half else 255) and pixels_of(found).float().min() >= 0


def test_operations_are_drawn_evenly_with_repetition() -> None:
    policy = Policy(num_ops=3)
    drawn = [draw_operations(policy, 0, index) for index in range(1500)]
    counts = Counter(one.name for row in drawn for one in row)
    expected = 4500 / len(DEFAULT_OPERATIONS)
    assert set(counts) == set(DEFAULT_OPERATIONS)
    # Twelve degrees of freedom: beyond 32.9 once in a thousand.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 32.9
    signs = sum(one.sign for row in drawn for one in row)
    assert abs(signs) < 4 * 4500**0.5
    assert any(len({one.name for one in row}) < 3 for row in drawn)


def test_a_larger_policy_begins_like_a_smaller_one() -> None:
    for index in range(20):
        long = draw_operations(Policy(3, 9), 1, index)
        assert draw_operations(Policy(2, 1), 1, index) == long[:2]
        assert draw_operations(Policy(3, 9), 1, index, attempt=1) != long


def test_seed_and_index_alone_decide() -> None:
    sample, policy, state = sample_of(), Policy(3, 6), torch.get_rng_state()
    first = [apply_policy(sample, policy, 2, index) for index in range(10)]
    for index in reversed(range(10)):
        again = apply_policy(sample, policy, 2, index)
        assert torch.equal(pixels_of(again), pixels_of(first[index])) and again.caption == first[index].caption
    assert torch.equal(torch.get_rng_state(), state)
    other = [apply_policy(sample, policy, 3, index) for index in range(10)]
    assert any(not torch.equal(pixels_of(one), pixels_of(two)) for one, two in zip(first, other, strict=True))


def test_turns_of_a_policy_never_add_up_to_where_left_is_no_longer_left() -> None:
    sample = sample_of()
    policy = Policy(4, 10, ("rotate", "horizontal_flip"))
    steep = 0
    for index in range(60):
        # Points at the middle and to its right show the angle; a mirror turns the second one round.
        points = tv_tensors.KeyPoints([[16.0, 12], [20, 12]], canvas_size=sample.size)
        found = apply_policy(replace(sample, keypoints=points, keypoint_names=()), policy, 0, index)
        middle, other = found.keypoints.as_subclass(Tensor).tolist()
        angle = math.degrees(math.atan2(other[1] - middle[1], abs(other[0] - middle[0])))
        assert abs(angle) <= 45.001
        steep += abs(angle) > 29
    assert steep > 5


def test_attempts_drop_fewer_boxes() -> None:
    sample, policy = sample_of(), Policy(2, 10, ("translate_x", "translate_y"))
    once = [len(apply_policy(sample, policy, 0, index, min_visible=0.9).dropped) for index in range(30)]
    several = [len(apply_policy(sample, policy, 0, index, min_visible=0.9, attempts=5).dropped) for index in range(30)]
    assert all(late <= early for early, late in zip(once, several, strict=True)) and sum(several) < sum(once)


def test_autocontrast_makes_red_on_navy_yellow() -> None:
    """Why it is not among the default operations: the caption would be wrong."""
    image = torch.tensor([12, 14, 74], dtype=torch.uint8)[:, None, None].repeat(1, 4, 4)
    image[:, 1:3, 1:3] = torch.tensor([228, 40, 40], dtype=torch.uint8)[:, None, None]
    found = pixels_of(done("autocontrast", 5, sample=PairedSample(image, "a red square")))
    red, green, blue = found[:, 1, 1].tolist()
    assert red > 250 and green > 250 and blue < 5
    assert "autocontrast" not in DEFAULT_OPERATIONS and "autocontrast" in OPERATIONS
    assert not {"invert", "solarize", "hue"} & set(OPERATIONS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"num_ops": -1}, "num_ops is -1"),
        ({"num_ops": 1.5}, "num_ops is 1.5"),
        ({"magnitude": 11}, "magnitude is 11; it must be a whole number from 0 to 10"),
        ({"magnitude": -1}, "magnitude is -1"),
        ({"magnitude": 2.5}, "magnitude is 2.5"),
        ({"operations": ("rotate", "invert")}, "unknown operation 'invert'"),
        ({"operations": ()}, "there is no operation"),
    ],
)
def test_bad_policies_are_refused_by_their_value(content: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Policy(**content)


def test_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown operation 'swirl'"):
        done("swirl", 3)
