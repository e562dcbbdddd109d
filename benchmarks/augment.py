"""Augmentations on whole batches against torchvision's on one image after the other.

Ratios on one thread, both sides in turn: 64 images of 32 px and of 64 px through each augmentation of single images,
crop and mirror included.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor
from torchvision.transforms import v2

from mvc.classify.augment import augmentation
from mvc.randomness import generator

from .results import Gate, Section, Table, finish, parser

ROUNDS, BATCH, SIDES = 15, 64, (32, 64)
NAMES = ("default", "autoaugment", "fast_autoaugment", "randaugment", "trivialaugment", "random_erasing")
GREY = [128.0] * 3
LOW = {32: 1.5, 64: 1.0}
"""Gates: times as fast, by side. Larger images leave less to win, as torchvision's cost of a call counts for less."""


def reference(name: str, side: int) -> Callable[[Tensor], Tensor]:
    """The same in torchvision's transforms, image by image, from uint8 to float in [0, 1]."""
    crop = [v2.RandomCrop(side, padding=side // 8, padding_mode="edge"), v2.RandomHorizontalFlip()]
    to_float = v2.ToDtype(torch.float32, scale=True)
    moved = v2.RandomAffine(10, (1 / 8, 1 / 8), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR)
    usual = [to_float, moved, v2.RandomHorizontalFlip()]
    steps: dict[str, list[v2.Transform]] = {
        "default": usual,
        "autoaugment": [*crop, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=GREY), to_float],
        # torchvision has no Fast AutoAugment; AutoAugment does as many operations.
        "fast_autoaugment": [*crop, v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10, fill=GREY), to_float],
        "randaugment": [*crop, v2.RandAugment(fill=GREY), to_float],
        "trivialaugment": [*crop, v2.TrivialAugmentWide(fill=GREY), to_float],
        "random_erasing": [*usual, v2.RandomErasing(value="random")],
    }
    one = v2.Compose(steps[name])
    return lambda images: torch.stack([one(image) for image in images])


def times(name: str, side: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds of torchvision and of ours, in turn; the first round warms up and does not count."""
    images = torch.randint(0, 256, (BATCH, 3, side, side), dtype=torch.uint8, generator=generator(0, "benchmark", side))
    theirs, ours = reference(name, side), augmentation(name, 0, random_flip=True)
    found = []
    for step in range(rounds + 1):
        start = time.perf_counter()
        theirs(images)
        middle = time.perf_counter()
        ours(images, step)
        found.append((middle - start, time.perf_counter() - middle))
    return found[1:]


def measure(rounds: int) -> Section:
    """Both sides of every augmentation and size."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found = {(name, side): times(name, side, rounds) for side in SIDES for name in NAMES}
    ratios = {key: median(base / mine for base, mine in pairs) for key, pairs in found.items()}
    rows = [
        (name, f"{side} px", *(f"{1000 * median(column):.2f}" for column in zip(*pairs, strict=True)), f"{ratio:.1f}")
        for ((name, side), pairs), ratio in zip(found.items(), ratios.values(), strict=True)
    ]
    worst = {side: min(ratios[name, side] for name in NAMES) for side in SIDES}
    return Section(
        title="Augmentations",
        how=f"Milliseconds for {BATCH} images on one core, {rounds} rounds, against torchvision's transforms on one "
        "image after the other; crop and mirror, or the default's affine map, are part of both.",
        tables=(Table(("augmentation", "size", "torchvision, ms", "ours, ms", "times as fast"), tuple(rows)),),
        gates=tuple(Gate(f"slowest at {side} px, times as fast", worst[side], low=LOW[side]) for side in SIDES),
        notes=("fast_autoaugment is compared with torchvision's AutoAugment, which does as many operations.",),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
