"""One geometric change of everything that a sample has: image, boxes, keypoints, and the caption's words for it.

Synchronised augmentation of the glossaries of cross-modal and multimodal data augmentation. The geometry is
torchvision's. Nothing is drawn here; `drawn.py` draws what to do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import InterpolationMode, functional

from .directions import direction_words, exchange_left_right, exchange_top_bottom
from .paired import PairedSample, corners_of, inside_image

MIN_VISIBLE = 0.2
"""Share of a box that must still be to be seen, or it is dropped."""
LARGEST_TURN = 45.0
"""Degrees up to which what was left is still more left than above or below."""
_SLIVER = 1e-2
"""Pixels; a box that is thinner is not seen, however small a share is asked for."""
_ROUNDING = 1e-4
"""Of a share, so that a box that is whole passes min_visible=1 in every format."""
_HALF = 0.5

Fill = float | Sequence[float] | None


def horizontal_flip(sample: PairedSample) -> PairedSample:
    """Mirror left and right; the words for them change places in the caption and in the names of keypoints.

    Names are read as directions in the picture; the order of the keypoints stays. See `exchange_left_right` for what
    counts as a word. Applied twice it gives the sample back.
    """
    return _flipped(sample, functional.horizontal_flip, exchange_left_right)


def vertical_flip(sample: PairedSample) -> PairedSample:
    """Mirror top and bottom; the words for them change places in the caption and in the names of keypoints.

    Applied twice it gives the sample back. Few pictures are natural upside down. A mirrored body also has its left and
    right hands exchanged, which the names do not tell.
    """
    return _flipped(sample, functional.vertical_flip, exchange_top_bottom)


def crop(
    sample: PairedSample, top: int, left: int, height: int, width: int, *, min_visible: float = MIN_VISIBLE
) -> PairedSample:
    """Cut out a window. Boxes are cut at its edge; what is cut off too far is dropped.

    Args:
        sample: what to crop. Its caption stays: see `dropped` of the result for what it may speak of in vain.
        top, left, height, width: of the window, in pixels, within the image.
        min_visible: boxes of which a smaller share of the area is left are dropped, with their labels; in [0, 1].

    Returns:
        the window. Keypoints outside it are kept where they are, and are not `visible`.

    Raises:
        ValueError: the window is not within the image, or min_visible is out of range.
    """
    _require_window(sample.size, top, left, height, width)
    return _moved(sample, lambda part: functional.crop(part, top, left, height, width), min_visible)


def resized_crop(
    sample: PairedSample,
    top: int,
    left: int,
    height: int,
    width: int,
    size: tuple[int, int],
    *,
    min_visible: float = MIN_VISIBLE,
) -> PairedSample:
    """Cut out a window, and resize it (bilinear, antialiased).

    Args:
        sample, top, left, height, width, min_visible: as in `crop`.
        size: height and width of the result in pixels.

    Raises:
        ValueError: as in `crop`, or the size is not two positive numbers.
    """
    _require_window(sample.size, top, left, height, width)
    require_size(size)

    def move(part: Any) -> Any:
        return functional.resized_crop(part, top, left, height, width, list(size))

    return _moved(sample, move, min_visible)


def affine(
    sample: PairedSample,
    *,
    angle: float = 0.0,
    translate: tuple[int, int] = (0, 0),
    scale: float = 1.0,
    shear: tuple[float, float] = (0.0, 0.0),
    fill: Fill = None,
    min_visible: float = MIN_VISIBLE,
) -> PairedSample:
    """Turn, enlarge, shear and move about the middle of the image, whose size stays (bilinear).

    The box of what was turned or sheared is the smallest upright one around the moved box: it grows, and again with
    each turn. A caption that speaks of a tilt or of a place in the image may no longer be true.

    Args:
        sample: what to move.
        angle: degrees clockwise.
        translate: pixels to the right and down.
        scale: factor above 0; more than 1 enlarges.
        shear: degrees along x and along y, within (-90, 90).
        fill: what is put where nothing was, in the image's range: one number or one a channel; None is black.
        min_visible: as in `crop`.

    Raises:
        ValueError: scale or min_visible is out of range, or the angle is above `LARGEST_TURN` although the caption or a
            keypoint's name has a word for a direction.
    """
    if not scale > 0:
        raise ValueError(f"scale is {scale}; it must be above 0")
    if not all(-90 < one < 90 for one in shear):
        raise ValueError(f"shear is {shear}; both must be between -90 and 90 degrees")
    require_upright(sample, angle)

    def move(part: Any) -> Any:
        bilinear = InterpolationMode.BILINEAR
        return functional.affine(part, angle, list(translate), scale, list(shear), interpolation=bilinear, fill=fill)

    return _moved(sample, move, min_visible)


def rotate(sample: PairedSample, angle: float, *, fill: Fill = None, min_visible: float = MIN_VISIBLE) -> PairedSample:
    """Turn about the middle of the image, clockwise in degrees: `affine` with an angle alone."""
    return affine(sample, angle=angle, fill=fill, min_visible=min_visible)


def require_size(size: tuple[int, int]) -> None:
    """Raise ValueError unless a size is two positive whole numbers."""
    if len(size) != 2 or not all(isinstance(one, int) and one > 0 for one in size):
        raise ValueError(f"size is {size}; it must be height and width in pixels, above 0")


def _require_window(size: tuple[int, int], top: int, left: int, height: int, width: int) -> None:
    inside = top >= 0 and left >= 0 and top + height <= size[0] and left + width <= size[1]
    if height < 1 or width < 1 or not inside:
        raise ValueError(
            f"a crop of {width} x {height} pixels at left {left}, top {top} is not within an image of "
            f"{size[1]} x {size[0]}"
        )


def require_upright(sample: PairedSample, angle: float) -> None:
    """Raise ValueError if a turn by so many degrees makes a word of the caption or of a keypoint's name untrue."""
    turned = abs((angle + 180) % 360 - 180)
    if turned <= LARGEST_TURN:
        return
    words = direction_words("\n".join([sample.caption, *sample.keypoint_names]))
    if words:
        raise ValueError(
            f"an angle of {angle} degrees makes '{words[0]}' untrue in '{sample.caption}'; "
            f"turn by at most {LARGEST_TURN:g}, or flip"
        )


def _flipped(sample: PairedSample, flip: Callable[[Any], Any], exchange: Callable[[str], str]) -> PairedSample:
    points = sample.keypoints
    if points is not None:
        # torchvision mirrors keypoints as numbers of pixels (0 to W - 1) and moves them as places (0 to W) elsewhere.
        points = _like(flip(_like(_floats(points) - _HALF, points)).as_subclass(Tensor) + _HALF, points)
    return replace(
        sample,
        image=flip(sample.image),
        caption=exchange(sample.caption),
        boxes=None if sample.boxes is None else flip(_like(_floats(sample.boxes), sample.boxes)),
        keypoints=points,
        keypoint_names=tuple(exchange(name) for name in sample.keypoint_names),
    )


def _moved(sample: PairedSample, move: Callable[[Any], Any], min_visible: float) -> PairedSample:
    if not 0 <= min_visible <= 1:
        raise ValueError(f"min_visible is {min_visible}; it must be a share, from 0 to 1")
    changes: dict[str, Any] = {"image": move(sample.image)}
    if sample.boxes is not None:
        # Not clamped on the way: how much is outside has to be known.
        whole = move(_like(_floats(sample.boxes), sample.boxes, clamping_mode=None))
        cut = functional.clamp_bounding_boxes(whole, clamping_mode="hard")
        kept = _kept(whole, cut, min_visible)
        changes["boxes"] = _like(cut.as_subclass(Tensor)[kept], cut, clamping_mode=sample.boxes.clamping_mode)
        changes["labels"] = tuple(label for label, stays in zip(sample.labels, kept, strict=True) if stays)
        lost = tuple(label for label, stays in zip(sample.labels, kept, strict=True) if not stays)
        changes["dropped"] = sample.dropped + lost
    if sample.keypoints is not None:
        points = move(_like(_floats(sample.keypoints), sample.keypoints))
        inside = inside_image(points)
        changes |= {"keypoints": points, "visible": inside if sample.visible is None else inside & sample.visible}
    return replace(sample, **changes)


def _kept(whole: Any, cut: Any, min_visible: float) -> Tensor:
    """(B,) bool: which boxes are still to be seen."""
    before, after = (corners_of(boxes)[:, 2:] - corners_of(boxes)[:, :2] for boxes in (whole, cut))
    share = after.prod(dim=1) / before.prod(dim=1)
    return (share >= min_visible - _ROUNDING) & (after > _SLIVER).all(dim=1)


def _floats(marked: Any) -> Tensor:
    numbers: Tensor = marked.as_subclass(Tensor)
    return numbers if numbers.is_floating_point() else numbers.float()


def _like(numbers: Tensor, marked: Any, **changes: Any) -> Any:
    return tv_tensors.wrap(numbers, like=marked, **changes)
