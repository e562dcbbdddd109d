"""The picture of docs/multimodal/interpolation.md: what lies between two noises and their captions, on circle and line.

python -m benchmarks.picture_interpolation [--out FILE]
"""

from __future__ import annotations

from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from mvc.multimodal.interpolation import Between, Interpolate, interpolate_pairs, lerp, slerp
from mvc.randomness import generator
from mvc.text_to_image import find_text_to_image, load_text_to_image
from mvc.tiny.evaluate import full_caption
from mvc.tiny.world import draw_character

from .page_picture import write_picture

CHARACTERS = (16, 5)
"""Two zeros."""
PATHS: dict[str, Interpolate] = {"slerp": slerp, "lerp": lerp}
COLOURS = {"slerp": "#0072B2", "lerp": "#D55E00"}
TIMES = torch.linspace(0, 1, 7)
DOTS = 95


def two_pairs(pipeline: Any) -> tuple[Tensor, Tensor]:
    """Noises (2, 4, 8, 8), as a sampler begins with, and the captions' embeddings (2, 77, 128)."""
    noise = torch.stack([torch.randn(4, 8, 8, generator=generator(0, "noise", number)) for number in range(2)])
    texts = [full_caption(draw_character(0, number)) for number in CHARACTERS]
    with torch.no_grad():
        embeddings, _ = pipeline.encode_prompt(texts, torch.device("cpu"), 1, False)
    return noise, embeddings


def drawn(pipeline: Any, noise: Tensor, embeddings: Tensor) -> Tensor:
    """(n, 3, 32, 32) float32 in [0, 1]: what the embedded model makes of them."""
    with torch.no_grad():
        images: Tensor = pipeline(
            prompt_embeds=embeddings, latents=noise, num_inference_steps=20, guidance_scale=3.0, output_type="pt"
        ).images
    return images


def draw_lengths(axes: Axes, noise: Tensor) -> None:
    """Length of the noise on the way, as a share of that at the ends."""
    times = torch.linspace(0, 1, 101)
    for name, path in PATHS.items():
        made = path(noise[:1].expand(101, -1, -1, -1), noise[1:].expand(101, -1, -1, -1), times)
        axes.plot(times, made.flatten(1).norm(dim=1) / noise.flatten(1).norm(dim=1).mean(), color=COLOURS[name])
        axes.text(0.5, {"slerp": 1.03, "lerp": 0.64}[name], name, color=COLOURS[name], ha="center", fontsize=9.5)
    axes.set(ylim=(0.6, 1.1), xlabel="t")
    axes.set_title("length of the noise", fontsize=9.5)
    axes.spines[["top", "right"]].set_visible(False)


def picture() -> Figure:
    """A row of new pairs for each way, and how long the noise is."""
    pipeline = load_text_to_image(
        find_text_to_image("tiny", None, "model"), torch.device("cpu"), torch.float32, "model"
    )
    noise, embeddings = two_pairs(pipeline)
    zeros = torch.zeros(len(TIMES), dtype=torch.int64)
    between = Between(zeros, zeros + 1, TIMES)
    figure = Figure(figsize=(12.5, 3.6))
    FigureCanvasAgg(figure)
    halves: Any = figure.subfigures(1, 2, width_ratios=(3.9, 1))
    rows = halves[0].subplots(2, len(TIMES), gridspec_kw={"left": 0.05, "right": 0.99, "top": 0.92, "bottom": 0.02})
    for cells, (name, path) in zip(rows, PATHS.items(), strict=True):
        images = drawn(pipeline, *interpolate_pairs(noise, embeddings, between, path, path))
        for axes, image, t in zip(cells, images, TIMES.tolist(), strict=True):
            axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set(xticks=[], yticks=[])
            axes.set_title(f"t = {t:.2f}", fontsize=9.5)
        cells[0].set_ylabel(name, fontsize=11, color=COLOURS[name])
    draw_lengths(halves[1].subplots(gridspec_kw={"left": 0.17, "right": 0.97, "top": 0.88, "bottom": 0.15}), noise)
    return figure


if __name__ == "__main__":
    write_picture("interpolation", __doc__, picture, DOTS)
