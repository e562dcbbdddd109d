"""The batched operations against torchvision's functionals on single images, and against their inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from mvc.classify.operations import GEOMETRIC, GREY, OPERATIONS, apply, cutout, photometric, rectangles
from mvc.randomness import generator

FILL = [float(GREY)] * 3


def pictures(count: int, side: int) -> Tensor:
    """Smooth pictures with noise, so that neither histograms nor neighbours are trivial."""
    coarse = torch.rand((count, 3, 5, 5), generator=generator(1, "coarse", side)) * 220
    smooth = torch.nn.functional.interpolate(coarse, side, mode="bicubic")
    return (smooth + 20 * torch.rand(smooth.shape, generator=generator(1, "noise", side))).clamp(0, 255).byte()


def changed(name: str, images: Tensor, magnitudes: list[float]) -> Tensor:
    return apply(images, np.full(len(images), name), np.array(magnitudes), np.zeros((len(images), 2)))


def reference(name: str, image: Tensor, magnitude: float) -> Tensor:
    """What torchvision's policies do with one image: nearest pixels, grey fill, shears about the corner."""
    steady = {"angle": 0.0, "scale": 1.0, "fill": FILL}
    angle = math.degrees(math.atan(magnitude))
    match name:
        case "Identity":
            return image
        case "ShearX":
            return functional.affine(image, translate=[0, 0], shear=[angle, 0.0], center=[0, 0], **steady)
        case "ShearY":
            return functional.affine(image, translate=[0, 0], shear=[0.0, angle], center=[0, 0], **steady)
        case "TranslateX":
            return functional.affine(image, translate=[int(magnitude), 0], shear=[0.0, 0.0], **steady)
        case "TranslateY":
            return functional.affine(image, translate=[0, int(magnitude)], shear=[0.0, 0.0], **steady)
        case "Rotate":
            return functional.rotate(image, magnitude, fill=FILL)
        case "Brightness":
            return functional.adjust_brightness(image, 1 + magnitude)
        case "Color":
            return functional.adjust_saturation(image, 1 + magnitude)
        case "Contrast":
            return functional.adjust_contrast(image, 1 + magnitude)
        case "Sharpness":
            return functional.adjust_sharpness(image, 1 + magnitude)
        case "Posterize":
            return functional.posterize(image, int(magnitude))
        case "Solarize":
            return image if magnitude > 255 else functional.solarize(image, magnitude)
        case "AutoContrast":
            return functional.autocontrast(image)
        case "Equalize":
            return functional.equalize(image)
        case "Invert":
            return functional.invert(image)
    raise ValueError(name)


def assert_near(name: str, found: Tensor, wanted: Tensor) -> None:
    """Equal but for what floating point decides: a pixel halfway between two others, or a level about to round."""
    apart = (found.int() - wanted.int()).abs()
    if name in GEOMETRIC:
        assert (apart > 0).float().mean() <= 1e-3
    elif name in ("Color", "Contrast", "Sharpness"):
        assert apart.max() <= 1 and (apart > 0).float().mean() <= 0.05
    else:
        assert apart.max() == 0


@pytest.mark.parametrize("side", [15, 32, 96])
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("ShearX", -0.99, 0.99),
        ("ShearY", -0.99, 0.99),
        ("TranslateX", -40, 40),
        ("TranslateY", -40, 40),
        ("Rotate", -135, 135),
        ("Brightness", -0.99, 0.99),
        ("Color", -0.99, 0.99),
        ("Contrast", -0.99, 0.99),
        ("Sharpness", -0.99, 0.99),
        ("Posterize", 0, 8),
        ("Solarize", 0, 256),
        ("AutoContrast", 0, 0),
        ("Equalize", 0, 0),
        ("Invert", 0, 0),
    ],
)
def test_every_operation_is_torchvisions(name: str, low: float, high: float, side: int) -> None:
    magnitudes = np.linspace(low, high, 33)
    magnitudes = np.trunc(magnitudes) if name.startswith("Translate") or name == "Posterize" else magnitudes
    images = pictures(len(magnitudes), side)
    found = changed(name, images, magnitudes.tolist())
    wanted = [reference(name, image, float(magnitude)) for image, magnitude in zip(images, magnitudes, strict=True)]
    assert found.dtype == torch.uint8 and found.shape == images.shape
    assert_near(name, found, torch.stack(wanted))


@pytest.mark.parametrize("name", ["Identity", *GEOMETRIC, "Brightness", "Color", "Contrast", "Sharpness", "Cutout"])
def test_no_strength_changes_nothing(name: str) -> None:
    images = pictures(4, 17)
    assert torch.equal(changed(name, images, [0.0] * 4), images)


def test_all_bits_and_no_level_to_invert_change_nothing() -> None:
    images = pictures(4, 17)
    assert torch.equal(changed("Posterize", images, [8.0] * 4), images)
    assert torch.equal(changed("Solarize", images, [256.0] * 4), images)
    assert torch.equal(changed("Solarize", images, [0.0] * 4), 255 - images)


def test_flat_and_tiny_images_pass_through_the_histogram_operations() -> None:
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    for name in ("Equalize", "AutoContrast", "Sharpness"):
        assert torch.equal(changed(name, flat, [0.9, 0.9]), flat)
    tiny = pictures(2, 2)
    assert torch.equal(changed("Sharpness", tiny, [0.9, 0.9]), tiny)


def test_turns_and_moves_have_inverses() -> None:
    images = pictures(3, 16)
    assert torch.equal(changed("Rotate", images, [90.0] * 3), torch.rot90(images, 1, (2, 3)))
    back = changed("TranslateX", changed("TranslateX", images, [5.0] * 3), [-5.0] * 3)
    assert torch.equal(back[..., :11], images[..., :11]) and (back[..., 11:] == GREY).all()
    moved = changed("TranslateY", images, [5.0] * 3)
    assert torch.equal(moved[..., 5:, :], images[..., :11, :]) and (moved[..., :5, :] == GREY).all()
    assert torch.equal(changed("Invert", changed("Invert", images, [0.0] * 3), [0.0] * 3), images)


def test_shear_moves_each_row_by_its_distance_from_the_upper_edge() -> None:
    column = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    column[..., 12] = 255
    sheared = changed("ShearX", column, [0.5])
    for row in range(16):
        assert sheared[0, 0, row].argmax() == 12 - math.ceil((row + 0.5) * 0.5 - 0.5)


def test_cutout_is_torchvisions_erase_of_a_square() -> None:
    images = pictures(4, 20)
    centres = np.array([[0.5, 0.5], [0.0, 0.99], [0.31, 0.02], [0.7, 0.2]])
    found = cutout(images, np.array([4.0, 4.0, 0.5, 0.0]), centres)
    # Centre minus half the side, cut off at the edge; a pixel more than the side.
    squares = [(8, 8, 5, 5), (0, 17, 5, 3), (5, 0, 1, 1)]
    for image, result, (top, left, height, width) in zip(images, found, squares, strict=False):
        assert torch.equal(result, functional.erase(image, top, left, height, width, torch.tensor(GREY)))
    assert torch.equal(found[3], images[3])


def test_rectangles_have_their_area() -> None:
    inside = rectangles(np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[3.0, 4.0], [0.0, 5.0]]), torch.zeros(2, 3, 9, 9))
    assert inside.shape == (2, 1, 9, 9) and inside.sum((1, 2, 3)).tolist() == [12, 0]
    assert inside[0, 0, 1:4, 2:6].all()


def test_each_image_gets_its_own_operation_whatever_the_others_get() -> None:
    names = np.array(OPERATIONS * 3)
    draws = np.random.Generator(np.random.PCG64(4)).random((len(names), 3))
    magnitudes = np.where(np.isin(names, ["Posterize", "TranslateX", "Cutout"]), np.floor(8 * draws[:, 0]), draws[:, 0])
    images = pictures(len(names), 16)
    copy = images.clone()
    together = apply(images, names, magnitudes, draws[:, 1:])
    assert torch.equal(images, copy)
    for one in range(len(names)):
        part = slice(one, one + 1)
        assert torch.equal(together[part], apply(images[part], names[part], magnitudes[part], draws[part, 1:]))


def test_unknown_operation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown operation 'Swirl'"):
        photometric("Swirl", pictures(1, 8), np.zeros(1))
