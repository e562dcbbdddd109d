"""The denoising loop: a whole batch at once, all guidance passes of a step in one forward pass of the UNet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from torch import Tensor

from mvc.diffusion import GuidanceTerm, combine
from mvc.loading import quiet

SCHEDULERS: dict[str, Any] = {
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
}
"""All of them without noise in their steps: the initial noise alone makes the image."""


def make_scheduler(name: str, config: Any) -> Any:
    """A fresh scheduler with the noise schedule and prediction type of the base model's.

    Args:
        name: key of SCHEDULERS.
        config: configuration of the base model's noise scheduler.
    """
    # Latents are not bounded by [-1, 1]; DDIM would clip them where the base says nothing.
    with quiet():  # keys of the scheduler that the base names
        return SCHEDULERS[name].from_config({**config, "clip_sample": False})


@torch.no_grad()
def denoise(
    unet: Any,
    scheduler: Any,
    noise: Tensor,
    encoder_hidden_states: Tensor,
    null_hidden_states: Tensor,
    image_latents: Tensor | None,
    terms: Sequence[GuidanceTerm],
    num_inference_steps: int,
    added_cond_kwargs: Mapping[str, Tensor] | None = None,
    null_text_embeds: Tensor | None = None,
) -> Tensor:
    """Turn noise into latents.

    Args:
        unet: predicts from 8 channels (latents and image latents) or, without `image_latents`, from 4.
        scheduler: fresh from `make_scheduler`: multistep schedulers keep a state.
        noise: (B, 4, h, w) float32, standard normal.
        encoder_hidden_states: (B, m, d) text embeddings.
        null_hidden_states: (m, d) embedding of the empty text.
        image_latents: (B, 4, h, w) latents of x', scaled as in training; None for text-to-image.
        terms: the passes to make and their coefficients, from mvc.diffusion's `guidance_terms`, or
            `text_guidance_terms` without image latents.
        num_inference_steps: denoising steps.
        added_cond_kwargs: for an SDXL, `text_embeds` (B, p) pooled vectors and `time_ids` (B, 6); else None.
        null_text_embeds: (p,) pooled vector of the empty text, with `added_cond_kwargs`.

    Returns:
        (B, 4, h, w) latents, times the VAE's scaling factor as the UNet knows them.

    Source:
        Eq. (5) and (6) of Mixing Visual Concepts; Eq. (3) of InstructPix2Pix for guidance `dual`.
    """
    null_text = null_hidden_states.expand_as(encoder_hidden_states)
    text = torch.cat([encoder_hidden_states if term.text else null_text for term in terms])
    added = _of_all_passes(added_cond_kwargs, null_text_embeds, terms)
    image = None
    if image_latents is not None:
        null_image = torch.zeros_like(image_latents)
        image = torch.cat([image_latents if term.image else null_image for term in terms])
    scheduler.set_timesteps(num_inference_steps, device=noise.device)
    latents: Tensor = noise * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        sample = scheduler.scale_model_input(latents, timestep).repeat(len(terms), 1, 1, 1)
        if image is not None:
            sample = torch.cat([sample, image], dim=1)  # (passes x B, 8, h, w)
        predictions = unet(sample, timestep, encoder_hidden_states=text, added_cond_kwargs=added, return_dict=False)[0]
        model_pred = combine(terms, predictions.chunk(len(terms)))
        latents = scheduler.step(model_pred, timestep, latents, return_dict=False)[0]  # Eq. (5)
    return latents


def _of_all_passes(
    added: Mapping[str, Tensor] | None, null_text_embeds: Tensor | None, terms: Sequence[GuidanceTerm]
) -> dict[str, Tensor] | None:
    """`added_cond_kwargs` of a whole batch times passes: the pooled vector goes with the text, the sizes always."""
    if added is None:
        return None
    pooled, time_ids = added["text_embeds"], added["time_ids"]
    null = pooled if null_text_embeds is None else null_text_embeds.expand_as(pooled)
    return {
        "text_embeds": torch.cat([pooled if term.text else null for term in terms]),
        "time_ids": time_ids.repeat(len(terms), 1),
    }


@torch.no_grad()
def decode(vae: Any, latents: Tensor) -> Tensor:
    """Latents to pixels: (B, 4, h, w) => (B, 3, H, W) float32 on the CPU, about [-1, 1], not clamped."""
    pixels: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    return pixels.float().cpu()


def usable(pixels: Tensor) -> Tensor:
    """Which images are finite and more than one flat colour, (B, 3, H, W) => (B,) bool."""
    finite = pixels.isfinite().flatten(1).all(1)
    flat = pixels.clamp(-1.0, 1.0).flatten(2)
    # One of the 255 steps of an 8-bit image is 2 / 255 wide here.
    varied = (flat.amax(2) - flat.amin(2)).amax(1) > 2 / 255
    return finite & varied
