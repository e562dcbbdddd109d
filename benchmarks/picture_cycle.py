"""The picture of docs/multimodal/cycle.md: captions taken to images, beside the images that they are said to be of.

python -m benchmarks.picture_cycle [--out FILE]
"""

from __future__ import annotations

import tempfile
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mvc.extractors import find_extractor
from mvc.modality.imagination import imagination_step
from mvc.modality.store import FILE, Store
from mvc.multimodal.cycle import ImageText, Scored, image_cosine, score_pairs
from mvc.tiny.evaluate import HELD_OUT_SEED, full_caption
from mvc.tiny.world import describe, draw_character, render

from .page_picture import write_picture

CHARACTERS = (0, 1, 3, 5, 7, 4)
SHOWN, STEPS = 3, 10
CPU = torch.device("cpu")
DOTS = 90
RIGHT, WRONG = "#0072B2", "#C04B00"


def scores(folder: Path) -> list[Scored]:
    """Each image with each caption, row by row; what was drawn is below the folder."""
    characters = [draw_character(HELD_OUT_SEED, number) for number in CHARACTERS]
    pairs = [
        ImageText(0, Image.fromarray(render(one)), full_caption(other), f"{row} {column}")
        for row, one in enumerate(characters)
        for column, other in enumerate(characters)
    ]
    artist = imagination_step("tiny", STEPS, 3.0, None, CPU, 18, 200)
    return score_pairs(pairs, artist, image_cosine(find_extractor("tiny").load(CPU)), 0, Store(folder))


def draw_example(cells: list[Axes], row: int, column: int, scored: Scored, folder: Path) -> None:
    """An image, a caption, and what was drawn of the caption."""
    one, other = (draw_character(HELD_OUT_SEED, CHARACTERS[number]) for number in (row, column))
    colour = RIGHT if row == column else WRONG
    (way,) = scored.provenance["came_back"]
    with Image.open(folder / way[FILE]) as back:
        pictures = (render(one), np.asarray(back))
    for axes, pixels, title in zip(cells, pictures, ("image", f"drawn, {scored.score:.2f}"), strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=9.5, color="#222222" if title == "image" else colour)
        axes.axis("off")
    text = textwrap.fill(describe(other), 28)
    cells[0].text(0, -0.06, text, color=colour, fontsize=8.5, va="top", transform=cells[0].transAxes)


def draw_table(axes: Axes, table: np.ndarray[Any, np.dtype[np.float64]]) -> None:
    """All scores."""
    axes.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1)
    characters = [draw_character(HELD_OUT_SEED, number) for number in CHARACTERS]
    names = [f"{one.colour} {one.word}" for one in characters]
    axes.set_xticks(range(len(names)), [f"caption {name}" for name in names], rotation=35, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(names)), [f"image {name}" for name in names], fontsize=8.5)
    for row, column in np.ndindex(*table.shape):
        colour = "white" if table[row, column] > 0.7 else "#222222"
        axes.text(column, row, f"{table[row, column]:.2f}", ha="center", va="center", fontsize=8.5, color=colour)
    own = np.eye(len(table), dtype=bool)
    axes.set_title(f"right captions {table[own].mean():.2f}, others {table[~own].mean():.2f} in the mean", fontsize=9.5)


def picture() -> Figure:
    """Right captions above, wrong ones below; the table to the right."""
    figure = Figure(figsize=(12.5, 4.7))
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    grid = {"left": 0.01, "right": 0.99, "top": 0.93, "bottom": 0.13, "hspace": 0.65, "wspace": 0.08}
    cells = halves[0].subplots(2, 2 * SHOWN, gridspec_kw=grid)
    with tempfile.TemporaryDirectory() as place:
        found = scores(Path(place))
        for row in range(SHOWN):
            for line, column in enumerate((row, (row + 1) % SHOWN)):
                pair = found[row * len(CHARACTERS) + column]
                draw_example(list(cells[line, 2 * row : 2 * row + 2]), row, column, pair, Path(place))
    table = np.array([one.score for one in found], dtype=float).reshape(len(CHARACTERS), -1)
    draw_table(halves[1].subplots(gridspec_kw={"left": 0.27, "right": 0.98, "top": 0.9, "bottom": 0.24}), table)
    return figure


if __name__ == "__main__":
    write_picture("cycle", __doc__, picture, DOTS)
