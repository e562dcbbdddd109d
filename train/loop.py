"""The fine-tuning loop: AdamW on Eq. (4) with a moving average, resumable to the bit after any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor

from mvc.diffusion import add_noise, denoising_loss, target_for
from mvc.errors import NumericError, Stopped
from mvc.progress import Meter, meter, say
from mvc.stopping import flag
from mvc.storage import append_json_lines, read_json_lines, write_json_lines

from .batches import Batch, samples_of
from .checkpoints import (
    FOLDER,
    TrainingState,
    checkpoints,
    load_newest,
    optimizer_tensors,
    restore_optimizer,
    save_checkpoint,
)
from .ema import MovingAverage

LOG = "logs/train.jsonl"
"""Below the run folder: one row a step."""

_FLUSH_STEPS, _FLUSH_SECONDS = 25, 2.0
"""Losses stay on the device for so long: reading one makes the device wait."""

LAST_STEPS = 100
"""Steps over which the final loss is averaged: a single one says little."""

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
    use_ema: bool = True
    ema_decay: float = 0.999
    checkpointing_steps: int = 250
    checkpoints_total_limit: int = 2


@dataclass(frozen=True)
class Outcome:
    """What came of a training: mean loss of the last steps, and seconds a step (0 if none was left to do)."""

    loss: float
    seconds_per_step: float


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


def sample_losses(unet: Any, noise_scheduler: Any, batch: Batch) -> Tensor:
    """The loss of each sample, (B,) float32: noise x, put x' beside it, predict (Eq. 1 and 4)."""
    noisy = add_noise(noise_scheduler, batch.latents, batch.noise, batch.timesteps)
    model_input = torch.cat([noisy, batch.image_latents], dim=1)
    model_pred = unet(model_input, batch.timesteps, batch.encoder_hidden_states, return_dict=False)[0]
    return denoising_loss(model_pred, target_for(noise_scheduler, batch.latents, batch.noise, batch.timesteps))


@dataclass
class _Training:
    """The moving parts of a training under way."""

    accelerator: Accelerator
    unet: Any
    model: Any
    optimizer: Any
    ema: MovingAverage | None
    recipe: Recipe
    run: Path
    settings: Mapping[str, Any]
    step: int = 0
    saved: int = -1
    pending: list[tuple[dict[str, Any], Tensor]] = field(default_factory=list)
    flushed: float = field(default_factory=time.monotonic)
    losses: list[float] = field(default_factory=list)
    note: str = ""

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.unet.named_parameters()]


def fit(
    unet: Any,
    noise_scheduler: Any,
    make_batch: Callable[[Sequence[int]], Batch],
    run: Path,
    recipe: Recipe,
    settings: Mapping[str, Any],
    accelerator: Accelerator,
) -> Outcome:
    """Train the UNet in place, from the newest checkpoint of the run if there is one.

    Afterwards the UNet holds the averaged weights (or the last ones without EMA). Writes run/checkpoints and
    run/logs/train.jsonl. On one CPU process an interrupted and resumed training gives the same bits.

    Args:
        unet: UNet2DConditionModel with 8 input channels.
        noise_scheduler: DDPMScheduler.
        make_batch: assembles samples by their global numbers, on the CPU.
        run: the run folder.
        recipe: how to optimise.
        settings: flat JSON values that the result depends on; a checkpoint made with others is refused.
        accelerator: device, precision and processes.

    Raises:
        NumericError: a loss or weight is not finite; the last checkpoint is kept.
        ConfigError: the checkpoints were made with other settings.
        EnvironmentFault: a checkpoint cannot be written.
        Stopped: a signal asked for a stop; a checkpoint was saved.
    """
    training = _begin(unet, run, recipe, settings, accelerator)
    total, first, start = recipe.max_train_steps, training.step, time.monotonic()
    with meter("fine-tuning", total, "steps", done=training.step) as shown:
        while training.step < total:
            _do_step(training, noise_scheduler, make_batch)
            last = training.step == total
            stop = _stop_wanted(training)
            if last or stop or training.step % recipe.checkpointing_steps == 0:
                _flush(training, shown)
                _save(training)
            elif _flush_due(training):
                _flush(training, shown)
            if stop and not last:
                saved = f"the checkpoint of step {training.step} is saved"
                raise Stopped(f"stopped by a signal; {saved}", do="run the same command again to go on")
            shown.advance(1, training.note)
    if training.ema is not None:
        training.ema.copy_to(unet.named_parameters())
    unet.eval()
    steps = training.step - first
    tail = training.losses[-LAST_STEPS:]
    return Outcome(sum(tail) / max(len(tail), 1), (time.monotonic() - start) / steps if steps else 0.0)


def _begin(unet: Any, run: Path, recipe: Recipe, settings: Mapping[str, Any], accelerator: Accelerator) -> _Training:
    """Build the optimiser and the average, and put back the newest checkpoint."""
    with accelerator.main_process_first():
        state = load_newest(run / FOLDER, settings)
    if state is not None:
        unet.load_state_dict(state.unet)
    unet.to(accelerator.device).train()
    optimizer = torch.optim.AdamW(
        unet.parameters(),
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        weight_decay=recipe.adam_weight_decay,
        eps=recipe.adam_epsilon,
        foreach=True,
    )
    ema = MovingAverage(unet.named_parameters(), recipe.ema_decay) if recipe.use_ema else None
    training = _Training(accelerator, unet, None, None, ema, recipe, run, settings)
    if state is not None:
        restore_optimizer(optimizer, training.names, state.optimizer)
        if ema is not None:
            ema.load(state.ema, state.ema_updates)
        training.step = training.saved = state.step
        say(f"fine-tuning goes on after step {state.step} of {recipe.max_train_steps}")
    training.model, training.optimizer = accelerator.prepare(unet, optimizer)
    if state is not None and accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(dict(state.scaler))
    if accelerator.is_main_process:
        training.losses = _cut_log(run / LOG, training.step)
    return training


def _cut_log(path: Path, step: int) -> list[float]:
    """Drop the rows of steps that are done again; returns the losses of those that stay."""
    rows = [row for row in read_json_lines(path, torn_tail=True) if row["step"] <= step]
    if path.exists():
        write_json_lines(path, rows)
    return [row["loss"] for row in rows]


def _do_step(training: _Training, noise_scheduler: Any, make_batch: Callable[[Sequence[int]], Batch]) -> None:
    """One optimisation step on one global batch; the loss stays on the device."""
    start, recipe, accelerator = time.monotonic(), training.recipe, training.accelerator
    batch_size, accumulation = recipe.train_batch_size, recipe.gradient_accumulation_steps
    rate = learning_rate_at(training.step, recipe)
    for group in training.optimizer.param_groups:
        group["lr"] = rate
    parts = samples_of(training.step, batch_size, accumulation, accelerator.process_index, accelerator.num_processes)
    total = torch.zeros((), device=accelerator.device)
    for number, samples in enumerate(parts):
        batch = make_batch(samples).to(accelerator.device)
        together = number == accumulation - 1
        with nullcontext() if together else accelerator.no_sync(training.model):
            with accelerator.autocast():
                losses = sample_losses(training.model, noise_scheduler, batch)
            # The mean over the global batch, however it is cut up; processes' gradients are averaged later.
            loss = losses.sum() / (batch_size * accumulation)
            accelerator.backward(loss * accelerator.num_processes)
        total += loss.detach()
    accelerator.clip_grad_norm_(training.model.parameters(), recipe.max_grad_norm)
    training.optimizer.step()
    training.optimizer.zero_grad()
    if training.ema is not None:
        training.ema.update(training.unet.named_parameters())
    training.step += 1
    row = {"step": training.step, "loss": 0.0, "learning_rate": rate, "seconds": time.monotonic() - start}
    training.pending.append((row, total))


def _flush_due(training: _Training) -> bool:
    if len(training.pending) >= _FLUSH_STEPS:
        return True
    # Processes have to agree, so they go by steps alone.
    waited = time.monotonic() - training.flushed
    return training.accelerator.num_processes == 1 and waited >= _FLUSH_SECONDS


def _flush(training: _Training, shown: Meter) -> None:
    """Write the rows of the last steps.

    Raises:
        NumericError: a loss is not finite.
    """
    if not training.pending:
        return
    summed: Any = training.accelerator.reduce(torch.stack([loss for _, loss in training.pending]), "sum")
    losses = summed.tolist()
    rows = [
        {**row, "loss": loss if math.isfinite(loss) else None, "seconds": round(row["seconds"], 4)}
        for (row, _), loss in zip(training.pending, losses, strict=True)
    ]
    if training.accelerator.is_main_process:
        append_json_lines(training.run / LOG, rows)
    training.pending, training.flushed = [], time.monotonic()
    training.losses.extend(losses)
    bad = [row["step"] for row in rows if row["loss"] is None]
    if bad:
        kept = checkpoints(training.run / FOLDER)
        raise NumericError(
            f"the loss is not finite at step {bad[0]}",
            why="training diverged, or a half-precision number overflowed",
            do="lower train.learning_rate or set train.mixed_precision=no (with --redo); "
            f"the last checkpoint is {kept[0].name if kept else 'none'}",
        )
    samples = training.recipe.train_batch_size * training.recipe.gradient_accumulation_steps
    training.note = f"{shown.rate * samples:.0f} samples/s, loss {sum(losses) / len(losses):.4f}"


def _save(training: _Training) -> None:
    if training.saved == training.step:
        return
    ema, accelerator = training.ema, training.accelerator
    if accelerator.is_main_process:
        state = TrainingState(
            step=training.step,
            unet=training.unet.state_dict(),
            ema=ema.average if ema is not None else {},
            ema_updates=ema.updates if ema is not None else 0,
            optimizer=optimizer_tensors(training.optimizer, training.names),
            scaler=accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
        )
        keep = training.recipe.checkpoints_total_limit
        save_checkpoint(training.run / FOLDER, state, training.settings, keep)
    accelerator.wait_for_everyone()
    training.saved = training.step


def _stop_wanted(training: _Training) -> bool:
    """Whether any process was asked to stop; several processes ask each other now and then only."""
    if training.accelerator.num_processes == 1:
        return bool(flag)
    if training.step % _FLUSH_STEPS:
        return False
    mine = torch.tensor([float(bool(flag))], device=training.accelerator.device)
    asked: Any = training.accelerator.reduce(mine, "sum")
    return bool(asked.item() > 0)
