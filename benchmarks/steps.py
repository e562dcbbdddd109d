"""One optimisation step, made in two ways on the same weights and samples.

One is the body of diffusers' train_instruct_pix2pix.py, which encodes both images and both texts in every step. The
other is the project's, on moments and embeddings that are made once. Both run on any device and at any size.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from mvc.diffusion import conditioning_dropout, widen_conv_in
from mvc.latents import Latents, encode_image
from mvc.moving_average import MovingAverage
from mvc.pairs import draw_pairs
from mvc.randomness import generator, seeded_global
from mvc.train.batches import ClassText, Materials, Sampling, assemble
from mvc.train.objective import sample_losses
from mvc.train.optimizers import make_optimizer

TOKENS, CLASSES = 77, 2
HOW = Sampling(0, "same_class", 2, 8, 0.05, False, 1000)


@dataclass(frozen=True)
class Shape:
    """Sizes of a Stable Diffusion: what its three models are made with."""

    unet: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]


RATIO_SHAPE = Shape(
    unet={
        "block_out_channels": (32, 64, 128, 128),
        "layers_per_block": 2,
        "attention_head_dim": 4,
        "cross_attention_dim": 64,
    },
    vae={"block_out_channels": (12, 24, 48, 48), "layers_per_block": 2, "norm_num_groups": 4},
    text={
        "vocab_size": 16000,
        "hidden_size": 64,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    },
)
"""A UNet of 8.6 million parameters. At 128 px two VAE encodings and the text encoder cost 0.92 of its forward and
backward pass (0.93 in Stable Diffusion 1.5 at 512 px); VAE and text encoder hold 0.09 and 0.14 times its parameters
(0.10 and 0.14)."""


@dataclass(frozen=True)
class Frozen:
    """The parts that are not trained."""

    vae: Any
    text_encoder: Any
    noise_scheduler: Any


@dataclass(frozen=True)
class Data:
    """Images and their texts.

    Attributes:
        images: (n, 3, s, s) float32 in [-1, 1], the first half of them of class 0.
        tokens: (n, 77); all captions of a class are the same, so that both ways can be compared to the last digit.
        null_tokens: (1, 77) of the empty text.
    """

    images: Tensor
    tokens: Tensor
    null_tokens: Tensor

    @property
    def labels(self) -> tuple[int, ...]:
        """Class of each image."""
        per_class = len(self.images) // CLASSES
        return tuple(image // per_class for image in range(len(self.images)))


@dataclass
class Clock:
    """Adds up seconds by part: each mark closes the part since the one before. Devices are not waited for."""

    parts: dict[str, float] = field(default_factory=dict)
    last: float = field(default_factory=time.perf_counter)

    def mark(self, part: str) -> None:
        """The work since the last mark was `part`."""
        now = time.perf_counter()
        self.parts[part] = self.parts.get(part, 0.0) + now - self.last
        self.last = now


Losses = Callable[[Any, Sequence[int], Clock], Tensor]
"""From UNet, sample numbers and clock to the (B,) losses."""


def new_vae(shape: Shape) -> Any:
    """A VAE with random weights from the global generator."""
    blocks = len(shape.vae["block_out_channels"])
    kind: Any = AutoencoderKL
    return kind(
        down_block_types=("DownEncoderBlock2D",) * blocks, up_block_types=("UpDecoderBlock2D",) * blocks, **shape.vae
    )


def new_frozen(shape: Shape, device: torch.device) -> Frozen:
    """VAE and text encoder with random weights, and the noise schedule of Stable Diffusion."""
    with seeded_global(0, "benchmark models"):
        vae = new_vae(shape)
        last = shape.text["vocab_size"] - 1
        text_encoder: Any = CLIPTextModel(CLIPTextConfig(bos_token_id=0, eos_token_id=last, **shape.text))
    kind: Any = DDPMScheduler
    schedule = kind(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    for part in (vae, text_encoder):
        part.eval().requires_grad_(False).to(device)
    return Frozen(vae, text_encoder, schedule)


def new_unet(shape: Shape, device: torch.device) -> Any:
    """The 8-channel UNet in training mode, the same at every call."""
    with seeded_global(0, "benchmark unet"):
        unet: Any = UNet2DConditionModel(**shape.unet)
    widen_conv_in(unet)
    return unet.train().to(device)


def new_data(shape: Shape, images: int, side: int) -> Data:
    """Random images and texts on the CPU."""
    pixels = torch.rand((images, 3, side, side), generator=generator(0, "benchmark images")) * 2 - 1
    last = shape.text["vocab_size"] - 1
    tokens = torch.randint(1, last, (CLASSES, TOKENS), generator=generator(0, "benchmark tokens"))
    return Data(pixels, tokens.repeat_interleave(images // CLASSES, dim=0), torch.full((1, TOKENS), last))


def encoding_losses(frozen: Frozen, data: Data, device: torch.device) -> Losses:
    """The body of the reference script: both images and both texts are encoded in every step."""
    factor = 2 ** (len(frozen.vae.config.block_out_channels) - 1)
    shape = (4, data.images.shape[2] // factor, data.images.shape[3] // factor)
    null_tokens = data.null_tokens.to(device)

    def normal(purpose: str, samples: Sequence[int]) -> Tensor:
        return torch.stack([torch.randn(shape, generator=generator(0, purpose, one)) for one in samples]).to(device)

    def losses(unet: Any, samples: Sequence[int], clock: Clock) -> Tensor:
        pairs = draw_pairs(0, samples, data.labels, "same_class")
        chosen = [pair.image for pair in pairs]
        pixels, tokens = data.images[chosen].to(device), data.tokens[chosen].to(device)
        partners = data.images[[pair.partner for pair in pairs]].to(device)
        vae_noise, noise = normal("vae noise", samples), normal("noise", samples)
        drawn = [torch.randint(1000, (), generator=generator(0, "timestep", one)) for one in samples]
        timesteps = torch.stack(drawn).to(device)
        uniform = torch.stack([torch.rand((), generator=generator(0, "dropout", one)) for one in samples])
        drop_text, drop_image = (one.to(device) for one in conditioning_dropout(uniform, HOW.dropout))
        clock.mark("sampling")
        posterior = frozen.vae.encode(pixels).latent_dist
        latents = (posterior.mean + posterior.std * vae_noise) * frozen.vae.config.scaling_factor
        condition = frozen.vae.encode(partners).latent_dist.mode()
        clock.mark("VAE")
        text, null = frozen.text_encoder(tokens)[0], frozen.text_encoder(null_tokens)[0]
        text = torch.where(drop_text[:, None, None], null, text)
        clock.mark("text encoder")
        noisy = frozen.noise_scheduler.add_noise(latents, noise, timesteps)
        condition = (1 - drop_image.float())[:, None, None, None] * condition
        predicted = unet(torch.cat([noisy, condition], dim=1), timesteps, text, return_dict=False)[0]
        square = torch.nn.functional.mse_loss(predicted.float(), noise.float(), reduction="none")
        clock.mark("UNet forward")
        each: Tensor = square.flatten(1).mean(1)
        return each

    return losses


def cached_losses(frozen: Frozen, data: Data, device: torch.device) -> Losses:
    """The project's way; VAE and text encoder are not needed any more afterwards."""
    materials, noise_scheduler = gather(frozen, data), frozen.noise_scheduler

    def losses(unet: Any, samples: Sequence[int], clock: Clock) -> Tensor:
        batch = assemble(materials, HOW, samples).to(device)
        clock.mark("sampling")
        each: Tensor = sample_losses(unet, noise_scheduler, batch)
        clock.mark("UNet forward")
        return each

    return losses


@torch.no_grad()
def gather(frozen: Frozen, data: Data) -> Materials:
    """Moments and embeddings of the data, made once."""
    moments = torch.stack([encode_image(frozen.vae, image) for image in data.images])
    device = frozen.text_encoder.device
    # The captions of a class read the same, so one forward pass a class is enough.
    firsts = [data.labels.index(label) for label in range(CLASSES)]
    encoded = frozen.text_encoder(torch.cat([data.tokens[firsts], data.null_tokens]).to(device))[0].float().cpu()
    per_class = len(data.images) // CLASSES
    return Materials(
        labels=data.labels,
        images=Latents([moments], [[(0, image)] for image in range(len(data.images))]),
        texts=[ClassText(str(label), encoded[label].repeat(per_class, 1, 1), TOKENS) for label in range(CLASSES)],
        null=encoded[-1].clone(),
        scaling_factor=float(frozen.vae.config.scaling_factor),
    )


@dataclass
class Step:
    """Loss, backward pass, clipping, optimiser and moving average.

    Attributes:
        model: what predicts; the UNet or a compiled one.
        weights: of the UNet.
        losses: how samples become losses.
        optimizer: over `weights`.
        average: takes the weights into the moving average.
        autocast: makes the context of the forward pass.
    """

    model: Any
    weights: list[Tensor]
    losses: Losses
    optimizer: torch.optim.Optimizer
    average: Callable[[], None]
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, samples: Sequence[int], clock: Clock) -> Tensor:
        """Do one step on some samples; returns the loss on the device."""
        with self.autocast():
            loss = self.losses(self.model, samples, clock).mean()
        loss.backward()
        clock.mark("UNet backward")
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        clock.mark("clipping")
        self.optimizer.step()
        self.optimizer.zero_grad()
        clock.mark("optimizer")
        self.average()
        clock.mark("moving average")
        return loss.detach()


def reference_updates(unet: Any) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
    """Optimiser and moving average as the reference script makes them."""
    average = EMAModel(unet.parameters(), model_cls=UNet2DConditionModel, model_config=unet.config)
    return torch.optim.AdamW(unet.parameters(), lr=1e-4), lambda: average.step(unet.parameters())


def own_updates(unet: Any, device: torch.device) -> tuple[torch.optim.Optimizer, Callable[[], None]]:
    """Optimiser and moving average as the project makes them."""
    average = MovingAverage(unet.named_parameters(), 0.999)
    optimizer = make_optimizer("adamw", list(unet.parameters()), 1e-4, (0.9, 0.999), 1e-2, 1e-8, device)
    return optimizer, lambda: average.update(unet.named_parameters())
