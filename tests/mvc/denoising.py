"""Inputs of the denoising loop at toy size, and diffusers' pipelines to compare it with."""

from __future__ import annotations

from typing import Any

import torch

from mvc.denoise import denoise, make_scheduler
from mvc.embeddings import time_ids
from mvc.randomness import generator
from tests.mvc.text_models import clip_tokenizer, second_text_encoder, text_encoder
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE, WIDTH, WIDTH_2, sd_scheduler, tiny_vae

STEPS, BATCH, TOKENS = 5, 8, 77


def draw(purpose: str, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=generator(0, purpose))


def plain_inputs() -> dict[str, Any]:
    """Noise, texts and image latents of a batch."""
    return {
        "noise": draw("noise", BATCH, 4, LATENT_SIZE, LATENT_SIZE),
        "encoder_hidden_states": draw("text", BATCH, TOKENS, WIDTH),
        "null_hidden_states": draw("null", TOKENS, WIDTH),
        "image_latents": draw("image", BATCH, 4, LATENT_SIZE, LATENT_SIZE),
    }


def run(
    unet: Any, inputs: dict[str, Any], terms: Any, name: str = "ddim", kind: str = "epsilon", **more: Any
) -> torch.Tensor:
    scheduler = make_scheduler(name, sd_scheduler(kind).config)
    return denoise(unet, scheduler, **inputs, terms=terms, num_inference_steps=STEPS, **more)


def part(inputs: dict[str, Any], chosen: slice) -> dict[str, Any]:
    return {name: value if name == "null_hidden_states" else value[chosen] for name, value in inputs.items()}


def from_pipeline(pipeline: Any, inputs: dict[str, Any], **arguments: Any) -> torch.Tensor:
    pipeline.set_progress_bar_config(disable=True)
    null = inputs["null_hidden_states"].expand(BATCH, -1, -1)
    given: dict[str, Any] = {
        "prompt_embeds": inputs["encoder_hidden_states"],
        "negative_prompt_embeds": null,
        "latents": inputs["noise"].clone(),
        "num_inference_steps": STEPS,
        "output_type": "latent",
    }
    given |= arguments
    # Those that begin with an image take no latents, and draw their noise from a generator for each image.
    return pipeline(**{name: value for name, value in given.items() if value is not None}).images


def generators() -> list[torch.Generator]:
    return [generator(0, "generators", row) for row in range(BATCH)]


def draw_from(each: list[torch.Generator]) -> torch.Tensor:
    return torch.stack([torch.randn(4, LATENT_SIZE, LATENT_SIZE, generator=one) for one in each])


def parts(unet: Any, name: str, kind: str) -> dict[str, Any]:
    return {
        "vae": tiny_vae(),
        "text_encoder": text_encoder(0, WIDTH),
        "tokenizer": clip_tokenizer(),
        "unet": unet,
        "scheduler": make_scheduler(name, sd_scheduler(kind).config),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


def xl_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    return {
        **inputs,
        "encoder_hidden_states": draw("xl text", BATCH, TOKENS, WIDTH + WIDTH_2),
        "null_hidden_states": draw("xl null", TOKENS, WIDTH + WIDTH_2),
        "added_cond_kwargs": {
            "text_embeds": draw("pooled", BATCH, WIDTH_2),
            "time_ids": time_ids(IMAGE_SIZE).repeat(BATCH, 1),
        },
        "null_text_embeds": draw("null pooled", WIDTH_2),
    }


def xl_parts(unet: Any, name: str) -> dict[str, Any]:
    own = {name: value for name, value in parts(unet, name, "epsilon").items() if "safety" not in name}
    own.pop("feature_extractor")
    return {**own, "text_encoder_2": second_text_encoder(0, WIDTH_2), "tokenizer_2": clip_tokenizer()}
