"""The picture of docs/multimodal/mining.md: the captions that an image is most easily mistaken for, and fuller batches.

python -m benchmarks.picture_mining [--out FILE]
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mvc.extractors import find_extractor
from mvc.multimodal.mining import NONE, Negatives, hard_batches, hard_negatives
from mvc.tiny.evaluate import HELD_OUT_SEED
from mvc.tiny.world import describe, draw_character, render

from .page_picture import write_picture

COUNT, SHOWN, NEGATIVES, MARGIN = 400, (46, 3, 11), 3, 0.05
BATCHES = (8, 16, 32, 64)
UNSAID = frozenset({"style", "tilt"})
"""Left unsaid, so that some captions are equal and some are true of other images too."""
DOTS = 80
RIGHT, WRONG, HARD, FAINT = "#0072B2", "#C04B00", "#222222", "#999999"


def pairs() -> tuple[list[Any], list[str], Tensor, Tensor]:
    """Pictures and captions of held-out characters, and their features by the embedded CLIP."""
    extractor = find_extractor("tiny").load(torch.device("cpu"))
    characters = [draw_character(HELD_OUT_SEED, number) for number in range(COUNT)]
    pictures, captions = [render(one) for one in characters], [describe(one, without=UNSAID) for one in characters]
    images = torch.from_numpy(np.stack([extractor.encode(picture) for picture in pictures]))
    return pictures, captions, images, torch.from_numpy(extractor.encode_texts(captions))


def write_negatives(axes: Axes, title: str, found: Negatives, row: int, captions: list[str]) -> None:
    """The hardest negatives of an image; those that are its own caption are marked."""
    axes.axis("off")
    axes.set_title(title, fontsize=9.5, loc="left")
    place = 1.0
    for other, close in zip(found.rows[row].tolist(), found.similarities[row].tolist(), strict=True):
        if other == NONE:
            continue
        wrong = captions[other] == captions[row]
        text = textwrap.fill(f"{close:.2f} {captions[other]}", 38, subsequent_indent="       ")
        axes.text(0, place, text, color=WRONG if wrong else HARD, fontsize=9, va="top", transform=axes.transAxes)
        place -= 0.33


def draw_meetings(axes: Axes, rows: Tensor) -> None:
    """How often a sample meets its hardest negative in its batch."""
    for name, colour, known in (("hard_batches", RIGHT, rows), ("random batches", FAINT, torch.full_like(rows, NONE))):
        shares = []
        for size in BATCHES:
            batches = hard_batches(known, size, seed=0, epoch=0)
            place = {row: number for number, batch in enumerate(batches) for row in batch}
            has = [(row, int(hardest)) for row, hardest in enumerate(rows[:, 0]) if hardest != NONE]
            shares.append(100 * sum(place[row] == place[hardest] for row, hardest in has) / len(has))
        axes.plot(BATCHES, shares, "o-", color=colour, label=name)
    axes.set_xscale("log", base=2)
    axes.set_xticks(BATCHES, [str(size) for size in BATCHES])
    axes.set_ylim(0, 100)
    axes.set_xlabel("batch size", fontsize=9)
    axes.set_title(f"% of {COUNT} pairs in a batch\nwith their hardest negative", fontsize=9.5)
    axes.legend(fontsize=9, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def picture() -> Figure:
    """A row an image: itself, negatives without guards and with them; to the right, batches."""
    pictures, captions, images, texts = pairs()
    ways = {
        "no guards": hard_negatives(images, texts, NEGATIVES),
        "same=[captions]": hard_negatives(images, texts, NEGATIVES, same=[captions]),
        f"and margin={MARGIN}": hard_negatives(images, texts, NEGATIVES, same=[captions], margin=MARGIN),
    }
    figure = Figure(figsize=(13, 5.4))
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(3.4, 1))
    false = sum(captions[row] == captions[int(hardest)] for row, hardest in enumerate(ways["no guards"].rows[:, 0]))
    share = f"{100 * false / COUNT:.0f} % of {COUNT}"
    halves[0].suptitle(f"hardest negatives; without guards the first of {share} is the own caption", fontsize=10)
    grid = {"left": 0.01, "right": 0.99, "top": 0.89, "bottom": 0.12, "hspace": 0.75, "width_ratios": (0.7, 1, 1, 1)}
    for cells, row in zip(halves[0].subplots(len(SHOWN), 4, gridspec_kw=grid), SHOWN, strict=True):
        cells[0].imshow(pictures[row], interpolation="nearest")
        cells[0].axis("off")
        own = float(torch.cosine_similarity(images[row], texts[row], dim=0))
        text = textwrap.fill(f"{own:.2f} {captions[row]}", 25)
        cells[0].text(0.5, -0.06, text, color=RIGHT, fontsize=9, va="top", ha="center", transform=cells[0].transAxes)
        for axes, (title, found) in zip(cells[1:], ways.items(), strict=True):
            write_negatives(axes, title, found, row, captions)
    guarded = ways["same=[captions]"]
    draw_meetings(
        halves[1].subplots(gridspec_kw={"left": 0.15, "right": 0.96, "top": 0.87, "bottom": 0.13}), guarded.rows
    )
    return figure


if __name__ == "__main__":
    write_picture("mining", __doc__, picture, DOTS)
