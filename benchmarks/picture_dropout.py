"""The picture of docs/multimodal/dropout.md: what is left of some samples, and how often what is missing.

python -m benchmarks.picture_dropout [--out FILE]
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mvc.multimodal.dropout import ModalityDropout, dropped_sets, dropped_share
from mvc.tiny.world import SIDE, describe, draw_character, render

from .page_picture import write_picture

PROBABILITIES = {"image": 0.4, "text": 0.3}
CHARACTERS, STEP, DRAWS = (14, 16, 12, 56, 15, 31, 39, 75), 8, 20_000
DOTS = 95
EXACT, COUNTED, FAINT = "#0072B2", "#E69F00", "#999999"


def draw_samples(cells: list[Axes], dropout: ModalityDropout) -> None:
    """Each sample with what it kept."""
    kept = dropout.kept(len(CHARACTERS), STEP)
    for place, (axes, number) in enumerate(zip(cells, CHARACTERS, strict=True)):
        character = draw_character(0, number)
        image = render(character) if kept["image"][place] else np.zeros((SIDE, SIDE, 3), np.uint8)
        axes.imshow(image, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        if not kept["image"][place]:
            axes.text(15.5, 15.5, "no image", color="white", ha="center", va="center", fontsize=9)
        text = textwrap.fill(describe(character), 19) if kept["text"][place] else "no text"
        colour = "#222222" if kept["text"][place] else FAINT
        axes.text(0, -0.06, text, color=colour, fontsize=8, va="top", transform=axes.transAxes)


def draw_law(axes: Axes, dropout: ModalityDropout) -> None:
    """Exact probabilities of what is missing, and what was counted."""
    sets = dropped_sets(PROBABILITIES)
    kept = dropout.kept(DRAWS, 0)
    rows = zip(*(kept[name].tolist() for name in kept), strict=True)
    counts = Counter(frozenset(name for name, own in zip(kept, row, strict=True) if not own) for row in rows)
    places = np.arange(len(sets) + 1)
    axes.bar(places - 0.2, [*sets.values(), 0], 0.4, color=EXACT, label="exact")
    counted = [counts[missing] / DRAWS for missing in (*sets, frozenset(PROBABILITIES))]
    axes.bar(places + 0.2, counted, 0.4, color=COUNTED, label=f"counted, {DRAWS:,} samples")
    for place, (exact, found) in enumerate(zip([*sets.values(), 0.0], counted, strict=True)):
        axes.text(place, max(exact, found) + 0.01, f"{exact:.3f}", ha="center", fontsize=9)
    names = [" and ".join(sorted(missing)) or "nothing" for missing in sets]
    axes.set_xticks(places, [*names, "both"], fontsize=9)
    shares = ", ".join(f"{name} {share:.3f}" for name, share in dropped_share(PROBABILITIES).items())
    given = ", ".join(f"{name} {share:g}" for name, share in PROBABILITIES.items())
    axes.set_title(f"what is missing; asked for: {given}\nreally missing: {shares}", fontsize=9.5)
    axes.legend(fontsize=9, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def picture() -> Figure:
    """Samples to the left, the law to the right."""
    dropout = ModalityDropout(PROBABILITIES, seed=0)
    figure = Figure(figsize=(10.5, 4.6))
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    left, right = halves
    grid = {"left": 0.02, "right": 0.98, "top": 0.97, "bottom": 0.16, "hspace": 0.5, "wspace": 0.15}
    draw_samples(list(left.subplots(2, 4, gridspec_kw=grid).flat), dropout)
    draw_law(right.subplots(gridspec_kw={"left": 0.1, "right": 0.98, "top": 0.86, "bottom": 0.1}), dropout)
    return figure


if __name__ == "__main__":
    write_picture("dropout", __doc__, picture, DOTS)
