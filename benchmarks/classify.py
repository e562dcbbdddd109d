"""Classifier batches of real + synthetic images against torchvision's ImageFolder + DataLoader on real images alone.

Ratios, all on one core, both sides in turn: decoding (images decoded per second when the cache is made) and mixing
(images per second in batches of RSP and of two_phase from the cache).
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mvc.classify.augment import to_float
from mvc.classify.images import Images, decode_all, take
from mvc.classify.strategies import batch
from mvc.randomness import generator, numpy_generator
from mvc.storage import sha256_file

from .results import Gate, Section, Table, finish, parser

ROUNDS, REAL, SYNTHETIC, SIDE, SIZE, BATCH = 5, 128, 512, 256, 64, 64
GATES = {"decoding": 0.8, "batches of rsp": 10.0, "batches of two_phase": 10.0}


def write_images(folder: Path, count: int) -> list[Path]:
    """JPEG files of smooth noise in four class folders."""
    paths = []
    for index in range(count):
        coarse = numpy_generator(0, "benchmark", index).integers(0, 256, (10, 10, 3)).astype(np.uint8)
        path = folder / str(index % 4) / f"{index:04}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(path, quality=95)
        paths.append(path)
    return paths


def rate(work: Callable[[], int]) -> float:
    """Images per second of one call, which returns how many images it handled."""
    start = time.perf_counter()
    images = work()
    return images / (time.perf_counter() - start)


def reference(folder: Path) -> Callable[[], int]:
    """One epoch of real images through ImageFolder and DataLoader, float in [0, 1]."""
    # The usual order of the ImageNet recipes, with the interpolation that mvc.images has too.
    steps = [
        v2.Resize(SIZE, v2.InterpolationMode.BICUBIC),
        v2.CenterCrop(SIZE),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
    ]
    loader = DataLoader(
        ImageFolder(str(folder), v2.Compose(steps)), BATCH, shuffle=True, generator=generator(0, "benchmark order")
    )
    return lambda: sum(len(images) for images, _ in loader)


def mixing(strategy: str, real: Images, synthetic: Images) -> Callable[[], int]:
    """Batches of a strategy from images in memory, float in [0, 1]."""
    steps = 60

    def work() -> int:
        done = 0
        for step in range(steps):
            drawn = batch(strategy, 0, step, steps, BATCH, len(real), len(synthetic))
            pixels, _ = take(real, synthetic, drawn.indices)
            done += len(to_float(pixels))
        return done

    return work


def measure(rounds: int) -> Section:
    """Rates of the reference and of each of our works, in turn."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as quiet, redirect_stderr(quiet):
        ours, theirs = all_work(Path(name))
        rates: dict[str, list[tuple[float, float]]] = {key: [] for key in ours}
        for _ in range(rounds):
            for key, work in ours.items():
                rates[key].append((rate(theirs), rate(work)))
    ratios = {key: median(mine / base for base, mine in found) for key, found in rates.items()}
    rows = [
        (key, *(f"{median(column):.0f}" for column in zip(*found, strict=True)), f"{ratios[key]:.2f}")
        for key, found in rates.items()
    ]
    return Section(
        title="Classifier batches",
        how=f"Images per second on one core, {rounds} rounds, against torchvision's ImageFolder and DataLoader on real "
        f"images alone (JPEG of {SIDE} px, resized to {SIZE} with Pillow): decoding for the cache, and batches of "
        f"{BATCH} real and synthetic images from the cache.",
        tables=(Table(("work", "ImageFolder, images/s", "ours, images/s", "ratio"), tuple(rows)),),
        gates=tuple(Gate(f"{key}, times as fast", ratios[key], low=low) for key, low in GATES.items()),
    )


def all_work(folder: Path) -> tuple[dict[str, Callable[[], int]], Callable[[], int]]:
    """Our works by name, and the reference."""
    paths = write_images(folder, REAL)
    digests = [sha256_file(path) for path in paths]
    pixels = decode_all(paths, digests, SIZE, "white", "images")
    real = Images(pixels, torch.arange(REAL) % 4)
    rows = torch.arange(SYNTHETIC) % REAL
    synthetic = Images(pixels[rows], real.labels[rows])
    ours = {
        "decoding": lambda: len(decode_all(paths, digests, SIZE, "white", "images")),
        "batches of rsp": mixing("rsp", real, synthetic),
        "batches of two_phase": mixing("two_phase", real, synthetic),
    }
    return ours, reference(folder)


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
