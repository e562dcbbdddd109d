"""The tiny AutoencoderKL: 32x32x3 to 8x8x4 and back, for printed characters and other small pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from mvc.randomness import generator, seeded_global
from mvc.tiny.fitting import fit
from mvc.tiny.pictures import as_input, disturbed, draw_many

BATCH = 32
STEPS = 5500
LEARNING_RATE = 1.5e-3
KL_WEIGHT = 1e-4
"""Of the KL per latent value, against the error per pixel value: keeps the latents smooth, costs no sharpness."""


def new_autoencoder(seed: int) -> AutoencoderKL:
    """The untrained model; randomness: (seed, "vae weights")."""
    with seeded_global(seed, "vae weights"):
        return AutoencoderKL(
            in_channels=3,
            out_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(32, 64, 64),
            layers_per_block=1,
            latent_channels=4,
            norm_num_groups=8,
            sample_size=32,
        )


def reconstruction_loss(vae: AutoencoderKL, images: Tensor, noise: Tensor) -> Tensor:
    """Squared and absolute error of the reconstruction, and the KL of the latents.

    Args:
        vae: the model.
        images: (n, 3, 32, 32), -1..1.
        noise: (n, 4, 8, 8), standard normal, of the posterior's sample.
    """
    posterior = vae.encode(images).latent_dist
    mean, log_variance = posterior.mean.float(), posterior.logvar.float()
    latents = mean + (0.5 * log_variance).exp() * noise
    decoded = vae.decode(latents).sample.float()
    error = torch.nn.functional.mse_loss(decoded, images) + 0.2 * torch.nn.functional.l1_loss(decoded, images)
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    total: Tensor = error + KL_WEIGHT * kl
    return total


def encode(vae: AutoencoderKL, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior of uint8 pictures (n, 3, 32, 32): its mean and standard deviation, each (n, 4, 8, 8)."""
    means, deviations = [], []
    with torch.no_grad():
        for chunk in pictures.split(256):
            posterior = vae.encode(as_input(chunk)).latent_dist
            means.append(posterior.mean)
            deviations.append(posterior.std)
    return torch.cat(means), torch.cat(deviations)


def train_autoencoder(seed: int, cache: Path | None, steps_scale: float) -> tuple[AutoencoderKL, float]:
    """Train on printed characters (plain and disturbed) and textures, half and half.

    Randomness: (seed, "vae ...", step).

    Returns:
        The model, its scaling_factor measured so that latents of printed characters have unit standard
        deviation; and the seconds it took.
    """
    world, textures = draw_many("printed", seed, 40000, cache), draw_many("texture", seed, 30000, cache)
    vae = new_autoencoder(seed)

    def loss_at(step: int) -> Tensor:
        random = generator(seed, "vae batch", step)
        plain = as_input(world[torch.randint(len(world), (BATCH // 2,), generator=random)])
        other = as_input(textures[torch.randint(len(textures), (BATCH // 2,), generator=random)])
        bent = disturbed(plain[: BATCH // 4], seed, "vae disturbance", step)
        images = torch.cat([plain[BATCH // 4 :], bent, other])
        return reconstruction_loss(vae, images, torch.randn(BATCH, 4, 8, 8, generator=random))

    seconds = fit("vae", vae, loss_at, round(STEPS * steps_scale), LEARNING_RATE, cache, ema_decay=0.999)
    mean, deviation = encode(vae, world[:4096])
    latents = mean + deviation * torch.randn(mean.shape, generator=generator(seed, "vae scale"))
    vae.register_to_config(scaling_factor=round(1 / float(latents.std()), 5))
    return vae, seconds
