"""One optimisation step of a fine-tuning: its moving parts, how they are set up, and what a step does to them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mvc.compiling import compiled
from mvc.diffusion import min_snr_weights
from mvc.moving_average import MovingAverage
from mvc.processes import sharded
from mvc.progress import say

from .batches import Batch, samples_of
from .checkpoints import FOLDER, TrainingState, load_newest
from .log import TrainingLog
from .lora import trained
from .objective import bin_sums, sample_losses
from .optimizers import make_optimizer, restore_optimizer
from .recipe import Recipe, learning_rate_at
from .sharding import like, whole


@dataclass(frozen=True)
class Watch:
    """What looks at a training without changing it; each sees the averaged weights where there are any.

    Attributes:
        validate: gives the validation loss of a UNet.
        validated_on: what images that is, for the log.
        draw: draws sample images at a step.
        track: gets the numbers of a step.
    """

    validate: Callable[[Any], float] | None = None
    validated_on: str = ""
    draw: Callable[[Any, int], None] | None = None
    track: Callable[[Mapping[str, float], int], None] | None = None


@dataclass
class Training:
    """The moving parts of a training under way.

    Attributes:
        accelerator: device, precision and processes.
        unet: its parameters that require a gradient are trained.
        model: the UNet as accelerate and torch.compile have wrapped it.
        optimizer: as accelerate has wrapped it.
        ema: moving average, if there is one.
        recipe: how to optimise.
        run: the run folder.
        settings: what a checkpoint depends on.
        watch: what looks on.
        log: rows of steps.
        step: optimisation steps done.
        saved: step of the newest checkpoint.
        skipped: steps that changed nothing because a number was not finite.
        validated: step and value of the last validation loss.
        note: beside the progress bar.
    """

    accelerator: Accelerator
    unet: Any
    model: Any
    optimizer: Any
    ema: MovingAverage | None
    recipe: Recipe
    run: Path
    settings: Mapping[str, Any]
    watch: Watch
    log: TrainingLog
    step: int = 0
    saved: int = -1
    skipped: int = 0
    validated: tuple[int, float | None] = (-1, None)
    note: str = ""

    @property
    def parameters(self) -> list[tuple[str, Tensor]]:
        """What is trained, by name."""
        return [(name, value) for name, value in trained(self.unet)]

    @property
    def names(self) -> list[str]:
        """Of what is trained, in the optimiser's order."""
        return [name for name, _ in self.parameters]


def begin(
    unet: Any, run: Path, recipe: Recipe, settings: Mapping[str, Any], accelerator: Accelerator, watch: Watch
) -> Training:
    """Build the optimiser and the average, and put back the newest checkpoint; arguments as in `loop.fit`."""
    with accelerator.main_process_first():
        state = load_newest(run / FOLDER, settings)
    unet.to(accelerator.device).train()
    optimizer = make_optimizer(
        recipe.optimizer,
        [value for _, value in trained(unet)],
        recipe.learning_rate,
        (recipe.adam_beta1, recipe.adam_beta2),
        recipe.adam_weight_decay,
        recipe.adam_epsilon,
        accelerator.device,
    )
    # Sharding exchanges the parameters, so whatever looks at them comes afterwards.
    model, optimizer = accelerator.prepare(compiled(unet, "train.compile") if recipe.compile else unet, optimizer)
    if state is not None:
        _restore_weights(unet, state)
        restore_optimizer(optimizer, [name for name, _ in trained(unet)], state.optimizer)
        if accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(dict(state.scaler))
    device = torch.device("cpu") if recipe.ema_device == "cpu" else None
    ema = MovingAverage(trained(unet), recipe.ema_decay, device) if recipe.use_ema else None
    step = state.step if state is not None else 0
    log = TrainingLog(run, accelerator, step, watch.track)
    training = Training(accelerator, unet, model, optimizer, ema, recipe, run, settings, watch, log, step)
    if state is not None:
        if ema is not None:
            ema.load({name: like(ema.average[name], value) for name, value in state.ema.items()}, state.ema_updates)
        training.saved, training.skipped = step, state.skipped
        training.validated = (step, state.validation_loss)
        if accelerator.is_main_process:
            say(f"fine-tuning goes on after step {step} of {recipe.max_train_steps}")
    return training


@torch.no_grad()
def _restore_weights(unet: Any, state: TrainingState) -> None:
    for name, value in trained(unet):
        value.copy_(like(value, state.unet[name]))


def do_step(training: Training, noise_scheduler: Any, make_batch: Callable[[Sequence[int]], Batch]) -> None:
    """One optimisation step on one global batch; nothing is read back from the device."""
    start, recipe, accelerator = time.monotonic(), training.recipe, training.accelerator
    rate = learning_rate_at(training.step, recipe)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    loss, bins = _gradients(training, noise_scheduler, make_batch)
    norm = accelerator.clip_grad_norm_(training.model.parameters(), recipe.max_grad_norm)
    # The same in all processes, for gradients are averaged over them; a loss that is not finite shows here too.
    skipped = ~whole(norm).isfinite()
    _update_weights(training, skipped)
    if training.ema is not None:
        training.ema.update(training.parameters)
    training.step += 1
    row = {"step": training.step, "loss": 0.0, "learning_rate": rate, "seconds": time.monotonic() - start}
    training.log.add(row, loss, bins, skipped)


def _gradients(
    training: Training, noise_scheduler: Any, make_batch: Callable[[Sequence[int]], Batch]
) -> tuple[Tensor, Tensor]:
    """Add up the gradients of a global batch; returns this process's share of the loss, and its bins."""
    recipe, accelerator = training.recipe, training.accelerator
    batch_size, accumulation = recipe.train_batch_size, recipe.gradient_accumulation_steps
    parts = samples_of(training.step, batch_size, accumulation, accelerator.process_index, accelerator.num_processes)
    total, bins = torch.zeros((), device=accelerator.device), torch.zeros((), device=accelerator.device)
    for number, samples in enumerate(parts):
        batch = make_batch(samples).to(accelerator.device)
        together = number == accumulation - 1
        with nullcontext() if together else accelerator.no_sync(training.model):
            with accelerator.autocast():
                losses = sample_losses(training.model, noise_scheduler, batch)
            weighted = losses
            if recipe.snr_gamma is not None:
                weighted = losses * min_snr_weights(noise_scheduler, batch.timesteps, recipe.snr_gamma)
            # The mean over the global batch, however it is cut up; processes' gradients are averaged later.
            accelerator.backward(weighted.sum() / recipe.samples * accelerator.num_processes)
        total = total + losses.detach().sum() / recipe.samples
        bins = bins + bin_sums(losses, batch.timesteps, noise_scheduler.config.num_train_timesteps)
    return total, bins


def _update_weights(training: Training, skipped: Tensor) -> None:
    """AdamW's step, which leaves weights and moments alone if the gradient is not finite."""
    optimizer = training.optimizer
    if training.accelerator.scaler is not None:
        optimizer.step()  # the loss scaler skips by itself
    elif optimizer.defaults.get("fused") and not sharded():
        # On the device, so that nothing has to be read back.
        optimizer.optimizer.found_inf = skipped.float()
        optimizer.step()
    elif not bool(skipped):
        optimizer.step()
    optimizer.zero_grad()
