"""The picture of docs/multimodal/synthesis.md: images of texts with what comes back of them, and captions of images.

python -m benchmarks.picture_synthesis [--out FILE]
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from mvc.extractors import find_extractor
from mvc.modality.captioning import captioning_step
from mvc.modality.imagination import imagination_step
from mvc.modality.nodes import Sample
from mvc.modality.steps import Step
from mvc.modality.store import Store
from mvc.multimodal.cycle import text_cosine
from mvc.multimodal.synthesis import CycleCheck, NewPair, synthesise
from mvc.tiny import WEIGHTS
from mvc.tiny.evaluate import HELD_OUT_SEED, full_caption
from mvc.tiny.world import draw_character, render

from .page_picture import write_picture

CHARACTERS, IMAGES, STEPS, LEAST, EVERYTHING = (1, 3, 7), 4, 4, 0.6, -1.0
CPU = torch.device("cpu")
DOTS = 85
KEPT, DROPPED, INK = "#0072B2", "#C04B00", "#222222"


def steps() -> tuple[Step, Step]:
    """The embedded text-to-image model and the embedded captioner."""
    artist = imagination_step("tiny", STEPS, 3.0, None, CPU, 12, 200)
    return artist, captioning_step(WEIGHTS / "captioner", None, "", CPU, "captioner", 12, max_new_tokens=24)


def draw_images(rows: Any, artist: Step, captioner: Step) -> None:
    """A row a text: its images, what the captioner says of each, and whether that is close enough."""
    closeness = text_cosine(find_extractor("tiny").load(CPU))
    texts = [Sample(number, full_caption(draw_character(HELD_OUT_SEED, number))) for number in CHARACTERS]
    # With a bound that all pass, so that what would be dropped can be shown.
    check = CycleCheck(captioner, closeness, EVERYTHING)
    pairs = list(synthesise(texts, artist, IMAGES, 0, Store(None), check))
    for cells, sample in zip(rows, texts, strict=True):
        cells[0].axis("off")
        text = textwrap.fill(sample.item.split(". ")[1], 21)
        cells[0].text(0, 0.98, f"text:\n{text}", fontsize=9, va="top", transform=cells[0].transAxes)
        own = [pair for pair in pairs if pair.provenance["sample"] == sample.index]
        for axes, pair in zip(cells[1:], own, strict=True):
            draw_image(axes, pair)


def draw_image(axes: Axes, pair: NewPair) -> None:
    """An image of a text, with what came back of it."""
    score, back = pair.provenance["cycle"]["scores"][0], pair.provenance["cycle"]["came_back"][0][0]
    colour = KEPT if score >= LEAST else DROPPED
    axes.imshow(np.asarray(pair.image), interpolation="nearest")
    axes.axis("off")
    axes.set_title(f"{score:.2f} {'kept' if score >= LEAST else 'dropped'}", fontsize=9.5, color=colour)
    axes.text(0, -0.05, textwrap.fill(back, 22), fontsize=7.5, color=colour, va="top", transform=axes.transAxes)


def draw_captions(cells: Sequence[Axes], captioner: Step) -> None:
    """Images and their new captions."""
    images = [Sample(one, Image.fromarray(render(draw_character(HELD_OUT_SEED, one)))) for one in CHARACTERS]
    for axes, pair in zip(cells, synthesise(images, captioner, 8, 0, Store(None)), strict=True):
        axes.imshow(np.asarray(pair.image), interpolation="nearest")
        axes.set_title("image", fontsize=9.5)
        axes.axis("off")
        place = 1.0
        for caption in pair.captions[:3]:
            lines = textwrap.wrap(caption, 30)
            axes.text(1.08, place, "\n".join(lines), fontsize=8.5, color=KEPT, va="top", transform=axes.transAxes)
            place -= 0.13 * len(lines) + 0.06


def picture() -> Figure:
    """Texts to images on the left, images to captions on the right."""
    artist, captioner = steps()
    figure = Figure(figsize=(12.5, 6.6))
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1.75, 1))
    grid = {"left": 0.01, "right": 0.99, "top": 0.89, "bottom": 0.1, "hspace": 0.7, "wspace": 0.1}
    halves[0].suptitle(f"text to image, {STEPS} steps; below each image what comes back of it", fontsize=10.5)
    draw_images(halves[0].subplots(len(CHARACTERS), 1 + IMAGES, gridspec_kw=grid), artist, captioner)
    halves[1].suptitle("image to captions", fontsize=10.5)
    grid = {**grid, "left": -0.33, "right": 0.95}
    draw_captions(list(halves[1].subplots(len(CHARACTERS), 1, gridspec_kw=grid)), captioner)
    return figure


if __name__ == "__main__":
    write_picture("synthesis", __doc__, picture, DOTS)
