"""How to optimise, as plain values, and the learning rate as a closed form of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Schedule = Literal["constant", "linear", "cosine", "constant_with_warmup"]


@dataclass(frozen=True)
class Recipe:
    """How to optimise; names and meaning are those of the `train` section of an experiment."""

    max_train_steps: int
    train_batch_size: int
    learning_rate: float
    gradient_accumulation_steps: int = 1
    lr_scheduler: Schedule = "constant_with_warmup"
    lr_warmup_steps: int = 20
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    adam_weight_decay: float = 1e-2
    adam_epsilon: float = 1e-8
    max_grad_norm: float = 1.0
    max_skipped_steps: int = 10
    snr_gamma: float | None = None
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    use_ema: bool = True
    ema_decay: float = 0.999
    ema_device: Literal["model", "cpu"] = "model"
    compile: bool = False
    checkpointing_steps: int = 250
    checkpoints_total_limit: int = 2
    validation_steps: int = 100
    sample_steps: int = 0

    @property
    def samples(self) -> int:
        """Samples of one optimisation step, over all micro-batches and processes."""
        return self.train_batch_size * self.gradient_accumulation_steps


def learning_rate_at(step: int, recipe: Recipe) -> float:
    """Learning rate of a step, counted from 0: linear warm-up, then constant, or to zero at the end.

    A closed form, so that nothing has to be saved. `constant` alone has no warm-up. Unlike in diffusers'
    schedules the first step has a rate above zero and so is not lost.
    """
    warmup = 0 if recipe.lr_scheduler == "constant" else recipe.lr_warmup_steps
    if step < warmup:
        return recipe.learning_rate * (step + 1) / warmup
    if recipe.lr_scheduler in ("constant", "constant_with_warmup"):
        return recipe.learning_rate
    progress = (step - warmup) / max(1, recipe.max_train_steps - warmup)
    if recipe.lr_scheduler == "linear":
        return recipe.learning_rate * (1.0 - progress)
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * progress))
