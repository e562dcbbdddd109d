"""One global batch: every draw of a sample comes from (seed, purpose, sample number), whoever assembles it.

Optimisation step k uses the samples k N to k N + N - 1, N = batch x accumulation. How the batch is cut into
micro-batches and spread over processes changes no sample.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from mvc import latents
from mvc.diffusion import conditioning_dropout
from mvc.latents import Latents
from mvc.mixing import apply_plan, draw_plan
from mvc.pairs import draw_pairs
from mvc.randomness import generator


@dataclass(frozen=True)
class ClassText:
    """The caption embeddings of one class.

    Attributes:
        name: class folder.
        embeddings: (k, m, d) float32, one a caption.
        rows: how many token rows mixing may touch.
        pooled: (k, p) float32 pooled vectors; None unless the base is an SDXL.
    """

    name: str
    embeddings: Tensor
    rows: int
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Materials:
    """What samples are made from, all of it computed before training.

    Attributes:
        labels: class of each training image.
        images: moments of the training images, in the order of `labels`.
        texts: by label.
        null: (m, d) embedding of the empty text.
        scaling_factor: of the VAE.
        null_pooled: (p,) pooled vector of the empty text; None unless the base is an SDXL.
        time_ids: (6,) `mvc.embeddings.time_ids` of the image size; None unless the base is an SDXL.
    """

    labels: tuple[int, ...]
    images: Latents
    texts: list[ClassText]
    null: Tensor
    scaling_factor: float
    null_pooled: Tensor | None = None
    time_ids: Tensor | None = None


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn.

    Attributes:
        seed: run.seed.
        pairing: where x' comes from.
        coarse, fine: P and Q of Algorithm 1.
        dropout: probability u of `conditioning_dropout`.
        image_latents_scaled: multiply condition latents by the scaling factor.
        timesteps: of the noise schedule.
        noise_offset: standard deviation of what a whole channel's noise is shifted by.
    """

    seed: int
    pairing: Literal["same_class", "self"]
    coarse: int
    fine: int
    dropout: float
    image_latents_scaled: bool
    timesteps: int
    noise_offset: float = 0.0


@dataclass(frozen=True)
class Batch:
    """B samples, ready for the UNet.

    Attributes:
        latents: (B, C, h, w) of x, times the scaling factor.
        noise: (B, C, h, w), standard normal, each channel shifted where there is a noise offset.
        timesteps: (B,) int64.
        encoder_hidden_states: (B, m, d), the empty text's where the text is dropped.
        image_latents: (B, C, h, w) of x', zero where the image is dropped.
        text_embeds: (B, p) pooled vectors, the empty text's where the text is dropped; SDXL alone.
        time_ids: (B, 6) sizes and crop; SDXL alone.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    encoder_hidden_states: Tensor
    image_latents: Tensor
    text_embeds: Tensor | None = None
    time_ids: Tensor | None = None

    @property
    def added_cond_kwargs(self) -> dict[str, Tensor] | None:
        """What the UNet of an SDXL takes besides the text's tokens; None for SD 1.x and 2.x."""
        if self.text_embeds is None or self.time_ids is None:
            return None
        return {"text_embeds": self.text_embeds, "time_ids": self.time_ids}

    def to(self, device: torch.device) -> Batch:
        """The same samples on a device."""
        return Batch(**{name: _moved(value, device) for name, value in vars(self).items()})


def _moved(value: Tensor | None, device: torch.device) -> Any:
    if value is None:
        return None
    # From ordinary memory CUDA copies only after all work before it is done, which would make every step wait.
    return (value.pin_memory() if device.type == "cuda" else value).to(device, non_blocking=True)


def samples_of(step: int, batch_size: int, accumulation: int, process: int = 0, processes: int = 1) -> list[list[int]]:
    """Sample numbers of one process in one optimisation step: a list for each micro-batch.

    Args:
        step: optimisation step, from 0.
        batch_size: B, samples of a micro-batch over all processes.
        accumulation: A, micro-batches a step.
        process: which process.
        processes: how many; each takes a contiguous slice of every micro-batch.
    """
    first = step * batch_size * accumulation
    low, high = process * batch_size // processes, (process + 1) * batch_size // processes
    starts = (first + micro * batch_size for micro in range(accumulation))
    return [list(range(start + low, start + high)) for start in starts]


def assemble(materials: Materials, sampling: Sampling, samples: Sequence[int]) -> Batch:
    """Make some samples on the CPU; randomness from (sampling.seed, purpose, sample number).

    Args:
        materials: what they are made from.
        sampling: how they are drawn.
        samples: B global sample numbers.
    """
    seed = sampling.seed
    pairs = draw_pairs(seed, samples, materials.labels, sampling.pairing)
    images = materials.images
    target_moments = images.moments(
        [pair.image for pair in pairs], _variants(seed, "transform of x", samples, images.variants)
    )
    partner_moments = images.moments(
        [pair.partner for pair in pairs], _variants(seed, "transform of x'", samples, images.variants)
    )
    shape = (target_moments.shape[1] // 2, *target_moments.shape[2:])
    clean = latents.sample(target_moments, _normal(seed, "vae noise", samples, shape)) * materials.scaling_factor
    image_latents = latents.mode(partner_moments)
    if sampling.image_latents_scaled:
        image_latents = image_latents * materials.scaling_factor

    uniform = torch.stack([torch.rand((), generator=generator(seed, "dropout", number)) for number in samples])
    drop_text, drop_image = conditioning_dropout(uniform, sampling.dropout)
    text, pooled = mixed_texts(materials, sampling, samples, [materials.labels[pair.image] for pair in pairs])
    if pooled is not None and materials.null_pooled is not None:
        pooled = torch.where(drop_text[:, None], materials.null_pooled, pooled)
    timesteps = [
        torch.randint(sampling.timesteps, (), generator=generator(seed, "timestep", number)) for number in samples
    ]
    return Batch(
        latents=clean,
        noise=_noise(sampling, samples, shape),
        timesteps=torch.stack(timesteps),
        encoder_hidden_states=torch.where(drop_text[:, None, None], materials.null, text),
        image_latents=torch.where(drop_image[:, None, None, None], 0.0, image_latents),
        text_embeds=pooled,
        time_ids=None if materials.time_ids is None else materials.time_ids.repeat(len(samples), 1),
    )


def mixed_texts(
    materials: Materials, sampling: Sampling, samples: Sequence[int], labels: Sequence[int]
) -> tuple[Tensor, Tensor | None]:
    """A fresh MVC embedding of each sample's class (Algorithm 1), (B, m, d), and its pooled vector, (B, p).

    Mixing is of tokens; there is one pooled vector a caption, and a mixed embedding keeps that of its base caption.
    """
    mixed = materials.null.new_empty(len(samples), *materials.null.shape)
    null_pooled = materials.null_pooled
    pooled = None if null_pooled is None else null_pooled.new_empty(len(samples), len(null_pooled))
    for label in sorted(set(labels)):
        text = materials.texts[label]
        rows = [row for row, other in enumerate(labels) if other == label]
        plan = draw_plan(
            sampling.seed,
            text.name,
            [samples[row] for row in rows],
            len(text.embeddings),
            text.rows,
            text.embeddings.shape[2],
            sampling.coarse,
            sampling.fine,
        )
        mixed[rows] = apply_plan(plan, text.embeddings)
        if pooled is not None and text.pooled is not None:
            pooled[rows] = text.pooled[torch.from_numpy(plan.base)]
    return mixed, pooled


def _variants(seed: int, purpose: str, samples: Sequence[int], variants: int) -> list[int]:
    """Which transform of its image each sample takes: the plain one if there is no other, else a random one."""
    if variants == 1:
        return [0] * len(samples)
    return [int(torch.randint(1, variants, (), generator=generator(seed, purpose, number))) for number in samples]


def _noise(sampling: Sampling, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
    noise = _normal(sampling.seed, "noise", samples, shape)
    if sampling.noise_offset > 0.0:
        noise = noise + sampling.noise_offset * _normal(sampling.seed, "noise offset", samples, (shape[0], 1, 1))
    return noise


def _normal(seed: int, purpose: str, samples: Sequence[int], shape: Sequence[int]) -> Tensor:
    return torch.stack([torch.randn(tuple(shape), generator=generator(seed, purpose, number)) for number in samples])
