"""The fine-tuning loop: AdamW on Eq. (4) with a moving average, resumable to the bit after any step."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mvc.errors import NumericError, Stopped
from mvc.processes import sharded
from mvc.progress import Meter, meter, say
from mvc.stopping import flag

from .batches import Batch
from .checkpoints import FOLDER, TrainingState, checkpoints
from .memory import peak_memory
from .optimizers import optimizer_tensors
from .recipe import Recipe
from .sharding import whole
from .step import Training, Watch, begin, do_step
from .writer import CheckpointWriter

LAST_STEPS = 100
"""Steps over which the final loss is averaged: a single one says little."""


@dataclass(frozen=True)
class Outcome:
    """What came of a training.

    Attributes:
        loss: mean of the last steps.
        seconds_per_step: 0 if none was left to do.
        skipped: steps that changed nothing because a number was not finite.
    """

    loss: float
    seconds_per_step: float
    skipped: int


def fit(
    unet: Any,
    noise_scheduler: Any,
    make_batch: Callable[[Sequence[int]], Batch],
    run: Path,
    recipe: Recipe,
    settings: Mapping[str, Any],
    accelerator: Accelerator,
    watch: Watch | None = None,
) -> Outcome:
    """Train the UNet in place, from the newest checkpoint of the run if there is one.

    Trained are its parameters that require a gradient. Afterwards the UNet holds the averaged weights (or the last
    ones without EMA), and the newest checkpoint is that of the last step. Writes run/checkpoints and run/logs. On
    one CPU process an interrupted and resumed training gives the same bits.

    Args:
        unet: UNet2DConditionModel with 8 input channels.
        noise_scheduler: DDPMScheduler.
        make_batch: assembles samples by their global numbers, on the CPU.
        run: the run folder.
        recipe: how to optimise.
        settings: flat JSON values that the result depends on; a checkpoint made with others is refused.
        accelerator: device, precision and processes.
        watch: what looks on.

    Raises:
        NumericError: too many steps were not finite, or a weight is not; the last checkpoint is kept.
        ConfigError: the checkpoints were made with other settings.
        EnvironmentFault: the last checkpoint cannot be written.
        Stopped: a signal asked for a stop; a checkpoint was saved.
    """
    training = begin(unet, run, recipe, settings, accelerator, watch or Watch())
    first, start = training.step, time.monotonic()
    background = accelerator.device.type != "cpu"
    writer = CheckpointWriter(run / FOLDER, settings, recipe.checkpoints_total_limit, background)
    try:
        with meter("fine-tuning", recipe.max_train_steps, "steps", done=training.step) as shown:
            _train(training, noise_scheduler, make_batch, writer, shown)
    finally:
        writer.close()
    if training.ema is not None:
        training.ema.copy_to(training.parameters)
    unet.eval()
    steps, tail = training.step - first, training.log.losses[-LAST_STEPS:]
    finite = [loss for loss in tail if math.isfinite(loss)]
    seconds = (time.monotonic() - start) / steps if steps else 0.0
    return Outcome(sum(finite) / max(len(finite), 1), seconds, training.skipped)


def _train(
    training: Training,
    noise_scheduler: Any,
    make_batch: Callable[[Sequence[int]], Batch],
    writer: CheckpointWriter,
    shown: Meter,
) -> None:
    total, interval = training.recipe.max_train_steps, training.recipe.checkpointing_steps
    if training.step == 0:
        _look(training)
    while training.step < total:
        do_step(training, noise_scheduler, make_batch)
        last, due = training.step == total, training.log.due()
        stop = _stop_wanted(training, due)
        regular = last or training.step % interval == 0
        if regular or stop or due or _look_due(training):
            _flush(training, shown)  # before looking, so that trackers see the steps in their order
        _look(training)  # even if asked to stop: a step that was never looked at would differ on going on
        if regular or stop:
            _save(training, writer, needed=last or stop)
        if last or stop:
            training.log.close()
        if stop and not last:
            saved = f"the checkpoint of step {training.step} is saved"
            raise Stopped(f"stopped by a signal; {saved}", do="run the same command again to go on")
        shown.advance(1, training.note)


def _flush(training: Training, shown: Meter) -> None:
    """Write the rows of the last steps.

    Raises:
        NumericError: too many steps were skipped.
    """
    rows = training.log.flush()
    if not rows:
        return
    scaled = training.accelerator.scaler is not None
    # The loss scaler of fp16 skips steps to find its factor; that is no fault unless the loss itself is not finite.
    bad = [row["step"] for row in rows if row["loss"] is None or (row["skipped"] and not scaled)]
    training.skipped += len(bad)
    losses = [row["loss"] for row in rows if row["loss"] is not None]
    loss = sum(losses) / len(losses) if losses else math.nan
    rate = shown.rate * training.recipe.samples
    training.note = f"{rate:.0f} samples/s, loss {loss:.4f}, {peak_memory(training.accelerator.device):.1f} GiB"
    if bad and training.accelerator.is_main_process:
        say(f"fine-tuning: loss or gradient not finite at step {bad[0]}, so that step is skipped ({training.skipped})")
    if training.skipped > training.recipe.max_skipped_steps:
        kept = checkpoints(training.run / FOLDER)
        raise NumericError(
            f"loss or gradient was not finite in {training.skipped} steps, the last one step {bad[-1]}",
            why="training diverged, or a half-precision number overflowed",
            do="lower train.learning_rate or set train.mixed_precision=no (with --redo); "
            f"the last checkpoint is {kept[0].name if kept else 'none'}",
        )


def _validation_due(training: Training) -> bool:
    step, recipe = training.step, training.recipe
    regular = step % recipe.validation_steps == 0 or step % recipe.checkpointing_steps == 0
    due = regular or step == recipe.max_train_steps
    return training.watch.validate is not None and due and training.validated[0] != step


def _drawing_due(training: Training) -> bool:
    step, recipe = training.step, training.recipe
    if training.watch.draw is None or not recipe.sample_steps:
        return False
    return step % recipe.sample_steps == 0 or step == recipe.max_train_steps


def _look_due(training: Training) -> bool:
    return _validation_due(training) or _drawing_due(training)


def _look(training: Training) -> None:
    """Validate and draw where the step is due."""
    validate = training.watch.validate if _validation_due(training) else None
    draw = training.watch.draw if _drawing_due(training) else None
    if validate is None and draw is None:
        return
    step, ema = training.step, training.ema
    with ema.in_place(training.parameters) if ema is not None else nullcontext():
        if validate is not None:
            loss = validate(training.unet)
            training.validated = (step, loss if math.isfinite(loss) else None)
            training.log.validated(step, loss, training.watch.validated_on)
        if draw is not None:
            draw(training.unet, step)


def _save(training: Training, writer: CheckpointWriter, needed: bool) -> None:
    """Hand the state of the moment to the writer."""
    if training.saved == training.step:
        return
    ema, accelerator = training.ema, training.accelerator
    moments = optimizer_tensors(training.optimizer, training.names)
    state = TrainingState(
        step=training.step,
        unet=_gathered(dict(training.parameters), accelerator),
        ema=_gathered(ema.average, accelerator) if ema is not None else {},
        ema_updates=ema.updates if ema is not None else 0,
        optimizer=_gathered(moments, accelerator),
        scaler=accelerator.scaler.state_dict() if accelerator.scaler is not None else {},
        skipped=training.skipped,
        validation_loss=training.validated[1] if training.validated[0] == training.step else None,
    )
    if accelerator.is_main_process:
        writer.save(state, needed)
    accelerator.wait_for_everyone()
    training.saved = training.step


def _gathered(tensors: Mapping[str, Tensor], accelerator: Accelerator) -> dict[str, Tensor]:
    """Whole tensors where processes hold a part each; the main process keeps them, away from the device."""
    if not sharded():
        return dict(tensors)
    kept = {}
    for name, value in tensors.items():
        gathered = whole(value)  # all processes take part
        if accelerator.is_main_process:
            kept[name] = gathered.cpu()
    return kept


def _stop_wanted(training: Training, due: bool) -> bool:
    """Whether any process was asked to stop; several processes ask each other only when they write the log."""
    if training.accelerator.num_processes == 1:
        return bool(flag)
    if not due:
        return False
    mine = torch.tensor([float(bool(flag))], device=training.accelerator.device)
    asked: Any = training.accelerator.reduce(mine, "sum")
    return bool(asked.item() > 0)
