"""Text -> image by a text-to-image model, and the filter that throws black and white images away.

Black and white images are captioned "a black and white photo of", which no text of a data set says (Sec. 3.2 of
Back-Modality).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mvc.images import GREY_LEVELS, chroma
from mvc.randomness import generator
from mvc.storage import sha256_json
from mvc.text_to_image import draw_texts, find_text_to_image, load_text_to_image, text_to_image_identity

from .nodes import Filter
from .steps import Item, Output, Refused, Result, Run, Step, one_each, within

KEY = "imagination.model"


def imagination_step(
    model: str | Path,
    num_inference_steps: int,
    guidance_scale: float,
    image_size: int | None,
    device: torch.device,
    batch_size: int,
    max_characters: int,
) -> Step:
    """The step text -> image; randomness from (seed of the output, "noise").

    Args:
        model: "tiny", a diffusers folder or a hub id.
        num_inference_steps: denoising steps.
        guidance_scale: of the text.
        image_size: side in pixels; the model's own when None.
        device: where to compute, in float32 on a CPU and in bfloat16 elsewhere.
        batch_size: images at once.
        max_characters: longer texts are refused.

    Raises:
        EnvironmentFault, ConfigError: as `find_text_to_image`.
    """
    folder = find_text_to_image(model, None, KEY)
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16

    def load() -> Run:
        pipeline = load_text_to_image(folder, device, dtype, KEY)

        def draw(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
            return within(list(zip(items, seeds, strict=True)), lambda pair: why_not(pair[0], max_characters), drawn)

        def drawn(pairs: list[Item]) -> list[Any]:
            if not pairs:
                return []
            noises = [generator(seed, "noise") for _, seed in pairs]
            texts = [text for text, _ in pairs]
            pixels = draw_texts(pipeline, texts, noises, num_inference_steps, guidance_scale, image_size)
            return [_picture(own) for own in pixels]

        return one_each(draw)

    settings = [text_to_image_identity(folder), num_inference_steps, guidance_scale, image_size, str(dtype)]
    return Step(
        f"text-to-image model {Path(model).name}",
        "text",
        "image",
        load,
        sha256_json(["imagination", 1, settings]),
        batch_size=batch_size,
    )


def why_not(text: str, max_characters: int) -> str | None:
    """Why a text cannot be drawn; None if it can."""
    if not text.strip():
        return "the text is empty"
    if len(text) > max_characters:
        return f"the text has {len(text):,} characters, more than {max_characters:,}"
    return None


def _picture(pixels: torch.Tensor) -> Result:
    if not bool(pixels.isfinite().all()):
        return Refused("the image is not finite")
    levels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Output(Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy()))


def in_colour(item: Item, image: Item) -> tuple[bool, Mapping[str, Any]]:
    """Whether an image has colour, and its chroma in levels of 255; the `Judge` of `colour_filter`."""
    level = chroma(np.asarray(image))
    return level >= GREY_LEVELS, {"chroma": round(level, 1)}


colour_filter = Filter("black and white", in_colour)
"""Refuses images whose channels differ by less than GREY_LEVELS in the mean."""
