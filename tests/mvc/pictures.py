"""Small image files and folders of them for the tests of reading data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mvc.randomness import numpy_generator


def picture(number: int, size: int = 40) -> Image.Image:
    """A smooth coloured picture that differs clearly from number to number."""
    coarse = numpy_generator(0, "test picture", number).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC)


def fill(root: Path, layout: dict[str, int], first: int = 0) -> int:
    """Write different PNG files: folder below `root` -> how many; returns the number of the next picture."""
    for folder, count in layout.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            picture(first).save(root / folder / f"{index:03d}.png")
            first += 1
    return first
