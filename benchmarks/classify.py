"""Classifier batches of real + synthetic images against torchvision's ImageFolder + DataLoader on real images alone.

Ratios, all on one core, both sides in turn: decoding (the same files by both), a start with no cache (checked,
decoded, written, then a few epochs of real and synthetic images) and batches of each strategy from the mapped cache.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from mvc.candidates import write_image
from mvc.classify.augment import to_float
from mvc.classify.images import Images, cached_images, decode_all, take
from mvc.classify.strategies import Mix, slots
from mvc.randomness import generator, numpy_generator
from mvc.storage import sha256_file

from .results import Gate, Section, Table, finish, parser

ROUNDS, REAL, SYNTHETIC, SIDE, SIZE, BATCH, STEPS, EPOCHS = 5, 128, 512, 256, 64, 64, 60, 3
STRATEGIES = ("combined", "rsp", "two_phase", "weighted")
JPEG, PNG, COLD = "decoding of real JPEG", "decoding of synthetic PNG", f"no cache, then {EPOCHS} epochs of both"
GATES = {
    **dict.fromkeys((JPEG, PNG, COLD), (0.8, 0.9)),
    **{f"batches of {strategy}": (3.0, 10.0) for strategy in STRATEGIES},
}
"""Least ratio and aimed ratio of each work."""

Work = Callable[[], int]
"""Something to time; returns how many images it handled."""


def write_images(folder: Path, count: int, ending: str) -> list[Path]:
    """Files of smooth noise in four class folders: .jpg, as real images are, or .png, as ours are written."""
    paths = []
    for index in range(count):
        coarse = numpy_generator(0, f"benchmark{ending}", index).integers(0, 256, (10, 10, 3)).astype(np.uint8)
        image = Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        path = folder / str(index % 4) / f"{index:04}{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        if ending == ".png":
            write_image(path.parent, path.name, np.asarray(image))
        else:
            image.save(path, quality=95)
        paths.append(path)
    return paths


def rate(work: Work) -> float:
    """Images per second of one call."""
    start = time.perf_counter()
    images = work()
    return images / (time.perf_counter() - start)


def reference(folder: Path) -> Work:
    """One epoch of a folder's images through ImageFolder and DataLoader, float in [0, 1]."""
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


def epochs(real: Images, synthetic: Images, strategy: str, steps: int) -> int:
    """Batches of a strategy, float in [0, 1]; how many images they held."""
    mix, done = Mix(strategy, steps, BATCH, real.labels.numpy(), synthetic.labels.numpy()), 0
    for step in range(steps):
        pixels, _ = take(real, synthetic, slots(mix, 0, step).indices)
        done += len(to_float(pixels))
    return done


@dataclass(frozen=True)
class Files:
    """Image files with the digests that a run would have frozen."""

    paths: list[Path]
    digests: list[str]

    def decoded(self) -> Images:
        """All of them in memory."""
        return self._labelled(decode_all(self.paths, self.digests, SIZE, "white", "images"))

    def mapped(self, folder: Path) -> Images:
        """All of them from the cache in a folder, which is made where it is not there."""
        return self._labelled(cached_images(folder, self.paths, self.digests, SIZE, "white", "images"))

    def _labelled(self, pixels: Tensor) -> Images:
        return Images(pixels, torch.arange(len(pixels)) % 4)


def cold_start(folder: Path, real: Files, synthetic: Files) -> Work:
    """The first epochs of a comparison, with everything that comes before them."""

    def work() -> int:
        with tempfile.TemporaryDirectory(dir=folder) as cold:
            sets = real.mapped(Path(cold) / "real"), synthetic.mapped(Path(cold) / "synthetic")
            return epochs(*sets, "combined", EPOCHS * (REAL + SYNTHETIC) // BATCH)

    return work


def measure(rounds: int) -> Section:
    """Rates of the reference and of each of our works, in turn."""
    torch.set_num_threads(1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as quiet, redirect_stderr(quiet):
        works = all_work(Path(name))
        rates: dict[str, list[tuple[float, float]]] = {key: [] for key in works}
        for _ in range(rounds):
            for key, (work, theirs) in works.items():
                rates[key].append((rate(theirs), rate(work)))
    ratios = {key: median(mine / base for base, mine in found) for key, found in rates.items()}
    rows = [
        (key, *(f"{median(column):.0f}" for column in zip(*found, strict=True)), f"{ratios[key]:.2f}")
        for key, found in rates.items()
    ]
    return Section(
        title="Classifier batches",
        how=f"Images per second on one core, {rounds} rounds, against torchvision's ImageFolder and DataLoader (files "
        f"of {SIDE} px, resized to {SIZE} with Pillow). Decoding: both sides the same files. A start with no cache: "
        f"{REAL} real JPEG and {SYNTHETIC} synthetic PNG files are checked, decoded and written, and {EPOCHS} epochs "
        f"of them served; ImageFolder serves the real ones alone, as it does below, where batches of {BATCH} real and "
        "synthetic images come from the mapped cache.",
        tables=(Table(("work", "ImageFolder, images/s", "ours, images/s", "ratio"), tuple(rows)),),
        gates=tuple(
            Gate(f"{key}, times as fast", ratios[key], low=low, aim_low=aim) for key, (low, aim) in GATES.items()
        ),
    )


def all_work(folder: Path) -> dict[str, tuple[Work, Work]]:
    """By name our work and the reference."""
    found = {".jpg": write_images(folder / "real", REAL, ".jpg")}
    found[".png"] = write_images(folder / "synthetic", SYNTHETIC, ".png")
    real, synthetic = (Files(paths, [sha256_file(path) for path in paths]) for paths in found.values())
    for _ in range(2):  # made, then mapped
        sets = real.mapped(folder / "cache" / "real"), synthetic.mapped(folder / "cache" / "synthetic")
    plain = reference(folder / "real")
    return {
        JPEG: (lambda: len(real.decoded()), plain),
        PNG: (lambda: len(synthetic.decoded()), reference(folder / "synthetic")),
        COLD: (cold_start(folder, real, synthetic), plain),
        **{f"batches of {one}": (partial(epochs, *sets, one, STEPS), plain) for one in STRATEGIES},
    }


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
