"""P4: batches of real + synthetic images against torchvision's ImageFolder + DataLoader on real images alone.

Two ratios, both on one core, A and B interleaved in one process, median of 5 rounds:
decoding (images decoded per second when the cache is made) and mixing (images per second in batches of RSP and
of two_phase from the cache). Exits with 1 below a gate.
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

ROUNDS, REAL, SYNTHETIC, SIDE, SIZE, BATCH = 5, 128, 512, 256, 64, 64
TARGETS = {"decoding": (0.9, 0.8), "mixing, rsp": (20.0, 10.0), "mixing, two_phase": (20.0, 10.0)}
"""Ratio aimed at, and the gate."""


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


def main() -> int:
    """Print the ratios; returns the exit code."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as quiet:
        paths = write_images(Path(name), REAL)
        digests = [sha256_file(path) for path in paths]

        def decoding() -> int:
            with redirect_stderr(quiet):
                return len(decode_all(paths, digests, SIZE, "white", "images"))

        with redirect_stderr(quiet):
            pixels = decode_all(paths, digests, SIZE, "white", "images")
        real = Images(pixels, torch.arange(REAL) % 4)
        rows = torch.arange(SYNTHETIC) % REAL
        synthetic = Images(pixels[rows], real.labels[rows])
        ours = {
            "decoding": decoding,
            "mixing, rsp": mixing("rsp", real, synthetic),
            "mixing, two_phase": mixing("two_phase", real, synthetic),
        }
        theirs = reference(Path(name))
        ratios: dict[str, list[float]] = {key: [] for key in ours}
        for _ in range(ROUNDS):
            for key, work in ours.items():
                base = rate(theirs)
                ratios[key].append(rate(work) / base)
    failed = False
    for key, (target, gate) in TARGETS.items():
        middle = median(ratios[key])
        failed |= middle < gate
        state = "FAIL" if middle < gate else "ok" if middle >= target else "below target"
        print(f"P4 {key}: {middle:.2f} x ImageFolder + DataLoader (target {target:g}, gate {gate:g}): {state}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
