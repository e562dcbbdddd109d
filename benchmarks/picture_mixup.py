"""The picture of docs/multimodal/mixup.md: one pair turning into another, and what belongs to what in a mixed batch.

python -m benchmarks.picture_mixup [--out FILE]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mvc.multimodal.mixup import Mixture, contrastive_targets, draw_mixture, mix
from mvc.tiny.world import Character, draw_character, render

from .page_picture import write_picture

CHARACTERS = (14, 16, 12, 56)
SHARES = (1.0, 0.75, 0.5, 0.25, 0.0)
DOTS = 95
OWN, OTHER = "#0072B2", "#C04B00"


def pixels(characters: list[Character]) -> Tensor:
    """(B, 3, 32, 32) float32 in [0, 1]."""
    return torch.from_numpy(np.stack([render(one) for one in characters])).permute(0, 3, 1, 2).float() / 255


def show(axes: Axes, image: Tensor) -> None:
    """An image without ticks."""
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    axes.set(xticks=[], yticks=[])


def draw_line(cells: list[Axes], images: Tensor, names: list[str]) -> None:
    """Two pairs mixed at several shares: the pictures, and how much of each text goes with them."""
    for axes, share in zip(cells, SHARES, strict=True):
        mixture = Mixture(torch.tensor([1, 0]), torch.tensor([share, 1 - share]))
        show(axes, mix(images[:2], mixture)[0])
        axes.set_title(rf"$\lambda$ = {share:g}", fontsize=10)
        own, other = contrastive_targets(mixture, both_mixed=False)[0].tolist()
        axes.text(0, -0.06, f"{own:.2f} {names[0]}", color=OWN, fontsize=9, va="top", transform=axes.transAxes)
        axes.text(0, -0.17, f"{other:.2f} {names[1]}", color=OTHER, fontsize=9, va="top", transform=axes.transAxes)


def draw_targets(axes: Axes, targets: Tensor, names: list[str], title: str) -> None:
    """The table of targets with its numbers."""
    axes.imshow(targets.numpy(), cmap="Blues", vmin=0, vmax=1.4)
    axes.set_title(title, fontsize=10)
    axes.set_xticks(range(len(names)), [f"text {name}" for name in names], rotation=30, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(names)), [f"mixed {number + 1}" for number in range(len(names))], fontsize=8.5)
    for row in range(len(names)):
        for column in range(len(names)):
            axes.text(column, row, f"{targets[row, column]:.2f}", ha="center", va="center", fontsize=8.5)


def picture() -> Figure:
    """Above the line from pair to pair, below a batch of four with a lambda each."""
    characters = [draw_character(0, number) for number in CHARACTERS]
    images, names = pixels(characters), [f"{one.colour} {one.word}" for one in characters]
    figure = Figure(figsize=(10.5, 6.2))
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(2, 1, height_ratios=(1, 1.15))
    above, below = halves
    draw_line(
        list(above.subplots(1, len(SHARES), gridspec_kw={"left": 0.02, "right": 0.99, "bottom": 0.2})), images, names
    )
    mixture = draw_mixture(len(characters), 1.0, seed=0, step=31, per_pair=True)
    left, right = below.subfigures(1, 2, width_ratios=(1, 1.25))
    for row, axes in enumerate(left.subplots(2, 2, gridspec_kw={"left": 0.06, "hspace": 0.32, "top": 0.9}).flat):
        show(axes, mix(images, mixture)[row])
        axes.set_title(rf"mixed {row + 1}, $\lambda$ = {mixture.share[row]:.2f}", fontsize=9.5)
    tables = right.subplots(1, 2, gridspec_kw={"left": 0.1, "right": 0.99, "bottom": 0.24, "wspace": 0.35})
    draw_targets(tables[0], contrastive_targets(mixture, False), names, "texts as they were")
    draw_targets(tables[1], contrastive_targets(mixture, True), names, "texts mixed along")
    tables[1].set_xticks(
        range(4), [f"mixed {number + 1}" for number in range(4)], rotation=30, ha="right", fontsize=8.5
    )
    return figure


if __name__ == "__main__":
    write_picture("mixup", __doc__, picture, DOTS)
