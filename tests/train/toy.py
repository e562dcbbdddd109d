"""Toy materials, batches and trainings without files, for the tests of the loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mvc.diffusion import widen_conv_in
from mvc.latents import Latents
from mvc.randomness import generator
from mvc.train.batches import Batch, ClassText, Materials, Sampling, assemble
from mvc.train.loop import Outcome, fit
from mvc.train.recipe import Recipe
from tests.tiny_parts import LATENT_SIZE, WIDTH, sd_scheduler, tiny_unet

LABELS = (0, 1, 0, 1, 0, 1, 1)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=generator(seed, "toy"))


def materials(variants: int = 1) -> Materials:
    """Seven images of two classes with random moments and captions of six tokens."""
    moments = normal(len(LABELS) * variants, 8, LATENT_SIZE, LATENT_SIZE)
    places = [[(0, image * variants + variant) for variant in range(variants)] for image in range(len(LABELS))]
    texts = [ClassText("cat", normal(3, 6, WIDTH, seed=1), 6), ClassText("dog", normal(4, 6, WIDTH, seed=2), 6)]
    return Materials(LABELS, Latents([moments], places), texts, normal(6, WIDTH, seed=3), 0.5)


def sampling(**changes: Any) -> Sampling:
    defaults: dict[str, Any] = {"seed": 0, "pairing": "same_class", "coarse": 2, "fine": 3, "dropout": 0.1}
    return Sampling(**{**defaults, "image_latents_scaled": False, "timesteps": 1000, **changes})


def make_batch(samples: Sequence[int]) -> Batch:
    return assemble(materials(), sampling(), samples)


def wide_unet(seed: int = 0) -> Any:
    unet = tiny_unet(seed)
    widen_conv_in(unet)
    return unet


def recipe(**changes: Any) -> Recipe:
    defaults: dict[str, Any] = {"max_train_steps": 6, "train_batch_size": 4, "learning_rate": 1e-3}
    return Recipe(**{**defaults, "lr_warmup_steps": 2, "checkpointing_steps": 2, **changes})


def train(run: Path, batches: Callable[[Sequence[int]], Batch] = make_batch, **changes: Any) -> tuple[Any, Outcome]:
    """Fine-tune a fresh toy UNet in a run folder."""
    unet = wide_unet()
    how = recipe(**changes)
    outcome = fit(unet, sd_scheduler(), batches, run, how, {"seed": 0}, Accelerator(cpu=True))
    return unet, outcome
