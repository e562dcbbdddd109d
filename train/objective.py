"""What a training step minimises, and what the log says of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mvc.diffusion import add_noise, denoising_loss, target_for

from .batches import Batch

BINS = 10
"""Parts of the noise schedule whose losses the log keeps apart: they differ by orders of magnitude."""


def sample_losses(unet: Any, noise_scheduler: Any, batch: Batch) -> Tensor:
    """The loss of each sample, (B,) float32, unweighted: noise x, put x' beside it, predict (Eq. 1 and 4)."""
    noisy = add_noise(noise_scheduler, batch.latents, batch.noise, batch.timesteps)
    model_input = torch.cat([noisy, batch.image_latents], dim=1)
    model_pred = unet(
        model_input,
        batch.timesteps,
        batch.encoder_hidden_states,
        added_cond_kwargs=batch.added_cond_kwargs,
        return_dict=False,
    )[0]
    return denoising_loss(model_pred, target_for(noise_scheduler, batch.latents, batch.noise, batch.timesteps))


def bin_sums(losses: Tensor, timesteps: Tensor, num_train_timesteps: int) -> Tensor:
    """Sums and numbers of losses in each tenth of the noise schedule, without reading anything back.

    Args:
        losses: (B,) float32.
        timesteps: (B,) int64 in [0, num_train_timesteps).
        num_train_timesteps: length of the schedule.

    Returns:
        (2, BINS) float32 on the losses' device: sums, and how many.
    """
    places = timesteps * BINS // num_train_timesteps
    sums = losses.new_zeros(2, BINS)
    sums[0].index_add_(0, places, losses.detach())
    sums[1].index_add_(0, places, torch.ones_like(losses))
    return sums
