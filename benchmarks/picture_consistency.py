"""The picture of docs/multimodal/consistency.md: what the losses say of diverging predictions, and of two geometries.

python -m benchmarks.picture_consistency [--out FILE]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mvc.extractors import find_extractor
from mvc.multimodal.consistency import cross_modal_geometry, in_modal_geometry, jensen_shannon, symmetric_kl
from mvc.tiny.evaluate import full_caption
from mvc.tiny.world import draw_character, render

from .page_picture import write_picture

CHARACTERS = (14, 16, 12, 56, 15, 31, 39, 75)
DOTS = 95
BLUE, ORANGE = "#0072B2", "#D55E00"


def draw_divergences(axes: Axes) -> None:
    """Both divergences between predictions that differ by more and more."""
    logits = torch.linspace(-6, 6, 121)
    image = torch.tensor([[1.0, 0.0]])
    texts = [torch.tensor([[float(value), 0.0]]) for value in logits]
    axes.plot(logits, [symmetric_kl(image, text).item() for text in texts], color=BLUE, label="symmetric_kl")
    axes.plot(logits, [jensen_shannon(image, text).item() for text in texts], color=ORANGE, label="jensen_shannon")
    axes.axhline(np.log(2), color=ORANGE, linewidth=1, linestyle=":")
    axes.text(-6, np.log(2) + 0.05, "ln 2", color=ORANGE, fontsize=9)
    axes.axvline(1, color="#999999", linewidth=1, linestyle=":")
    axes.set_xlabel("logit of the first of two classes, by the text\n(by the image it is 1)", fontsize=9)
    axes.set_ylabel("loss in nats", fontsize=9)
    axes.legend(fontsize=9, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def features() -> tuple[Tensor, Tensor, list[str]]:
    """Of the embedded CLIP: images and texts of the characters, and what they are called."""
    extractor = find_extractor("tiny").load(torch.device("cpu"))
    characters = [draw_character(0, number) for number in CHARACTERS]
    images = np.stack([extractor.encode(render(one)) for one in characters])
    texts = extractor.encode_texts([full_caption(one) for one in characters])
    return torch.from_numpy(images), torch.from_numpy(texts), [f"{one.colour} {one.word}" for one in characters]


def draw_table(axes: Axes, table: Tensor, names: list[str], title: str, labelled: bool) -> None:
    """Similarities between -1 and 1."""
    axes.imshow(table.numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
    axes.set_title(title, fontsize=9.5)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7.5)
    axes.set_yticks(range(len(names)), names if labelled else [""] * len(names), fontsize=8)


def picture() -> Figure:
    """Predictions to the left, geometry to the right."""
    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(1, 2.4))
    left, right = halves
    draw_divergences(left.subplots())
    images, texts, names = features()
    one, other = (torch.nn.functional.normalize(values, dim=1) for values in (images, texts))
    tables = right.subplots(1, 3)
    draw_table(tables[0], one @ one.T, names, "images with images", labelled=True)
    draw_table(tables[1], other @ other.T, names, "texts with texts", labelled=False)
    draw_table(tables[2], one @ other.T, names, "images (rows) with texts", labelled=False)
    inside, cross = in_modal_geometry(images, texts).item(), cross_modal_geometry(images, texts).item()
    right.suptitle(
        f"in_modal_geometry {inside:.3f}: the first two tables differ.   "
        f"cross_modal_geometry {cross:.3f}: the third differs from its mirror image.",
        fontsize=9.5,
    )
    return figure


if __name__ == "__main__":
    write_picture("consistency", __doc__, picture, DOTS)
