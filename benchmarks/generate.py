"""Generation: diffusers' InstructPix2Pix pipeline image by image against the shipped batches with 3 and with 2 passes.

Same weights, scheduler, noise, texts and condition latents on both sides; a Stable Diffusion of 9 million parameters
whose parts take the same shares of the time as those of Stable Diffusion 1.5.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from diffusers import StableDiffusionInstructPix2PixPipeline, UNet2DConditionModel, UniPCMultistepScheduler

from mvc.denoise import denoise, make_scheduler
from mvc.diffusion import guidance_terms
from mvc.generate.jobs import Job, draw_noise
from mvc.generate.source import ClassText, Source, draw
from mvc.randomness import generator, seeded_global

from .results import Gate, Section, Table, finish, parser
from .steps import RATIO_SHAPE, new_vae

IMAGES, BATCH, STEPS, ROUNDS = 24, 8, 6, 5
SCALE, IMAGE_SCALE = 7.5, 1.5
REFERENCE = "pipeline, image by image"
CLASS = "class"
TOLERANCE = 1e-4
CPU = torch.device("cpu")

Guidance = Literal["dual", "paper"]


@dataclass(frozen=True)
class Way:
    """A way of ours, and what it has to reach.

    Attributes:
        guidance: which passes it makes.
        image_scale: at which the pipeline computes the same.
        low: times as fast as the pipeline, at least.
        aim: what it should be.
    """

    guidance: Guidance
    image_scale: float
    low: float
    aim: float


WAYS = {"3 passes": Way("dual", IMAGE_SCALE, 1.3, 1.4), "2 passes": Way("paper", SCALE, 1.9, 2.1)}


def normal(purpose: str, *shape: int) -> torch.Tensor:
    """Standard normal inputs."""
    return torch.randn(shape, generator=generator(0, purpose))


def jobs_of(guidance: Guidance, images: int) -> list[Job]:
    """The jobs of some images, each with a text and a training image of its own."""
    image_scale = IMAGE_SCALE if guidance == "dual" else None
    return [Job("finetuned", CLASS, number, 1, number, number, None, SCALE, image_scale) for number in range(images)]


def source_of(guidance: Guidance, unet: Any, vae: Any, images: int, side: int, device: torch.device) -> Source:
    """What the generate stage draws with, on random texts and latents.

    Args:
        guidance: kind of guidance.
        unet, vae: on `device`.
        images: different texts and condition latents.
        side: of the latents.
        device: where to compute.
    """
    kind: Any = UniPCMultistepScheduler
    config = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1).config
    width = unet.config.cross_attention_dim
    ids = [str(number) for number in range(images)]
    return Source(
        kind="finetuned",
        seed=0,
        unet=unet,
        vae=vae,
        device=device,
        new_scheduler=partial(make_scheduler, "unipc", config),
        num_inference_steps=STEPS,
        guidance=guidance,
        texts={CLASS: ClassText(ids, normal("text", images, 77, width), 77)},
        null=normal("null", 77, width),
        image_latents={CLASS: normal("image", images, 4, side, side)},
        shape=(4, side, side),
    )


def pipeline_of(source: Source) -> Any:
    """diffusers' pipeline of the same parts; it gets embeddings, so it never calls a text encoder."""
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    kind: Any = StableDiffusionInstructPix2PixPipeline
    scheduler = source.new_scheduler()
    pipeline = kind(vae=source.vae, unet=source.unet, scheduler=scheduler, requires_safety_checker=False, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def one_by_one(source: Source, pipeline: Any, jobs: list[Job], image_scale: float, output_type: str) -> torch.Tensor:
    """Images in [0, 1], or latents, of some jobs by diffusers' pipeline, one at a time, on the CPU."""
    assert source.image_latents is not None
    there = {"device": source.device, "dtype": pipeline.unet.dtype}
    text, condition = source.texts[CLASS].embeddings, source.image_latents[CLASS]
    images = [
        pipeline(
            image=condition[[job.condition or 0]].to(**there),
            prompt_embeds=text[[job.caption or 0]].to(**there),
            negative_prompt_embeds=source.null[None].to(**there),
            latents=draw_noise(source.seed, [job], source.shape).to(**there),
            num_inference_steps=source.num_inference_steps,
            guidance_scale=SCALE,
            image_guidance_scale=image_scale,
            output_type=output_type,
        ).images.cpu()
        for job in jobs
    ]
    return torch.cat(images)


def our_latents(source: Source, guidance: Guidance, jobs: list[Job]) -> torch.Tensor:
    """Latents of all jobs, in batches, by the loop that `draw` calls."""
    assert source.image_latents is not None
    terms = guidance_terms(guidance, SCALE, IMAGE_SCALE)
    found = []
    for start in range(0, len(jobs), BATCH):
        part = jobs[start : start + BATCH]
        noise, rows = draw_noise(source.seed, part, source.shape), [job.index for job in part]
        text, condition = source.texts[CLASS].embeddings[rows], source.image_latents[CLASS][rows]
        scheduler = source.new_scheduler()
        found.append(denoise(source.unet, scheduler, noise, text, source.null, condition, terms, STEPS))
    return torch.cat(found)


def batched(source: Source, jobs: list[Job], batch: int) -> torch.Tensor:
    """All images as the generate stage makes them, in [0, 1]."""
    drawn = [draw(source, jobs[start : start + batch]).pixels for start in range(0, len(jobs), batch)]
    return torch.cat(drawn).div(2).add(0.5).clamp(0, 1)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Largest difference, relative to one plus the value."""
    return float(((ours - theirs).abs() / (1 + theirs.abs())).max())


def all_arms() -> tuple[Any, dict[str, Source], dict[str, list[Job]]]:
    """The pipeline, and what each of our ways draws with and draws."""
    with seeded_global(0, "benchmark weights"):
        unet: Any = UNet2DConditionModel(sample_size=16, in_channels=8, out_channels=4, **RATIO_SHAPE.unet)
        vae = new_vae(RATIO_SHAPE)
    unet.eval()
    vae.eval()
    sources = {name: source_of(way.guidance, unet, vae, IMAGES, 16, CPU) for name, way in WAYS.items()}
    return (
        pipeline_of(sources["3 passes"]),
        sources,
        {name: jobs_of(way.guidance, IMAGES) for name, way in WAYS.items()},
    )


def measure(rounds: int) -> Section:
    """Compare latents and images, then time the three ways in turn."""
    torch.set_num_threads(1)
    pipeline, sources, jobs = all_arms()
    gates = []
    for name, way in WAYS.items():
        source, own = sources[name], jobs[name]
        theirs = one_by_one(source, pipeline, own, way.image_scale, "latent")
        gates.append(
            Gate(
                f"{name}: largest difference of the latents",
                difference(our_latents(source, way.guidance, own), theirs),
                high=TOLERANCE,
            )
        )
    first = partial(one_by_one, sources["3 passes"], pipeline, jobs["3 passes"], IMAGE_SCALE, "pt")
    ways: dict[str, Callable[[], torch.Tensor]] = {
        REFERENCE: first,
        **{name: partial(batched, sources[name], jobs[name], BATCH) for name in WAYS},
    }
    images: dict[str, torch.Tensor] = {}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, make in ways.items():
            start = time.perf_counter()
            images[name] = make()
            seconds[name].append(time.perf_counter() - start)
    apart = difference(images["3 passes"], images[REFERENCE])
    gates.append(Gate("3 passes: largest difference of the images", apart, high=TOLERANCE))
    ratios = {
        name: statistics.median(a / b for a, b in zip(seconds[REFERENCE], times, strict=True))
        for name, times in seconds.items()
    }
    rows = tuple(
        (name, f"{IMAGES / statistics.median(times):.2f}", f"{ratios[name]:.2f}") for name, times in seconds.items()
    )
    gates += [Gate(f"{name}, times as fast", ratios[name], low=way.low, aim_low=way.aim) for name, way in WAYS.items()]
    return Section(
        title="Generation",
        how="diffusers' `StableDiffusionInstructPix2PixPipeline` image by image against the generate stage's `draw` in "
        f"batches of {BATCH}: {IMAGES} images of 128 px, {STEPS} steps of UniPC, decoding included, {rounds} rounds. "
        "Three passes are the pipeline's guidance, two are the paper's (Eq. 6), for which the pipeline takes three.",
        tables=(Table(("way", "images/s", "ratio"), rows),),
        gates=tuple(gates),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
