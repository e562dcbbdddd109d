"""Random erasing: a rectangle of an image is replaced by noise, for a whole batch at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mvc.randomness import numpy_generator

from .operations import Numbers, rectangles

PROBABILITY = 0.5
"""That an image is erased at all; this and what follows are the published values, and torchvision's defaults."""
AREA = (0.02, 0.33)
"""Share of the image."""
RATIO = (0.3, 3.3)
"""Height to width, drawn evenly on the logarithmic scale."""
TRIES = 10
"""Rectangles that are drawn until one is smaller than the image; without one it stays as it is."""


def draw_rectangles(count: int, side: int, seed: int, step: int) -> tuple[Numbers, Numbers]:
    """Which rectangle of each image is erased.

    Args:
        count: B, number of slots; slot k draws the same however many there are.
        side: of the images in pixels.
        seed: model seed.
        step: global step.

    Returns:
        corners (first row, first column) and sizes (height, width), both (B, 2) whole pixels; size 0 where nothing is.
    """
    draws = numpy_generator(seed, "random_erasing", step).random((count, 3 + 2 * TRIES))
    tries = draws[:, 3:].reshape(count, TRIES, 2)
    area = side**2 * (AREA[0] + (AREA[1] - AREA[0]) * tries[:, :, 0])
    low, high = np.log(RATIO)
    ratio = np.exp(low + (high - low) * tries[:, :, 1])
    sizes = np.rint(np.sqrt(np.stack([area * ratio, area / ratio], axis=2)))
    fits = (sizes < side).all(axis=2)
    erased = (draws[:, 0] < PROBABILITY) & fits.any(axis=1)
    chosen = sizes[np.arange(count), fits.argmax(axis=1)] * erased[:, None]
    return np.floor(draws[:, 1:3] * (side - chosen + 1)), chosen


def random_erasing(images: Tensor, seed: int, step: int) -> Tensor:
    """Random erasing (Zhong et al. 2020) of half of the images, with noise.

    Every erased pixel gets values of its own, evenly from 0 to 255: of the fillings that the paper compares it is the
    best, and unlike black it looks like no image. (torchvision's "random" is normal noise, for images that are
    standardised already; it would leave [0, 1].)

    Args:
        images: (B, 3, S, S) float32 in [0, 1]; not written to.
        seed: model seed.
        step: global step.

    Returns:
        (B, 3, S, S) float32 in [0, 1].
    """
    inside = rectangles(*draw_rectangles(len(images), images.shape[-1], seed, step), images)
    noise = numpy_generator(seed, "random_erasing noise", step).integers(0, 256, tuple(images.shape), dtype=np.uint8)
    return torch.where(inside, torch.from_numpy(noise).to(images.device).float().div_(255), images)
