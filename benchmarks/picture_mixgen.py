"""The picture of docs/multimodal/mixgen.md: two pairs of printed characters, and what each variant makes of them.

python -m benchmarks.picture_mixgen [--out FILE]
"""

from __future__ import annotations

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mvc.mixgen import mix_images
from mvc.mixgen_plan import VARIANTS, MixGenPlan, plan_mixgen
from mvc.randomness import numpy_generator
from mvc.tiny.world import describe, draw_character, render

from .page_picture import write_picture

PAIRS = ((15, 5, 11), (14, 16, 8))
"""Numbers of the two characters, and of the draw: one with a lambda near 0, one between."""
OWN, OTHER, INK = "#0072B2", "#C04B00", "#222222"
"""Words of the row's own text and of its partner's."""
DOTS, LETTERS, LINE = 90, 24, 0.115
"""Pixels an inch, letters a line, and a line's height as a share of a picture's."""


def draw_cell(axes: Axes, title: str, image: Image.Image, own: str, other: str) -> None:
    """One pair: a picture, and below it the words that came from either text."""
    axes.imshow(np.asarray(image), interpolation="nearest")
    axes.set_title(title, fontsize=9.5, color=INK)
    axes.axis("off")
    place = -0.05
    for text, colour in ((own, OWN), (other, OTHER)):
        for line in textwrap.wrap(text, LETTERS):
            axes.text(0, place, line, color=colour, fontsize=8.5, va="top", transform=axes.transAxes)
            place -= LINE


def new_pair(plan: MixGenPlan, images: list[Image.Image], texts: list[str]) -> tuple[str, Image.Image, str, str]:
    """Title, image, and the words that stay of the own and of the other's text."""
    own, other = (text.split() for text in texts)
    places, both = plan.tokens(0, len(own), len(other)), [*own, *other]
    parts = [" ".join(both[at] for at in side) for side in (places[places < len(own)], places[places >= len(own)])]
    title = plan.variant if plan.variant == "c" else rf"{plan.variant}, $\lambda$ = {plan.mix[0]:.2f}"
    return title, mix_images(plan, images)[0], parts[0], parts[1]


def picture() -> Figure:
    """A row for each pair: both sources, then the new pair of each variant."""
    figure = Figure(figsize=(14.5, 3.15 * len(PAIRS)))
    FigureCanvasAgg(figure)
    cells = figure.subplots(len(PAIRS), 2 + len(VARIANTS), squeeze=False)
    figure.subplots_adjust(left=0.008, right=0.995, top=0.955, bottom=0.19, wspace=0.1, hspace=0.95)
    for row, (first, second, draw) in enumerate(PAIRS):
        characters = [draw_character(0, number) for number in (first, second)]
        images = [Image.fromarray(render(one)) for one in characters]
        texts = [describe(one) for one in characters]
        draw_cell(cells[row, 0], "pair i", images[0], texts[0], "")
        draw_cell(cells[row, 1], "pair j", images[1], "", texts[1])
        for column, variant in enumerate(VARIANTS, start=2):
            plan = plan_mixgen(2, numpy_generator(0, "mixgen picture", draw), variant, share=0.5)
            draw_cell(cells[row, column], *new_pair(plan, images, texts))
    return figure


if __name__ == "__main__":
    write_picture("mixgen", __doc__, picture, DOTS)
