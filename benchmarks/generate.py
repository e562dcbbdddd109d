"""Generation: diffusers' InstructPix2Pix pipeline image by image against the batched loop with 3 and with 2 passes.

Same weights, noise, texts and condition latents on both sides; a Stable Diffusion of 9 million parameters whose
parts take the same shares of the time as those of Stable Diffusion 1.5. The three are timed in turn, so that a busy
machine slows all of them; the ratio is the median over rounds. Fails below the gates.
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

from mvc.diffusion import GuidanceTerm, guidance_terms
from mvc.generate.denoise import decode, denoise, make_scheduler
from mvc.randomness import generator, seeded_global

IMAGES, BATCH, STEPS, ROUNDS = 24, 8, 6, 5
GATES = {"3 passes": 1.3, "2 passes": 1.9}


def unet_and_vae() -> tuple[UNet2DConditionModel, AutoencoderKL]:
    """Random weights; speed does not depend on them."""
    with seeded_global(0, "benchmark weights"):
        unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=8,
            out_channels=4,
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            cross_attention_dim=64,
            attention_head_dim=4,
        )
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(12, 24, 48, 48),
            layers_per_block=2,
            norm_num_groups=4,
            sample_size=128,
        )
    return unet.eval(), vae.eval()


def draw(purpose: str, *shape: int) -> torch.Tensor:
    """Standard normal inputs."""
    return torch.randn(shape, generator=generator(0, purpose))


def main() -> int:
    """Time, print and judge; returns the exit code."""
    torch.set_num_threads(1)
    unet, vae = unet_and_vae()
    config = UniPCMultistepScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1
    ).config
    noise, image_latents = draw("noise", IMAGES, 4, 16, 16), draw("image", IMAGES, 4, 16, 16)
    text, null = draw("text", IMAGES, 77, 64), draw("null", 77, 64)

    # The pipeline never calls its text encoder here: it gets embeddings.
    parts: dict[str, Any] = {"text_encoder": None, "tokenizer": None, "safety_checker": None, "feature_extractor": None}
    pipeline = StableDiffusionInstructPix2PixPipeline(
        vae=vae, unet=unet, scheduler=make_scheduler("unipc", config), requires_safety_checker=False, **parts
    )
    pipeline.set_progress_bar_config(disable=True)

    def one_by_one(output_type: str = "pt", image_scale: float = 1.5) -> torch.Tensor:
        images = [
            pipeline(
                image=image_latents[number : number + 1],
                prompt_embeds=text[number : number + 1],
                negative_prompt_embeds=null[None],
                latents=noise[number : number + 1].clone(),
                num_inference_steps=STEPS,
                guidance_scale=7.5,
                image_guidance_scale=image_scale,
                output_type=output_type,
            ).images
            for number in range(IMAGES)
        ]
        return torch.cat(images)

    def latents(terms: list[GuidanceTerm], start: int) -> torch.Tensor:
        part = slice(start, start + BATCH)
        scheduler = make_scheduler("unipc", config)
        return denoise(unet, scheduler, noise[part], text[part], null, image_latents[part], terms, STEPS)

    def batched(terms: list[GuidanceTerm]) -> torch.Tensor:
        return torch.cat([decode(vae, latents(terms, start)) for start in range(0, IMAGES, BATCH)])

    dual, paper = guidance_terms("dual", 7.5, 1.5), guidance_terms("paper", 7.5)
    agree = True
    for label, terms, scale in (("3 passes", dual, 1.5), ("2 passes", paper, 7.5)):
        ours = torch.cat([latents(terms, start) for start in range(0, IMAGES, BATCH)])
        theirs = one_by_one("latent", scale)
        close = torch.allclose(ours, theirs, atol=1e-4, rtol=1e-4)
        agree = agree and close
        difference = float((ours - theirs).abs().max())
        print(f"{label}: latents equal the pipeline's at 1e-4: {close} (largest difference {difference:.1e})")

    arms: dict[str, Callable[[], torch.Tensor]] = {
        "pipeline": one_by_one,
        "3 passes": lambda: batched(dual),
        "2 passes": lambda: batched(paper),
    }
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    for _ in range(ROUNDS):
        for name, arm in arms.items():
            start = time.perf_counter()
            arm()
            seconds[name].append(time.perf_counter() - start)
    print(f"pipeline, image by image: {IMAGES / statistics.median(seconds['pipeline']):.2f} images/s")
    for name, gate in GATES.items():
        ratio = statistics.median(a / b for a, b in zip(seconds["pipeline"], seconds[name], strict=True))
        rate = IMAGES / statistics.median(seconds[name])
        agree = agree and ratio >= gate
        print(f"{name}, batch {BATCH}: {rate:.2f} images/s, {ratio:.2f} times the pipeline (gate {gate})")
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
