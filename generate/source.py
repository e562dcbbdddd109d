"""One source of synthetic images: its models, what its jobs refer to, and how a batch of jobs becomes pixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mvc.denoise import decode, denoise, usable
from mvc.diffusion import GuidanceTerm
from mvc.errors import EnvironmentFault, NumericError
from mvc.mixing import MixingPlan, apply_plan

from .jobs import Job, draw_noise

ATTEMPTS = 3
"""How often an image is drawn before it counts as impossible."""


@dataclass(frozen=True)
class ClassText:
    """The training images of one class and what is known about their captions.

    Attributes:
        ids: k record ids of the training images, sorted; jobs count along them.
        embeddings: (k, m, d) float32 on the CPU, one a caption.
        tokens: rows that mixing may touch.
        pooled: (k, p) float32 pooled vectors; None unless the base is an SDXL.
    """

    ids: list[str]
    embeddings: Tensor
    tokens: int
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Source:
    """Everything that drawing needs.

    Attributes:
        seed: run.seed.
        unet: on `device`; of 8 input channels with `image_latents`, else of 4 or 8.
        vae: on `device`.
        device: where to compute.
        new_scheduler: makes a fresh scheduler, because multistep ones keep a state.
        num_inference_steps: denoising steps.
        terms: passes of the guidance.
        texts: by class folder.
        null: (m, d) embedding of the empty text.
        image_latents: (k, 4, h, w) by class folder, scaled as in training; None without image conditioning.
        shape: of one sample's latents, (4, h, w).
        null_pooled: (p,) pooled vector of the empty text; None unless the base is an SDXL.
        time_ids: (6,) `mvc.embeddings.time_ids` of the image size; None unless the base is an SDXL.
    """

    seed: int
    unet: Any
    vae: Any
    device: torch.device
    new_scheduler: Callable[[], Any]
    num_inference_steps: int
    terms: Sequence[GuidanceTerm]
    texts: Mapping[str, ClassText]
    null: Tensor
    image_latents: Mapping[str, Tensor] | None
    shape: tuple[int, int, int]
    null_pooled: Tensor | None = None
    time_ids: Tensor | None = None


def _hidden_states(source: Source, jobs: Sequence[Job]) -> Tensor:
    """(B, m, d) text embeddings of a batch, mixed where a job has a plan (Algorithm 1)."""
    states = source.null.new_empty(len(jobs), *source.null.shape)
    for name in sorted({job.class_name for job in jobs}):
        rows = [row for row, job in enumerate(jobs) if job.class_name == name]
        own, embeddings = [jobs[row] for row in rows], source.texts[name].embeddings
        plans = [job.plan for job in own if job.plan is not None]
        if plans:
            states[rows] = apply_plan(MixingPlan.from_rows(plans), embeddings)
        else:
            states[rows] = embeddings[[job.caption for job in own]]
    return states


def _added_cond_kwargs(source: Source, jobs: Sequence[Job]) -> dict[str, Tensor] | None:
    """What an SDXL takes besides: each base caption's pooled vector, mixed or not, and the image size."""
    if source.null_pooled is None or source.time_ids is None:
        return None
    pooled = source.null_pooled.new_empty(len(jobs), len(source.null_pooled))
    for row, job in enumerate(jobs):
        own = source.texts[job.class_name].pooled
        if own is not None:
            pooled[row] = own[job.caption]
    added = {"text_embeds": pooled, "time_ids": source.time_ids.repeat(len(jobs), 1)}
    return {name: value.to(source.device) for name, value in added.items()}


def _image_latents(source: Source, jobs: Sequence[Job]) -> Tensor | None:
    """(B, 4, h, w) latents of each x'; zeros for a UNet that expects some where there are none."""
    if source.image_latents is not None:
        return torch.stack([source.image_latents[job.class_name][job.condition or 0] for job in jobs])
    if source.unet.config.in_channels == 2 * source.shape[0]:
        return torch.zeros(len(jobs), *source.shape)
    return None


@torch.no_grad()
def draw(source: Source, jobs: Sequence[Job], attempt: int = 1) -> Tensor:
    """Draw a batch: (B, 3, H, W) float32 on the CPU, about [-1, 1]; may hold unusable images.

    Args:
        source: what to draw with.
        jobs: the batch, all of this source.
        attempt: number of the draw of noise.

    Raises:
        EnvironmentFault: the device's memory is too small for the batch.
    """
    image_latents = _image_latents(source, jobs)
    try:
        latents = denoise(
            source.unet,
            source.new_scheduler(),
            draw_noise(source.seed, jobs, attempt, source.shape).to(source.device),
            _hidden_states(source, jobs).to(source.device),
            source.null.to(source.device),
            None if image_latents is None else image_latents.to(source.device),
            source.terms,
            source.num_inference_steps,
            _added_cond_kwargs(source, jobs),
            None if source.null_pooled is None else source.null_pooled.to(source.device),
        )
        return decode(source.vae, latents)
    except torch.OutOfMemoryError as error:
        raise EnvironmentFault(
            f"out of memory on {source.device} with {len(jobs)} images at once",
            why=f"{len(source.terms)} guidance passes are computed in one batch",
            do="set a smaller generate.batch_size; finished images are kept",
        ) from error


def draw_usable(source: Source, jobs: Sequence[Job]) -> tuple[Tensor, list[int]]:
    """Draw a batch, and draw again, with other noise, what is not finite or a flat colour.

    Returns:
        the images as `draw` gives them, and how many attempts each one took.

    Raises:
        NumericError: an image stayed unusable; names it.
        EnvironmentFault: the device's memory is too small.
    """
    pixels, attempts = draw(source, jobs), [1] * len(jobs)
    while bad := (~usable(pixels)).nonzero().flatten().tolist():
        # Whatever is bad now was bad before, so all of them had equally many attempts.
        attempt = attempts[bad[0]] + 1
        if attempt > ATTEMPTS:
            job = jobs[bad[0]]
            state = "flat" if bool(pixels[bad[0]].isfinite().all()) else "not finite"
            raise NumericError(
                f"synthetic image {job.id} of class {job.class_name} (index {job.index}) is {state}",
                why=f"{ATTEMPTS} draws of noise gave no usable image; the model may have diverged in fine-tuning",
                do="look at the loss curve, fine-tune with a smaller train.learning_rate, or lower the guidance",
            )
        pixels[bad] = draw(source, [jobs[row] for row in bad], attempt)
        for row in bad:
            attempts[row] = attempt
    return pixels, attempts
