"""The tiny UNet2DConditionModel: text-to-image on the latents of printed characters, as Stable Diffusion 1.5."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from mvc.randomness import generator, seeded_global
from mvc.tiny.autoencoder import encode
from mvc.tiny.clip import caption_ids
from mvc.tiny.fitting import fit
from mvc.tiny.pictures import draw_many
from mvc.tiny.world import caption, draw_character

BATCH = 64
STEPS = 7000
LEARNING_RATE = 8e-4
EMA_DECAY = 0.9995
EMPTY_CAPTION_SHARE = 0.1
"""Of the samples that see the caption "", which guidance needs."""


def new_denoiser(seed: int, text_width: int) -> UNet2DConditionModel:
    """The untrained model; randomness: (seed, "unet weights")."""
    with seeded_global(seed, "unet weights"):
        unet = UNet2DConditionModel(
            sample_size=8,
            in_channels=4,
            out_channels=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),  # As in SD, none in the lowest blocks.
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            block_out_channels=(64, 128),
            layers_per_block=1,
            attention_head_dim=4,
            cross_attention_dim=text_width,
            norm_num_groups=16,
        )
    # Plain attention trains faster in bfloat16 on a CPU than the fused one, whose backward pass is slow there.
    unet.set_attn_processor(AttnProcessor())
    return unet


def stable_diffusion_scheduler() -> DDIMScheduler:
    """Stable Diffusion 1.5's schedule: 1000 steps, scaled-linear betas, epsilon prediction.

    As a DDIMScheduler, because a PNDM one doesn't keep clip_sample=False for those that are made from it.
    """
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        set_alpha_to_one=False,
        steps_offset=1,
        clip_sample=False,
    )


def caption_embeddings(encoder: CLIPTextModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    """last_hidden_state of each text: (n, 77, width), bfloat16 to halve the memory of a long cache."""
    rows = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for start in range(0, len(texts), 256):
            ids = caption_ids(tokenizer, texts[start : start + 256])
            rows.append(encoder(ids).last_hidden_state.to(torch.bfloat16))
    return torch.cat(rows)


def train_denoiser(
    seed: int,
    vae: AutoencoderKL,
    encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    cache: Path | None,
    steps_scale: float,
) -> tuple[UNet2DConditionModel, float]:
    """Train on cached latents and cached caption embeddings of printed characters, without augmentation.

    Randomness: (seed, "unet ...", step).

    Returns:
        The model with the moving average of its weights, and the seconds the training took.
    """
    world = draw_many("printed", seed, 40000, cache)
    texts = [caption(draw_character(seed, index), seed, index) for index in range(len(world))]
    embeddings = caption_embeddings(encoder, tokenizer, texts)
    empty = caption_embeddings(encoder, tokenizer, [""])
    mean, deviation = (part * vae.config.scaling_factor for part in encode(vae, world))
    noise_scheduler = DDPMScheduler.from_config(stable_diffusion_scheduler().config)
    unet = new_denoiser(seed, embeddings.shape[2])

    def loss_at(step: int) -> Tensor:
        random = generator(seed, "unet batch", step)
        chosen = torch.randint(len(world), (BATCH,), generator=random)
        latents = mean[chosen] + deviation[chosen] * torch.randn(BATCH, *mean.shape[1:], generator=random)
        noise = torch.randn(latents.shape, generator=random)
        timesteps = torch.randint(noise_scheduler.config.num_train_timesteps, (BATCH,), generator=random)
        dropped = torch.rand(BATCH, 1, 1, generator=random) < EMPTY_CAPTION_SHARE
        encoder_hidden_states = torch.where(dropped, empty, embeddings[chosen])
        noisy = noise_scheduler.add_noise(latents, noise, timesteps)
        model_pred = unet(noisy, timesteps, encoder_hidden_states).sample
        return torch.nn.functional.mse_loss(model_pred.float(), noise)

    steps = round(STEPS * steps_scale)
    seconds = fit("denoiser", unet, loss_at, steps, LEARNING_RATE, cache, ema_decay=EMA_DECAY)
    return unet, seconds
