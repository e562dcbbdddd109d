"""The denoising loop: a whole batch at once, all guidance passes of a step in one forward pass of the UNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
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
from mvc.errors import ConfigError
from mvc.loading import quiet

SCHEDULERS: dict[str, Any] = {
    "dpmsolver++": DPMSolverMultistepScheduler,
    "unipc": UniPCMultistepScheduler,
    "ddim": DDIMScheduler,
    "euler": EulerDiscreteScheduler,
}
"""None of them adds noise in its steps, but for DDIM with `eta` above 0: the initial noise alone makes the image."""

WHOLE = (0.0, 1.0)
"""The guidance interval that is the whole noise schedule."""


def make_scheduler(name: str, config: Any) -> Any:
    """A fresh scheduler with the noise schedule and prediction type of the base model's.

    Args:
        name: key of SCHEDULERS.
        config: configuration of the base model's noise scheduler.
    """
    # Latents are not bounded by [-1, 1]; DDIM would clip them where the base says nothing.
    with quiet():  # keys of the scheduler that the base names
        return SCHEDULERS[name].from_config({**config, "clip_sample": False})


def require_eta(name: str, eta: float) -> None:
    """Refuse noise in the steps where the scheduler has none.

    Args:
        name: key of SCHEDULERS.
        eta: 0 for none, 1 for as much as DDPM adds.

    Raises:
        ConfigError: eta is outside [0, 1], or above 0 with another scheduler than ddim.
    """
    if not 0.0 <= eta <= 1.0:
        raise ConfigError(f"eta={eta:g} is outside [0, 1]", why="0 adds no noise, 1 adds as much as DDPM")
    if eta > 0.0 and name != "ddim":
        raise ConfigError(
            f"eta={eta:g} cannot be used with scheduler={name}",
            why="of the known schedulers only ddim adds noise in its steps",
            do="set generate.eta=0 or generate.scheduler=ddim",
        )


def require_interval(interval: tuple[float, float]) -> None:
    """Refuse a guidance interval that is none.

    Raises:
        ConfigError: it does not rise, or leaves [0, 1].
    """
    low, high = interval
    if not 0.0 <= low <= high <= 1.0:
        raise ConfigError(
            f"guidance_interval=[{low:g}, {high:g}] is no interval of the noise schedule",
            why="its ends are shares of the schedule, from 0 (clean) to 1 (pure noise), the lower one first",
            do="set generate.guidance_interval=[0, 1] for guidance in all steps",
        )


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
    *,
    guidance_interval: tuple[float, float] = WHOLE,
    eta: float = 0.0,
    step_noise: Callable[[int], Tensor] | None = None,
    init_latents: Tensor | None = None,
    strength: float = 1.0,
    autocast: torch.dtype | None = None,
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
        guidance_interval: shares of the noise schedule, from 0 (clean) to 1 (pure noise), between which guidance
            acts; in the other steps one pass is made, with text and image.
        eta: for a DDIMScheduler alone: noise added in each step, 0 for none, 1 for as much as DDPM.
        step_noise: with `eta`: gives the (B, 4, h, w) standard normal noise of step 0, 1, ..., on any device.
        init_latents: (B, 4, h, w) latents to begin from in place of pure noise, times the VAE's scaling factor.
        strength: with `init_latents`: share in (0, 1] of the steps that are made, at least one; before them `noise`
            is added as the scheduler has it there.
        autocast: half precision for the UNet; latents and the scheduler's arithmetic stay float32.

    Returns:
        (B, 4, h, w) latents, times the VAE's scaling factor as the UNet knows them.

    Raises:
        ConfigError: `guidance_interval` is none.
        ValueError: there is eta without step noise.

    Source:
        Eq. (5) and (6) of Mixing Visual Concepts; Eq. (3) of InstructPix2Pix for guidance `dual`; SDEdit, Section 3;
        Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models.
    """
    require_interval(guidance_interval)
    if eta > 0.0 and step_noise is None:
        raise ValueError("eta is above 0, but there is no step_noise to draw from")
    given = _Given(encoder_hidden_states, null_hidden_states, image_latents, added_cond_kwargs, null_text_embeds)
    guided = _passes(given, terms)
    plain = guided if guidance_interval == WHOLE else _passes(given, [GuidanceTerm(True, image_latents is not None, 1)])
    latents, timesteps = _begin(scheduler, num_inference_steps, noise, init_latents, strength)
    with _once(noise.device, autocast):
        for step, timestep in enumerate(timesteps):
            passes = guided if _inside(scheduler, timestep, guidance_interval) else plain
            sample = scheduler.scale_model_input(latents, timestep)
            with _precision(noise.device, autocast):
                predictions = passes.predict(unet, sample, timestep)
            model_pred = combine(passes.terms, predictions)
            stochastic = {}
            if eta > 0.0 and step_noise is not None:
                stochastic = {"eta": eta, "variance_noise": step_noise(step).to(latents)}
            latents = scheduler.step(model_pred, timestep, latents, **stochastic, return_dict=False)[0]  # Eq. (5)
    return latents


def _begin(
    scheduler: Any, num_inference_steps: int, noise: Tensor, init_latents: Tensor | None, strength: float
) -> tuple[Tensor, Tensor]:
    """Latents of the first step, and the timesteps to go through, on the CPU."""
    # There they can be compared and looked up without waiting for the device.
    scheduler.set_timesteps(num_inference_steps, device="cpu")
    if init_latents is None:
        return noise * scheduler.init_noise_sigma, scheduler.timesteps
    # Rounded down, as diffusers' image-to-image pipelines do it.
    start = num_inference_steps - min(max(int(num_inference_steps * strength), 1), num_inference_steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    timesteps = scheduler.timesteps[start:]
    return scheduler.add_noise(init_latents, noise, timesteps[:1].repeat(len(noise))), timesteps


def _inside(scheduler: Any, timestep: Tensor, interval: tuple[float, float]) -> bool:
    low, high = interval
    share = float(timestep) / (int(scheduler.config.num_train_timesteps) - 1)
    return low <= min(share, 1.0) <= high


@dataclass(frozen=True)
class _Given:
    """What a batch is conditioned on, and the empty text."""

    text: Tensor
    null_text: Tensor
    image: Tensor | None
    added: Mapping[str, Tensor] | None
    null_pooled: Tensor | None


@dataclass(frozen=True)
class _Passes:
    """The conditions of all passes of a step, repeated and stacked: (passes x B, ...)."""

    terms: Sequence[GuidanceTerm]
    text: Tensor
    image: Tensor | None
    added: dict[str, Tensor] | None

    def predict(self, unet: Any, sample: Tensor, timestep: Tensor) -> Sequence[Tensor]:
        """(B, 4, h, w) float32 for each pass."""
        sample = sample.repeat(len(self.terms), 1, 1, 1)
        if self.image is not None:
            sample = torch.cat([sample, self.image], dim=1)  # (passes x B, 8, h, w)
        predictions: Tensor = unet(
            sample,
            timestep.to(sample.device),
            encoder_hidden_states=self.text,
            added_cond_kwargs=self.added,
            return_dict=False,
        )[0]
        return predictions.float().chunk(len(self.terms))


def _passes(given: _Given, terms: Sequence[GuidanceTerm]) -> _Passes:
    null_text = given.null_text.expand_as(given.text)
    text = torch.cat([given.text if term.text else null_text for term in terms])
    image = None
    if given.image is not None:
        null_image = torch.zeros_like(given.image)
        image = torch.cat([given.image if term.image else null_image for term in terms])
    return _Passes(terms, text, image, _added_of_passes(given, terms))


def _added_of_passes(given: _Given, terms: Sequence[GuidanceTerm]) -> dict[str, Tensor] | None:
    """`added_cond_kwargs` of a whole batch times passes: the pooled vector goes with the text, the sizes always."""
    if given.added is None:
        return None
    pooled, time_ids = given.added["text_embeds"], given.added["time_ids"]
    null = pooled if given.null_pooled is None else given.null_pooled.expand_as(pooled)
    return {
        "text_embeds": torch.cat([pooled if term.text else null for term in terms]),
        "time_ids": time_ids.repeat(len(terms), 1),
    }


def _precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def _once(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Keeps the weights that autocast has converted until the end of the block; it converts nothing by itself."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype, enabled=False)


@torch.no_grad()
def decode(vae: Any, latents: Tensor, autocast: torch.dtype | None = None) -> Tensor:
    """Latents to pixels: (B, 4, h, w) => (B, 3, H, W) float32 on the CPU, about [-1, 1], not clamped.

    Args:
        vae: AutoencoderKL.
        latents: times its scaling factor.
        autocast: bfloat16, or float32 for all else: a VAE overflows in float16, and the image is black.
    """
    with _precision(latents.device, autocast if autocast == torch.bfloat16 else None):
        pixels: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
    return pixels.float().cpu()


def decode_checked(vae: Any, latents: Tensor, autocast: torch.dtype | None = None) -> tuple[Tensor, list[bool]]:
    """`decode`, and once more in float32, one by one, what half precision did not give finite pixels for.

    Returns:
        pixels as `decode` gives them, and which images were decoded again; an image may still not be finite.
    """
    pixels = decode(vae, latents, autocast)
    again = [False] * len(latents)
    if autocast == torch.bfloat16:
        # Latents that are not finite themselves would give nothing else.
        again = (finite(latents).cpu() & ~finite(pixels)).tolist()
    for row, needed in enumerate(again):
        if needed:
            pixels[row] = decode(vae, latents[row : row + 1])[0]
    return pixels, again


def finite(images: Tensor) -> Tensor:
    """Which images, or latents, are finite throughout: (B, ...) => (B,) bool."""
    return images.isfinite().flatten(1).all(1)
