"""Pictures of the same few samples at several steps of a fine-tuning: how one is laid out, and what a page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvc.errors import DataError
from mvc.images import decode
from mvc.storage import read_json, write_bytes, write_json

from .pictures import GAP, TILE, data_uri, png

FOLDER, FACTS = "samples", "samples.json"
"""Below the run folder; and the file in it that tells how its pictures are laid out."""
COLUMNS = 8
"""Samples beside each other; more go below."""
MOST_STEPS = 10
"""Pictures that a page shows, the first and the last among them."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Grids:
    """What a page shows of the samples of a run.

    Attributes:
        classes: class folder of each column.
        hidden: samples that are not shown.
        conditions: the condition images as a data: address.
        steps: (step, its samples as a data: address), ascending.
        width, height: of every picture, in pixels.
    """

    classes: list[str]
    hidden: int
    conditions: str
    steps: list[tuple[int, str]]
    width: int
    height: int


def write_grid(
    run: Path, step: int, classes: Sequence[str], conditions: Sequence[Pixels], drawn: Sequence[Pixels]
) -> Path:
    """Write run/samples/step-000250.png: a row of condition images, and below each one what was drawn with it.

    Args:
        run: the run folder.
        step: optimisation steps done.
        classes: class folder of each sample.
        conditions: n arrays (side, side, 3).
        drawn: n arrays (side, side, 3).

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    side, columns = len(drawn[0]), min(COLUMNS, len(drawn))
    lines = -(-len(drawn) // columns)
    # A pair of rows stands a little apart from the next one.
    height = lines * (2 * (side + GAP) + GAP) - 2 * GAP
    picture = Image.new("RGB", (columns * (side + GAP) - GAP, height), "white")
    for number, pair in enumerate(zip(conditions, drawn, strict=True)):
        line, column = divmod(number, columns)
        for row, pixels in enumerate(pair):
            top = line * (2 * (side + GAP) + GAP) + row * (side + GAP)
            picture.paste(Image.fromarray(pixels), (column * (side + GAP), top))
    folder = run / FOLDER
    write_json(folder / FACTS, {"side": side, "columns": columns, "classes": list(classes)})
    path = folder / f"step-{step:06d}.png"
    write_bytes(path, png(picture))
    return path


def read_grids(run: Path) -> Grids:
    """The first row of samples at up to `MOST_STEPS` steps, and their condition images.

    Raises:
        DataError: there are none, or one cannot be read.
    """
    folder = run / FOLDER
    found = {
        int(path.stem.removeprefix("step-")): path for path in folder.glob("step-*.png") if path.stem[5:].isdigit()
    }
    if not found or not (folder / FACTS).exists():
        raise DataError("No samples were drawn on the way: train.sample_steps is 0.")
    facts = read_json(folder / FACTS)
    try:
        side, columns, classes = int(facts["side"]), int(facts["columns"]), [str(name) for name in facts["classes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / FACTS} cannot be used", why=str(error), do="delete the folder") from error
    steps = sorted(found)
    chosen = [steps[place] for place in _spread(len(steps))]
    rows = [_rows(found[step], side, columns) for step in chosen]
    width, height = rows[0][0].size
    return Grids(
        classes=classes[:columns],
        hidden=len(classes) - columns,
        conditions=data_uri(rows[-1][0]),
        steps=[(step, data_uri(drawn)) for step, (_, drawn) in zip(chosen, rows, strict=True)],
        width=width,
        height=height,
    )


def _spread(count: int) -> list[int]:
    """Places of at most `MOST_STEPS` of them, evenly apart, the first and the last among them."""
    shown = min(count, MOST_STEPS)
    return [number * (count - 1) // max(1, shown - 1) for number in range(shown)]


def _rows(path: Path, side: int, columns: int) -> tuple[Image.Image, Image.Image]:
    """The first row of condition images and that of samples, RGBA, at a size for the page."""
    picture = decode(path)
    if picture.width != columns * (side + GAP) - GAP or picture.height < 2 * side + GAP:
        raise DataError(f"{path} is not laid out as its {FACTS} says", do="delete the folder")
    # As everywhere on the page: small images are enlarged by repeating pixels, large ones made smaller.
    shown = side * (TILE // side) if side <= TILE else TILE
    how = Image.Resampling.NEAREST if side <= TILE else Image.Resampling.BICUBIC
    rows = []
    for row in range(2):
        line = Image.new("RGBA", (columns * (shown + GAP) - GAP, shown))
        for column in range(columns):
            left, top = column * (side + GAP), row * (side + GAP)
            tile = picture.crop((left, top, left + side, top + side)).resize((shown, shown), how)
            line.paste(tile, (column * (shown + GAP), 0))
        rows.append(line)
    return rows[0], rows[1]
