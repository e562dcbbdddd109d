"""The image operations of AutoAugment, RandAugment and their kin, on whole batches with a magnitude for each image.

Every operation gives what torchvision's functional of the same name gives for one image: geometric ones read the
nearest pixel (torchvision's default for these policies) and fill with grey, photometric ones round as torchvision does.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms.v2 import functional

GREY = 128
"""Fills what a geometric operation or a cutout leaves empty."""
GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
BLENDS = ("Brightness", "Color", "Contrast", "Sharpness")
OPERATIONS = (
    "Identity",
    *GEOMETRIC,
    *BLENDS,
    "Posterize",
    "Solarize",
    "AutoContrast",
    "Equalize",
    "Invert",
    "Cutout",
)

Numbers = npt.NDArray[np.float64]
Names = npt.NDArray[np.str_]


def apply(images: Tensor, names: Names, magnitudes: Numbers, places: Numbers) -> Tensor:
    """One operation on each image.

    Magnitudes, by operation: ShearX, ShearY: pixels to the side for each pixel down (or the reverse); TranslateX,
    TranslateY: whole pixels to the right, down; Rotate: degrees counter-clockwise; Brightness, Color, Contrast,
    Sharpness: factor minus 1, so that 0 changes nothing; Posterize: bits kept, 0 to 8; Solarize: levels from this one
    on are inverted, 0 to 256; Cutout: side of the square in pixels. The others ignore it.

    Args:
        images: (B, 3, S, S) uint8; not written to.
        names: (B,) of OPERATIONS.
        magnitudes: (B,).
        places: (B, 2) in [0, 1): centre of the square of Cutout, down and to the right; the others ignore it.

    Returns:
        (B, 3, S, S) uint8.
    """
    # The five geometric ones are one sampling, so they are one group.
    families = np.where(np.isin(names, GEOMETRIC), "geometric", names)
    order, changed = [], []
    for family in np.unique(families):
        chosen = np.flatnonzero(families == family)
        group = images.index_select(0, torch.from_numpy(chosen).to(images.device))
        order.append(chosen)
        changed.append(_family(names[chosen], group, magnitudes[chosen], places[chosen]))
    back = np.argsort(np.concatenate(order))
    return torch.cat(changed).index_select(0, torch.from_numpy(back).to(images.device))


def _family(names: Names, images: Tensor, magnitudes: Numbers, places: Numbers) -> Tensor:
    if names[0] in GEOMETRIC:
        return nearest(images, inverse_matrices(names, magnitudes, images.shape[-1]))
    if names[0] == "Cutout":
        return cutout(images, magnitudes, places)
    return photometric(str(names[0]), images, magnitudes)


def inverse_matrices(names: Names, magnitudes: Numbers, side: int) -> Numbers:
    """For each image the (2, 3) map from a place of the result to where it is read, in pixels from the centre.

    Args:
        names: (B,) of GEOMETRIC.
        magnitudes: (B,), as in `apply`.
        side: of the images; shears leave the upper left corner where it is.
    """
    matrices = np.tile(np.eye(2, 3), (len(names), 1, 1))
    for index, (name, magnitude) in enumerate(zip(names, magnitudes, strict=True)):
        match name:
            case "ShearX":
                matrices[index, 0, 1:] = magnitude, magnitude * side / 2
            case "ShearY":
                matrices[index, 1, [0, 2]] = magnitude, magnitude * side / 2
            case "TranslateX":
                matrices[index, 0, 2] = -magnitude
            case "TranslateY":
                matrices[index, 1, 2] = -magnitude
            case "Rotate":
                cosine, sine = np.cos(np.radians(magnitude)), np.sin(np.radians(magnitude))
                matrices[index, :, :2] = [[cosine, -sine], [sine, cosine]]
    return matrices


def nearest(images: Tensor, matrices: Numbers) -> Tensor:
    """Read every pixel of the result at its place in the image, from the nearest pixel; outside is GREY.

    Args:
        images: (B, 3, S, S) uint8.
        matrices: (B, 2, 3) of `inverse_matrices`.

    Returns:
        (B, 3, S, S) uint8.
    """
    channels, side = images.shape[1:3]
    line = torch.arange(side, device=images.device) - (side - 1) / 2
    places = torch.stack([line.repeat(side), line.repeat_interleave(side), torch.ones_like(line).repeat(side)])
    theta = torch.from_numpy(matrices).float().to(images.device)
    # All that is outside is read from a border of one grey pixel.
    right, down = (theta @ places).add_((side - 1) / 2).round_().clamp_(-1, side).unbind(dim=1)  # (B, S * S) each
    index = down.add_(1).mul_(side + 2).add_(right).add_(1).long()
    pixels = F.pad(images, (1, 1, 1, 1), value=GREY).flatten(2)
    return pixels.gather(2, index[:, None].expand(-1, channels, -1)).view_as(images)


def photometric(name: str, images: Tensor, magnitudes: Numbers) -> Tensor:
    """One operation on colours, with a magnitude for each image.

    Args:
        name: one of OPERATIONS that is neither geometric nor Cutout.
        images: (B, 3, S, S) uint8.
        magnitudes: (B,), as in `apply`.

    Raises:
        ValueError: the name is unknown.
    """
    match name:
        case "Identity":
            return images
        case "AutoContrast":
            stretched: Tensor = functional.autocontrast(images)
            return stretched
        case "Equalize":
            return _equalize(images)
        case "Invert":
            return 255 - images
        case "Posterize":
            return images & _column(256 - 2.0 ** (8 - magnitudes), images).byte()
        case "Solarize":
            return _solarize(images, magnitudes)
    pixels = images.float()
    match name:
        case "Brightness":
            # The other end of the blend is black.
            return pixels.mul_(_column(1 + magnitudes, images)).clamp_(0, 255).byte()
        case "Color":
            return _blend(pixels, _grey(pixels), magnitudes)
        case "Contrast":
            return _blend(pixels, _grey(pixels).mean(dim=(1, 2, 3), keepdim=True), magnitudes)
        case "Sharpness":
            # Not as a sum of two shares: the border, which is its own other end, must come out as it was.
            return torch.lerp(pixels, _smooth(pixels), _column(-magnitudes, images)).clamp_(0, 255).byte()
    raise ValueError(f"unknown operation '{name}'")


def _column(numbers: npt.NDArray[np.floating[Any]], images: Tensor) -> Tensor:
    return torch.from_numpy(numbers).float().to(images.device)[:, None, None, None]


def _solarize(images: Tensor, thresholds: Numbers) -> Tensor:
    # In bytes throughout, which is several times as fast; 255 - x has the bits of x turned round. Single precision
    # first: a threshold a hair above a level, as published magnitudes give it, means that level.
    first = _column(np.minimum(np.ceil(thresholds.astype(np.float32)), 255), images).byte()
    bits = _column(np.where(thresholds <= 255, 255.0, 0.0), images).byte()
    return images ^ ((images >= first).byte() * bits)


def _equalize(images: Tensor) -> Tensor:
    # Pillow's table, as torchvision makes it: the pixels that are darker, in steps of a 255th of all but the brightest.
    levels = images.flatten(2).long()
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, levels, counts.new_ones(1).expand_as(levels))
    total = counts.cumsum(2)
    brightest = counts.gather(2, total.argmax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    table = ((total - counts + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    # An image of almost one colour stays as it is.
    table = torch.where(step > 0, table, torch.arange(256, device=images.device))
    return table.byte().gather(2, levels).view_as(images)


def _blend(pixels: Tensor, other: Tensor, magnitudes: Numbers) -> Tensor:
    # Away from the other end by 1 + magnitude; a fraction of a level is cut off, as in torchvision.
    return pixels.mul_(_column(1 + magnitudes, pixels)).add_(other * _column(-magnitudes, pixels)).clamp_(0, 255).byte()


def _grey(pixels: Tensor) -> Tensor:
    red, green, blue = pixels.unbind(dim=1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def _smooth(pixels: Tensor) -> Tensor:
    # Pillow's and torchvision's kernel: the pixel counts five times; the border stays as it is.
    rows = pixels[..., :-2, :] + pixels[..., 1:-1, :] + pixels[..., 2:, :]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = pixels.clone()
    smooth[..., 1:-1, 1:-1] = around.add_(pixels[..., 1:-1, 1:-1], alpha=4).div_(13).round_()
    return smooth


def cutout(images: Tensor, sides: Numbers, centres: Numbers) -> Tensor:
    """Fill a square with GREY; its part outside the image is lost.

    Args:
        images: (B, 3, S, S) uint8.
        sides: (B,) in pixels; 0 changes nothing.
        centres: (B, 2) in [0, 1): down and to the right, as shares of the side.

    Returns:
        (B, 3, S, S) uint8.
    """
    # The square has a pixel more than its side, as that of Pillow in the published code.
    corners = np.floor(np.maximum(0, centres * images.shape[-1] - sides[:, None] / 2))
    sizes = np.where(sides > 0, np.floor(sides) + 1, 0)
    return images.masked_fill(rectangles(corners, np.stack([sizes, sizes], axis=1), images), GREY)


def rectangles(corners: Numbers, sizes: Numbers, images: Tensor) -> Tensor:
    """(B, 1, S, S) bool, True in a rectangle of each image.

    Args:
        corners: (B, 2) whole pixels: the first row and the first column.
        sizes: (B, 2) whole pixels: height and width; 0 for none.
        images: (B, 3, S, S); for their size and device.
    """
    line = np.arange(images.shape[-1])
    first, last = corners[:, :, None], (corners + sizes)[:, :, None]
    inside = torch.from_numpy((line >= first) & (line < last)).to(images.device)  # (B, 2, S)
    return (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None]
