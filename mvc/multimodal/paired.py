"""A sample of several modalities: an image with what is said of it and what is marked in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional

from mvc.errors import DataError

FORMATS = ("XYXY", "XYWH", "CXCYWH")
"""Formats of boxes: upright ones."""
_MODES = ("L", "RGB")
_SLACK = 1e-2
"""Pixels that boxes and points may reach over the edge: what is computed differs in its last digits."""


@dataclass(frozen=True, eq=False)
class PairedSample:
    """An image and its caption, with boxes, keypoints or neither.

    Boxes and keypoints are places, in pixels to the right of and below the image's upper left corner: the first pixel
    reaches from 0 to 1 and its middle is 0.5. To annotations that number pixels, add half a pixel.

    Attributes:
        image: PIL image (L or RGB), or (C, H, W) tensor with one or three channels, uint8 or floats in [0, 1].
        caption: true of the image; not blank.
        boxes: tv_tensors.BoundingBoxes (B, 4) of one of `FORMATS`, with an area and within the image.
        labels: of the boxes, B strings or numbers.
        keypoints: tv_tensors.KeyPoints (K, 2).
        keypoint_names: of the keypoints, K of them or none, such as "left eye".
        visible: (K,) bool: whether a keypoint is to be seen; None for all. Only others may be outside the image.
        dropped: labels of the boxes that transforms have dropped so far. The caption may still speak of them.

    Raises:
        DataError: one of these is not so; names the value.
    """

    image: Image.Image | Tensor
    caption: str
    boxes: Any = None
    labels: Sequence[str | int] = ()
    keypoints: Any = None
    keypoint_names: Sequence[str] = ()
    visible: Tensor | None = None
    dropped: tuple[str | int, ...] = ()

    def __post_init__(self) -> None:
        _require_image(self.image)
        if not isinstance(self.caption, str) or not self.caption.strip():
            raise DataError(f"the caption is {self.caption!r}", why="an empty one says nothing of the image")
        _require_boxes(self.boxes, self.labels, self.size)
        _require_keypoints(self)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the image in pixels."""
        height, width = functional.get_size(self.image)
        return height, width


def _require_image(image: object) -> None:
    if isinstance(image, Image.Image):
        if image.mode not in _MODES:
            raise DataError(f"the image's mode is {image.mode}", do="convert it to RGB or L")
        return
    if not isinstance(image, Tensor):
        raise DataError(f"the image is a {type(image).__name__}", do="give a PIL image or a tensor")
    if image.ndim != 3 or image.shape[0] not in (1, 3) or 0 in image.shape:
        raise DataError(f"the image's shape is {tuple(image.shape)}", do="give (1, H, W) or (3, H, W)")
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise DataError(f"the image's type is {image.dtype}", do="give uint8, or floats in [0, 1]")


def _require_boxes(boxes: Any, labels: Sequence[str | int], size: tuple[int, int]) -> None:
    if boxes is None:
        if len(labels):
            raise DataError(f"there are {len(labels)} labels and no boxes")
        return
    if not isinstance(boxes, tv_tensors.BoundingBoxes):
        raise DataError(f"the boxes are a {type(boxes).__name__}", do="give torchvision.tv_tensors.BoundingBoxes")
    if boxes.format.value not in FORMATS:
        raise DataError(f"the boxes' format is {boxes.format.value}", do=f"give one of {', '.join(FORMATS)}")
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise DataError(f"the boxes' shape is {tuple(boxes.shape)}", do="give (B, 4)")
    _require_canvas("boxes", boxes, size)
    if len(labels) != len(boxes):
        raise DataError(f"there are {len(boxes)} boxes and {len(labels)} labels", do="give each box a label")
    corners = corners_of(boxes)
    limits = corners.new_tensor([size[1], size[0]])
    # Written so that what is not a number fails.
    inside = (corners >= -_SLACK).all(1) & (corners <= limits.repeat(2) + _SLACK).all(1)
    for bad, fault in ((~(corners[:, 2:] > corners[:, :2]).all(1), "has no area"), (~inside, "is outside the image")):
        if bad.any():
            number = int(bad.nonzero()[0])
            raise DataError(
                f"box {number} ({labels[number]}) {fault}: {[round(one, 3) for one in corners[number].tolist()]}",
                why=f"left, top, right, bottom in an image of {size[1]} x {size[0]} pixels",
                do="cut boxes at the edge and leave out empty ones",
            )


def _require_keypoints(sample: PairedSample) -> None:
    points, names, visible = sample.keypoints, sample.keypoint_names, sample.visible
    if points is None:
        if len(names) or visible is not None:
            raise DataError("there are names of keypoints, or which are visible, and no keypoints")
        return
    if not isinstance(points, tv_tensors.KeyPoints):
        raise DataError(f"the keypoints are a {type(points).__name__}", do="give torchvision.tv_tensors.KeyPoints")
    if points.ndim != 2:
        raise DataError(f"the keypoints' shape is {tuple(points.shape)}", do="give (K, 2)")
    _require_canvas("keypoints", points, sample.size)
    if len(names) not in (0, len(points)):
        raise DataError(f"there are {len(points)} keypoints and {len(names)} names of them", do="name all or none")
    if visible is not None and (visible.shape != (len(points),) or visible.dtype != torch.bool):
        raise DataError(f"visible is {visible.dtype} of shape {tuple(visible.shape)}", do=f"give ({len(points)},) bool")
    lost = ~inside_image(points) & (visible if visible is not None else True)
    if lost.any():
        number = int(lost.nonzero()[0])
        place = [round(one, 3) for one in points[number].tolist()]
        raise DataError(
            f"keypoint {number} is outside the image: {place}",
            why=f"x, y in an image of {sample.size[1]} x {sample.size[0]} pixels",
            do="set visible=False for those that are not to be seen",
        )


def _require_canvas(name: str, marked: Any, size: tuple[int, int]) -> None:
    if tuple(marked.canvas_size) != size:
        raise DataError(
            f"the canvas of the {name} is {tuple(marked.canvas_size)} and the image is {size}",
            why="height and width in pixels must be the same",
        )


def corners_of(boxes: Any) -> Tensor:
    """(B, 4) floats: left, top, right, bottom of boxes of any of `FORMATS`."""
    numbers = boxes.as_subclass(Tensor)
    floats = numbers if numbers.is_floating_point() else numbers.float()
    corners: Tensor = functional.convert_bounding_box_format(
        floats, old_format=boxes.format, new_format=tv_tensors.BoundingBoxFormat.XYXY
    )
    return corners


def inside_image(keypoints: Any) -> Tensor:
    """(K,) bool: which keypoints are in the image, its edge included."""
    height, width = keypoints.canvas_size
    places = keypoints.as_subclass(Tensor)
    limits = places.new_tensor([width, height])
    inside: Tensor = ((places >= -_SLACK) & (places <= limits + _SLACK)).all(dim=1)
    return inside
