"""Fine-tuning: the body of diffusers' train_instruct_pix2pix.py against the cached step, at Stable Diffusion's ratios.

The toy models keep the ratio that matters: two VAE encodings and the text encoder cost 0.92 of the UNet's forward and
backward pass, 0.93 in Stable Diffusion 1.5. Both sides see the same weights and samples, interleaved in one process.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from mvc.diffusion import conditioning_dropout, widen_conv_in
from mvc.latents import Latents, encode_image
from mvc.pairs import draw_pairs
from mvc.randomness import generator, seeded_global
from mvc.train.batches import ClassText, Materials, Sampling, assemble
from mvc.train.ema import MovingAverage
from mvc.train.loop import sample_losses

ROUNDS, BATCH, SIZE, WIDTH, IMAGES, CLASSES = 7, 8, 128, 64, 24, 2
LEAST_RATIO = 1.25
SHAPE = (4, SIZE // 8, SIZE // 8)


@dataclass(frozen=True)
class Models:
    """The frozen parts and the noise schedule."""

    vae: Any
    text_encoder: Any
    noise_scheduler: Any


def new_models() -> Models:
    """VAE and text encoder with random weights."""
    with seeded_global(0, "benchmark models"):
        vae: Any = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(12, 24, 48, 48),
            layers_per_block=2,
            norm_num_groups=4,
        )
        config = CLIPTextConfig(
            vocab_size=1000,
            hidden_size=WIDTH,
            intermediate_size=4 * WIDTH,
            num_hidden_layers=4,
            num_attention_heads=4,
            bos_token_id=0,
            eos_token_id=999,
        )
        text_encoder = CLIPTextModel(config)
    kind: Any = DDPMScheduler
    schedule = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return Models(vae.eval().requires_grad_(False), text_encoder.eval().requires_grad_(False), schedule)


def new_unet() -> Any:
    """The 8-channel UNet, the same at every call."""
    with seeded_global(0, "benchmark unet"):
        unet: Any = UNet2DConditionModel(
            sample_size=SIZE // 8,
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            attention_head_dim=4,
            cross_attention_dim=WIDTH,
        )
    widen_conv_in(unet)
    return unet.train()


def step_of(unet: Any, loss_at: Callable[[Any, int], Tensor], update: Callable[[], None]) -> Callable[[int], float]:
    """An optimisation step: loss, backward, clipping, AdamW and the moving average."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4)

    def step(number: int) -> float:
        loss = loss_at(unet, number)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        update()
        return float(loss.detach())

    return step


def reference_step(models: Models, images: Tensor, tokens: Tensor, null_tokens: Tensor, how: Sampling) -> Any:
    """The body of the reference script: both images and both texts are encoded in every step."""
    per_class = IMAGES // CLASSES

    def loss_at(unet: Any, number: int) -> Tensor:
        samples = range(number * BATCH, (number + 1) * BATCH)
        pairs = draw_pairs(0, samples, [image // per_class for image in range(IMAGES)], "same_class")
        draw = [generator(0, "vae noise", sample) for sample in samples]
        posterior = models.vae.encode(images[[pair.image for pair in pairs]]).latent_dist
        vae_noise = torch.stack([torch.randn(SHAPE, generator=one) for one in draw])
        latents = (posterior.mean + posterior.std * vae_noise) * models.vae.config.scaling_factor
        noise = torch.stack([torch.randn(SHAPE, generator=generator(0, "noise", one)) for one in samples])
        timesteps = torch.stack([torch.randint(1000, (), generator=generator(0, "timestep", one)) for one in samples])
        noisy = models.noise_scheduler.add_noise(latents, noise, timesteps)
        # All captions of a class read the same here, so that both sides can be compared to the last digit.
        text = models.text_encoder(tokens[[pair.image for pair in pairs]])[0]
        condition = models.vae.encode(images[[pair.partner for pair in pairs]]).latent_dist.mode()
        null = models.text_encoder(null_tokens)[0]
        uniform = torch.stack([torch.rand((), generator=generator(0, "dropout", one)) for one in samples])
        drop_text, drop_image = conditioning_dropout(uniform, how.dropout)
        text = torch.where(drop_text[:, None, None], null, text)
        condition = (1 - drop_image.float())[:, None, None, None] * condition
        predicted = unet(torch.cat([noisy, condition], dim=1), timesteps, text, return_dict=False)[0]
        return torch.nn.functional.mse_loss(predicted.float(), noise.float())

    unet = new_unet()
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    return step_of(unet, loss_at, lambda: average.step(unet.parameters()))


def cached_step(models: Models, images: Tensor, tokens: Tensor, null_tokens: Tensor, how: Sampling) -> Any:
    """The project's way: moments and embeddings are made once, before training."""
    per_class = IMAGES // CLASSES
    moments = torch.stack([encode_image(models.vae, image) for image in images])
    with torch.no_grad():
        embeddings, null = models.text_encoder(tokens)[0], models.text_encoder(null_tokens)[0][0]
    texts = [
        ClassText(str(label), embeddings[label * per_class : (label + 1) * per_class], 77) for label in range(CLASSES)
    ]
    labels = tuple(image // per_class for image in range(IMAGES))
    stored = Latents([moments], [[(0, image)] for image in range(IMAGES)])
    materials = Materials(labels, stored, texts, null, models.vae.config.scaling_factor)

    def loss_at(unet: Any, number: int) -> Tensor:
        batch = assemble(materials, how, range(number * BATCH, (number + 1) * BATCH))
        return sample_losses(unet, models.noise_scheduler, batch).mean()

    unet = new_unet()
    average = MovingAverage(unet.named_parameters(), 0.999)
    return step_of(unet, loss_at, lambda: average.update(unet.named_parameters()))


def seconds(step: Callable[[int], float], number: int) -> float:
    start = time.perf_counter()
    step(number)
    return time.perf_counter() - start


def main() -> int:
    """Measure, print one line, and return the exit code."""
    torch.set_num_threads(1)
    models, how = new_models(), Sampling(0, "same_class", 2, 8, 0.05, False, 1000)
    images = torch.rand((IMAGES, 3, SIZE, SIZE), generator=generator(0, "benchmark images")) * 2 - 1
    class_tokens = torch.randint(1, 999, (CLASSES, 77), generator=generator(0, "benchmark tokens"))
    tokens = class_tokens.repeat_interleave(IMAGES // CLASSES, dim=0)
    null_tokens = torch.full((1, 77), 999)
    reference, cached = (make(models, images, tokens, null_tokens, how) for make in (reference_step, cached_step))
    losses = reference(0), cached(0)
    if abs(losses[0] - losses[1]) > 1e-5 * losses[0]:
        sys.exit(f"train step: the cached loss {losses[1]} differs from the reference's {losses[0]}")
    times = [(seconds(reference, number), seconds(cached, number)) for number in range(1, ROUNDS + 1)]
    ratio = statistics.median(slow / fast for slow, fast in times)
    slow, fast = (statistics.median(column) for column in zip(*times, strict=True))
    print(
        f"train step: cached against encoding in the loop: {ratio:.2f}x (gate {LEAST_RATIO:g}x); "
        f"{slow:.2f} s and {fast:.2f} s a step of {BATCH} at {SIZE} px, one thread"
    )
    return int(ratio < LEAST_RATIO)


if __name__ == "__main__":
    sys.exit(main())
