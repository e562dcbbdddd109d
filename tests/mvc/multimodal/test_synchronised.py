"""Synchronised changes: places and pixels move together, twice is once undone, and nothing ends outside the image."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import box_convert
from torchvision.transforms.v2 import functional

from mvc.errors import DataError
from mvc.multimodal import synchronised as by
from mvc.multimodal.drawn import (
    fewest_dropped,
    random_affine,
    random_crop,
    random_horizontal_flip,
    random_resized_crop,
    random_vertical_flip,
)
from mvc.multimodal.paired import FORMATS, PairedSample, corners_of
from mvc.randomness import generator

PAGE = Path(__file__).resolve().parents[3] / "docs" / "multimodal" / "synchronised.md"
MODEST = settings(deadline=None, max_examples=60)
CAPTION = "a red 3 left of a blue 7"
Move = Callable[[PairedSample], PairedSample]


def boxes_of(corners: Any, size: tuple[int, int], format: str = "XYXY") -> Any:
    numbers = box_convert(torch.as_tensor(corners, dtype=torch.float32).reshape(-1, 4), "xyxy", format.lower())
    return tv_tensors.BoundingBoxes(numbers, format=format, canvas_size=size)


def sample_of(
    corners: Any = (), points: Any = None, size: tuple[int, int] = (20, 40), format: str = "XYXY", **changes: Any
) -> PairedSample:
    pixels = torch.randint(0, 256, (3, *size), generator=generator(0, "pixels", *size), dtype=torch.uint8)
    boxes = boxes_of(corners, size, format)
    content: dict[str, Any] = {"boxes": boxes, "labels": tuple(range(len(boxes)))}
    if points is not None:
        content["keypoints"] = tv_tensors.KeyPoints(torch.as_tensor(points).float(), canvas_size=size)
    return PairedSample(pixels, **{"caption": CAPTION, **content, **changes})


@st.composite
def samples(draw: st.DrawFn) -> PairedSample:
    """Boxes and points on quarters of a pixel, so that sums and differences are exact."""
    size = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    corners, points = [], []
    for _ in range(draw(st.integers(0, 4))):
        spans = [sorted(draw(st.lists(st.integers(0, 4 * side), min_size=2, max_size=2, unique=True))) for side in size]
        (top, bottom), (left, right) = spans
        corners.append([left / 4, top / 4, right / 4, bottom / 4])
        points.append([draw(st.integers(0, 4 * side)) / 4 for side in size[::-1]])
    made = sample_of(corners, torch.tensor(points).reshape(-1, 2), size, draw(st.sampled_from(FORMATS)))
    return replace(made, keypoint_names=tuple(f"upper left {number}" for number in range(len(points))))


def assert_same(one: PairedSample, two: PairedSample) -> None:
    assert torch.equal(pixels_of(one), pixels_of(two))
    assert one.caption == two.caption and one.labels == two.labels and one.keypoint_names == two.keypoint_names
    assert one.boxes.format == two.boxes.format and one.boxes.canvas_size == two.boxes.canvas_size
    assert torch.equal(plain(one.boxes), plain(two.boxes)) and torch.equal(plain(one.keypoints), plain(two.keypoints))


def pixels_of(sample: PairedSample) -> Tensor:
    return sample.image if isinstance(sample.image, Tensor) else functional.pil_to_tensor(sample.image)


def plain(marked: Any) -> Tensor:
    tensor: Tensor = marked.as_subclass(Tensor)
    return tensor


@pytest.mark.parametrize("flip", [by.horizontal_flip, by.vertical_flip])
@MODEST
@given(sample=samples())
def test_a_double_flip_is_the_sample_again(flip: Move, sample: PairedSample) -> None:
    assert_same(flip(flip(sample)), sample)


@MODEST
@given(sample=samples())
def test_flips_mirror_every_place(sample: PairedSample) -> None:
    height, width = sample.size
    across, down = by.horizontal_flip(sample), by.vertical_flip(sample)
    corners = corners_of(sample.boxes)
    assert torch.equal(corners_of(across.boxes), (torch.tensor([width, 0, width, 0]) - corners).abs()[:, [2, 1, 0, 3]])
    assert torch.equal(corners_of(down.boxes), (torch.tensor([0, height, 0, height]) - corners).abs()[:, [0, 3, 2, 1]])
    assert torch.equal(plain(across.keypoints)[:, 0], width - plain(sample.keypoints)[:, 0])
    assert torch.equal(plain(down.keypoints)[:, 1], height - plain(sample.keypoints)[:, 1])
    assert torch.equal(pixels_of(across), pixels_of(sample).flip(2))
    assert torch.equal(pixels_of(down), pixels_of(sample).flip(1))
    assert across.caption == "a red 3 right of a blue 7" and down.caption == CAPTION
    if len(corners):
        assert across.keypoint_names[0] == "upper right 0" and down.keypoint_names[0] == "lower left 0"


@MODEST
@given(sample=samples(), share=st.floats(0, 1), data=st.data())
def test_a_crop_never_leaves_a_box_outside(sample: PairedSample, share: float, data: st.DataObject) -> None:
    height, width = (data.draw(st.integers(1, side)) for side in sample.size)
    top, left = (
        data.draw(st.integers(0, side - part)) for side, part in zip(sample.size, (height, width), strict=True)
    )
    found = by.crop(sample, top, left, height, width, min_visible=share)
    corners, kept = corners_of(sample.boxes), corners_of(found.boxes)
    window = torch.tensor([left, top, left + width, top + height], dtype=torch.float32)
    cut = torch.cat([torch.maximum(corners[:, :2], window[:2]), torch.minimum(corners[:, 2:], window[2:])], dim=1)
    sides = (cut[:, 2:] - cut[:, :2]).clamp(min=0)
    shares = sides.prod(1) / (corners[:, 2:] - corners[:, :2]).prod(1)
    stays = [one for one in range(len(corners)) if shares[one] > 0 and shares[one] >= share - 1e-4]
    assert list(found.labels) == stays and sorted([*found.labels, *found.dropped]) == list(range(len(corners)))
    torch.testing.assert_close(kept, cut[stays] - window[:2].repeat(2), rtol=0, atol=1e-4)
    assert (kept >= -1e-4).all() and (kept <= torch.tensor([width, height, width, height]) + 1e-4).all()
    assert found.size == (height, width) == found.boxes.canvas_size == found.keypoints.canvas_size
    assert torch.equal(pixels_of(found), pixels_of(sample)[:, top : top + height, left : left + width])
    assert found.visible is not None
    places = plain(found.keypoints)
    assert torch.equal(places, plain(sample.keypoints) - window[:2])
    assert torch.equal(found.visible, ((places >= 0) & (places <= torch.tensor([width, height]))).all(1))


@pytest.mark.parametrize(
    "move",
    [
        by.horizontal_flip,
        by.vertical_flip,
        lambda sample: by.crop(sample, 3, 5, 30, 30),
        lambda sample: by.resized_crop(sample, 4, 8, 32, 32, (64, 128)),
        lambda sample: by.rotate(sample, 30),
        lambda sample: by.affine(sample, angle=-12, translate=(3, -4), scale=1.2, shear=(5, -8)),
    ],
)
def test_pixels_boxes_and_points_go_to_the_same_place(move: Move) -> None:
    """A bright square: where it is seen afterwards, its box and its middle have gone too."""
    image = torch.zeros(1, 40, 40)
    image[:, 12:20, 16:24] = 1
    point = tv_tensors.KeyPoints(torch.tensor([[20.0, 16.0]]), canvas_size=(40, 40))
    sample = PairedSample(image, "a square", boxes_of([16, 12, 24, 20], (40, 40)), ("square",), point)
    found = move(sample)
    seen = pixels_of(found)[0]
    rows, columns = (torch.arange(side) + 0.5 for side in seen.shape)
    mass = seen.sum()
    middle = torch.stack([(seen.sum(0) * columns).sum() / mass, (seen.sum(1) * rows).sum() / mass])
    torch.testing.assert_close(plain(found.keypoints)[0], middle, rtol=0, atol=0.1)
    left, top, right, bottom = corners_of(found.boxes)[0].tolist()
    torch.testing.assert_close(torch.tensor([(left + right) / 2, (top + bottom) / 2]), middle, rtol=0, atol=0.1)
    lit = (seen > 0.5).nonzero()
    edges = [lit[:, 1].min(), lit[:, 0].min(), lit[:, 1].max() + 1, lit[:, 0].max() + 1]
    assert max(abs(float(edge) - side) for edge, side in zip(edges, (left, top, right, bottom), strict=True)) < 1.2


def test_a_turn_back_brings_points_back_and_boxes_grow() -> None:
    sample = sample_of([[10, 6, 18, 12]], [[14.0, 9.0]], caption="a cat")
    back = by.rotate(by.rotate(sample, 30), -30)
    torch.testing.assert_close(plain(back.keypoints), plain(sample.keypoints), rtol=0, atol=1e-4)
    # The box around a turned 8 x 6 one is 8 cos + 6 sin wide and 6 cos + 8 sin high.
    cosine, sine = np.cos(np.pi / 6), np.sin(np.pi / 6)
    once = corners_of(by.rotate(sample, 30).boxes)[0]
    assert (once[2:] - once[:2]).tolist() == pytest.approx([8 * cosine + 6 * sine, 6 * cosine + 8 * sine], abs=1e-4)
    assert (corners_of(back.boxes)[0, :2] < corners_of(sample.boxes)[0, :2]).all()


def test_resizing_multiplies_places() -> None:
    sample = sample_of([[10, 5, 30, 15], [0, 0, 4, 4]], [[20.0, 10.0]], format="CXCYWH")
    found = by.resized_crop(sample, 0, 10, 20, 20, (40, 60))
    assert plain(found.boxes).tolist() == [[30, 20, 60, 20]] and found.dropped == (1,)
    assert plain(found.keypoints).tolist() == [[30, 20]] and found.size == (40, 60)


def test_pil_images_and_whole_numbers_go_the_same_way() -> None:
    tensors = sample_of([[4, 2, 12, 9]], [[5.0, 6.0]])
    whole = tv_tensors.BoundingBoxes([[4, 2, 12, 9]], format="XYXY", canvas_size=(20, 40))
    pil = replace(tensors, image=functional.to_pil_image(tensors.image), boxes=whole)
    for move in (by.horizontal_flip, by.vertical_flip, lambda sample: by.crop(sample, 1, 2, 10, 20)):
        assert_same(move(pil), move(tensors))


def test_a_point_once_lost_stays_lost() -> None:
    sample = by.crop(sample_of([], [[1.0, 1.0], [30.0, 10.0]]), 0, 10, 20, 30)
    assert sample.visible is not None and sample.visible.tolist() == [False, True]
    moved = by.affine(sample, translate=(9, 0))
    assert moved.visible is not None and moved.visible.tolist() == [False, True]
    assert plain(moved.keypoints)[0].tolist() == pytest.approx([0.0, 1.0], abs=1e-5)
    flipped = by.horizontal_flip(sample)
    assert flipped.visible is not None and flipped.visible.tolist() == [False, True]


def test_samples_go_to_workers_whole() -> None:
    sample = by.crop(sample_of([[4, 2, 12, 9]], [[5.0, 6.0]], format="XYWH"), 1, 1, 12, 30)
    assert_same(pickle.loads(pickle.dumps(sample)), sample)


def test_dropped_labels_add_up() -> None:
    sample = sample_of([[0, 0, 10, 10], [10, 0, 20, 10], [30, 0, 40, 10]])
    found = by.crop(by.crop(sample, 0, 8, 20, 32), 0, 11, 20, 20)
    assert found.dropped == (0, 1) and found.labels == (2,)
    assert by.horizontal_flip(found).dropped == (0, 1)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"caption": " \n"}, r"the caption is ' \\n'"),
        ({"image": "cat.png"}, "the image is a str"),
        ({"image": Image.new("RGBA", (40, 20))}, "the image's mode is RGBA"),
        ({"image": torch.zeros(20, 40)}, r"the image's shape is \(20, 40\)"),
        ({"image": torch.zeros(2, 20, 40)}, r"the image's shape is \(2, 20, 40\)"),
        ({"image": torch.zeros(3, 20, 40, dtype=torch.int64)}, "the image's type is torch.int64"),
        ({"image": torch.zeros(3, 40, 20)}, r"canvas of the boxes is \(20, 40\) and the image is \(40, 20\)"),
        ({"boxes": torch.zeros(1, 4)}, "the boxes are a Tensor"),
        ({"boxes": None}, "there are 1 labels and no boxes"),
        ({"labels": ("a", "b")}, "there are 1 boxes and 2 labels"),
        (
            {"boxes": boxes_of([30, 5, 42, 15], (20, 40))},
            r"box 0 \(0\) is outside the image: \[30.0, 5.0, 42.0, 15.0\]",
        ),
        ({"boxes": boxes_of([30, 5, 30, 15], (20, 40))}, r"box 0 \(0\) has no area"),
        ({"boxes": boxes_of([float("nan"), 5, 30, 15], (20, 40))}, r"box 0 \(0\) has no area"),
        (
            {"boxes": tv_tensors.BoundingBoxes(torch.ones(1, 5), format="XYWHR", canvas_size=(20, 40))},
            "format is XYWHR",
        ),
        ({"keypoint_names": ("a", "b")}, "1 keypoints and 2 names"),
        ({"visible": torch.ones(2, dtype=torch.bool)}, r"visible is torch.bool of shape \(2,\)"),
        ({"keypoints": torch.zeros(1, 2)}, "the keypoints are a Tensor"),
        ({"keypoints": tv_tensors.KeyPoints(torch.zeros(2, 3, 2), canvas_size=(20, 40))}, r"shape is \(2, 3, 2\)"),
        (
            {"keypoints": tv_tensors.KeyPoints([[41.0, 3.0]], canvas_size=(20, 40))},
            r"keypoint 0 is outside .* \[41.0, 3.0\]",
        ),
        ({"keypoints": None, "keypoint_names": ("eye",)}, "names of keypoints, or which are visible, and no keypoints"),
    ],
)
def test_bad_samples_are_refused_by_their_value(content: dict[str, Any], said: str) -> None:
    good = sample_of([[4, 2, 12, 9]], [[5.0, 6.0]])
    with pytest.raises(DataError, match=said):
        replace(good, **content)


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (lambda one: by.crop(one, 0, 0, 21, 40), "40 x 21 pixels at left 0, top 0 is not within an image of 40 x 20"),
        (lambda one: by.crop(one, -1, 0, 5, 5), "left 0, top -1 is not within"),
        (lambda one: by.crop(one, 0, 0, 5, 0), "0 x 5 pixels"),
        (lambda one: by.crop(one, 0, 0, 5, 5, min_visible=1.5), "min_visible is 1.5"),
        (lambda one: by.resized_crop(one, 0, 0, 5, 5, (0, 4)), r"size is \(0, 4\)"),
        (lambda one: by.affine(one, scale=0), "scale is 0"),
        (lambda one: by.affine(one, shear=(0, 90)), r"shear is \(0, 90\)"),
        (lambda one: by.rotate(one, 46), "an angle of 46 degrees makes 'left' untrue in 'a red 3 left of a blue 7'"),
        (lambda one: by.rotate(one, 180), "an angle of 180 degrees"),
        (lambda one: random_affine(one, 0, 0, degrees=90), "an angle of 90 degrees"),
        (lambda one: random_affine(one, 0, 0, degrees=-1), "degrees is -1"),
        (lambda one: random_affine(one, 0, 0, translate=(0, 2)), r"translate is \(0, 2\)"),
        (lambda one: random_affine(one, 0, 0, scale=(0, 1)), r"scale is \(0, 1\)"),
        (
            lambda one: random_crop(one, (21, 4), 0, 0),
            r"height and width \(21, 4\) is larger than the image, \(20, 40\)",
        ),
        (lambda one: random_crop(one, (4, 4), 0, 0, attempts=0), "attempts is 0"),
        (lambda one: random_resized_crop(one, (4, 4), 0, 0, scale=(0.5, 1.1)), r"scale is \(0.5, 1.1\)"),
        (lambda one: random_resized_crop(one, (4, 4), 0, 0, ratio=(2, 1)), r"ratio is \(2, 1\)"),
        (lambda one: random_horizontal_flip(one, 0, 0, probability=2), "probability is 2"),
    ],
)
def test_bad_arguments_are_refused_by_their_value(move: Move, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        move(sample_of([[4, 2, 12, 9]]))


def test_any_turn_is_right_where_nothing_is_said_of_directions() -> None:
    sample = sample_of([[0, 0, 10, 5]], caption="a cat", size=(20, 20))
    assert corners_of(by.rotate(sample, 90).boxes)[0].tolist() == pytest.approx([15, 0, 20, 10], abs=1e-4)
    assert by.rotate(sample_of(caption=CAPTION), 357).caption == CAPTION


RANDOM: dict[str, Callable[[PairedSample, int, int], PairedSample]] = {
    "horizontal flip": random_horizontal_flip,
    "vertical flip": random_vertical_flip,
    "crop": lambda one, seed, index: random_crop(one, (12, 16), seed, index),
    "resized crop": lambda one, seed, index: random_resized_crop(one, (16, 16), seed, index),
    "affine": lambda one, seed, index: random_affine(one, seed, index, degrees=30, translate=(0.2, 0.2), shear=9),
}


@pytest.mark.parametrize("name", RANDOM)
def test_seed_and_index_alone_decide(name: str) -> None:
    sample, before = sample_of([[4, 2, 12, 9]], [[5.0, 6.0]]), torch.get_rng_state()
    draw = RANDOM[name]
    first = [draw(sample, 3, index) for index in range(8)]
    torch.rand(5)
    for index in reversed(range(8)):
        assert_same(draw(sample, 3, index), first[index])
    torch.set_rng_state(before)
    draw(sample, 4, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert len({tuple(pixels_of(one).flatten().tolist()) for one in first}) > 1


def test_flips_come_as_often_as_asked() -> None:
    sample = sample_of()
    flipped = sum(random_horizontal_flip(sample, 0, index, probability=0.3).caption != CAPTION for index in range(400))
    assert abs(flipped - 120) < 4 * (400 * 0.3 * 0.7) ** 0.5
    assert all(random_vertical_flip(sample, 0, index, probability=0.0) is sample for index in range(9))


def test_a_draw_that_drops_a_box_is_given_up() -> None:
    sample = sample_of([[0, 0, 8, 20], [16, 0, 24, 20]])
    once = [random_crop(sample, (20, 24), 0, index, min_visible=1) for index in range(40)]
    several = [random_crop(sample, (20, 24), 0, index, min_visible=1, attempts=100) for index in range(40)]
    # Of 17 places one alone keeps both boxes whole.
    assert sum(not one.dropped for one in once) < 10
    assert sum(not one.dropped for one in several) > 35
    for early, late in zip(once, several, strict=True):
        assert len(late.dropped) <= len(early.dropped)
        if not early.dropped:
            assert torch.equal(pixels_of(early), pixels_of(late))


def test_the_first_of_the_draws_that_drop_fewest_is_taken() -> None:
    sample = sample_of()
    drops = [2, 1, 1, 0, 0]
    made = [replace(sample, dropped=tuple(range(count))) for count in drops]
    asked: list[int] = []

    def draw(attempt: int) -> PairedSample:
        asked.append(attempt)
        return made[attempt]

    assert fewest_dropped(sample, draw, 3) is made[1] and asked == [0, 1, 2]
    assert fewest_dropped(sample, draw, 9) is made[3] and asked == [0, 1, 2, 0, 1, 2, 3]


def test_the_page_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    exec(blocks[0], {})
    mirrored, cropped = capsys.readouterr().out.splitlines()
    assert len(blocks) == 1 and mirrored == f"a cat right of a dog {[[40.0, 6.0, 60.0, 30.0], [4.0, 8.0, 28.0, 30.0]]}"
    assert cropped == "('cat', 'dog') ()"
    assert f"({PAGE.with_suffix('.png').name})" in PAGE.read_text()
    assert 10_000 < PAGE.with_suffix(".png").stat().st_size < 150_000
