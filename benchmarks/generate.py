"""Generation: diffusers' InstructPix2Pix pipeline image by image against the batched loop with 3 and with 2 passes.

Same weights, noise, texts and condition latents on both sides; a Stable Diffusion of 9 million parameters whose
parts take the same shares of the time as those of Stable Diffusion 1.5.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)

from mvc.denoise import decode, denoise, make_scheduler
from mvc.diffusion import GuidanceTerm, guidance_terms
from mvc.randomness import generator, seeded_global

from .results import Gate, Section, Table, finish, parser
from .steps import RATIO_SHAPE

IMAGES, BATCH, STEPS, ROUNDS = 24, 8, 6, 5
REFERENCE = "pipeline, image by image"
GATES = {"3 passes": 1.3, "2 passes": 1.9}
TOLERANCE = 1e-4


def draw(purpose: str, *shape: int) -> torch.Tensor:
    """Standard normal inputs."""
    return torch.randn(shape, generator=generator(0, purpose))


class Arms:
    """Models, inputs and the ways to make images of them."""

    def __init__(self) -> None:
        with seeded_global(0, "benchmark weights"):
            self.unet: Any = UNet2DConditionModel(sample_size=16, in_channels=8, out_channels=4, **RATIO_SHAPE.unet)
            self.vae: Any = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                sample_size=128,
                **RATIO_SHAPE.vae,
            )
        self.unet.eval()
        self.vae.eval()
        kind: Any = UniPCMultistepScheduler
        self.config = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1).config
        self.noise, self.image_latents = draw("noise", IMAGES, 4, 16, 16), draw("image", IMAGES, 4, 16, 16)
        self.text, self.null = draw("text", IMAGES, 77, 64), draw("null", 77, 64)
        # The pipeline never calls its text encoder here: it gets embeddings.
        parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
        scheduler, pipeline = make_scheduler("unipc", self.config), StableDiffusionInstructPix2PixPipeline
        self.pipeline: Any = pipeline(
            vae=self.vae, unet=self.unet, scheduler=scheduler, requires_safety_checker=False, **parts
        )
        self.pipeline.set_progress_bar_config(disable=True)

    def one_by_one(self, output_type: str = "pt", image_scale: float = 1.5) -> torch.Tensor:
        """All images by diffusers' pipeline, one at a time."""
        images = [
            self.pipeline(
                image=self.image_latents[number : number + 1],
                prompt_embeds=self.text[number : number + 1],
                negative_prompt_embeds=self.null[None],
                latents=self.noise[number : number + 1].clone(),
                num_inference_steps=STEPS,
                guidance_scale=7.5,
                image_guidance_scale=image_scale,
                output_type=output_type,
            ).images
            for number in range(IMAGES)
        ]
        return torch.cat(images)

    def latents(self, terms: list[GuidanceTerm], start: int) -> torch.Tensor:
        """Latents of a batch by our loop."""
        part = slice(start, start + BATCH)
        scheduler, noise, condition = make_scheduler("unipc", self.config), self.noise[part], self.image_latents[part]
        return denoise(self.unet, scheduler, noise, self.text[part], self.null, condition, terms, STEPS)

    def all_latents(self, terms: list[GuidanceTerm]) -> torch.Tensor:
        """Latents of all images by our loop."""
        return torch.cat([self.latents(terms, start) for start in range(0, IMAGES, BATCH)])

    def batched(self, terms: list[GuidanceTerm]) -> torch.Tensor:
        """All images by our loop."""
        return torch.cat([decode(self.vae, self.latents(terms, start)) for start in range(0, IMAGES, BATCH)])


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to one plus the value."""
    return float(((ours - theirs).abs() / (1 + theirs.abs())).max())


def measure(rounds: int) -> Section:
    """Compare the latents, then time the three ways in turn."""
    torch.set_num_threads(1)
    arms = Arms()
    dual, paper = guidance_terms("dual", 7.5, 1.5), guidance_terms("paper", 7.5)
    gates = [
        Gate(
            f"{label}: largest difference of the latents",
            difference(arms.all_latents(terms), arms.one_by_one("latent", scale)),
            high=TOLERANCE,
        )
        for label, terms, scale in (("3 passes", dual, 1.5), ("2 passes", paper, 7.5))
    ]
    ways: dict[str, Callable[[], torch.Tensor]] = {
        REFERENCE: arms.one_by_one,
        "3 passes": lambda: arms.batched(dual),
        "2 passes": lambda: arms.batched(paper),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[REFERENCE], times, strict=True))
        for name, times in seconds.items()
    }
    rows = tuple(
        (name, f"{IMAGES / statistics.median(times):.2f}", f"{ratios[name]:.2f}") for name, times in seconds.items()
    )
    return Section(
        title="Generation",
        how="diffusers' `StableDiffusionInstructPix2PixPipeline` image by image against our loop in batches of "
        f"{BATCH}: {IMAGES} images of 128 px, {STEPS} steps of UniPC, decoding included, {rounds} rounds. Three passes "
        "are the pipeline's guidance, two are the paper's (Eq. 6), which the pipeline computes with three.",
        tables=(Table(("way", "images/s", "ratio"), rows),),
        gates=(*gates, *(Gate(f"{name}, times as fast", ratios[name], low=low) for name, low in GATES.items())),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
