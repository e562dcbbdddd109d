"""The training of a CLIP on pairs: exact gradients of the global batch, resumable to the bit after any step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from safetensors.torch import load_file
from torch import Tensor, nn

from mvc.clip.contrastive import clamp_logit_scale, contrastive_backward
from mvc.clip.inputs import normalized
from mvc.clip.models import Clip
from mvc.clip.pairs import Pairs
from mvc.errors import NumericError, Stopped
from mvc.progress import Meter, say
from mvc.stopping import flag
from mvc.storage import read_json

from .checkpoints import newest_whole, publish_checkpoint
from .clip_batches import batches, rows_of_steps
from .clip_mining import negatives_of
from .clip_techniques import Techniques
from .optimizers import optimizer_tensors, restore_optimizer
from .recipe import Recipe, learning_rate_at

LAST_STEPS = 100
"""Steps over which the final loss is averaged."""


@dataclass
class ClipTraining:
    """A training under way.

    Attributes:
        clip: its network is trained in place.
        recipe, folder, settings, accelerator, evaluate: as in `fit_clip`.
        optimizer: AdamW.
        names: of what is trained, in the optimizer's order.
        step: optimisation steps done.
        losses: of all steps so far, in nats; the last ones may still be tensors on the device.
        curve: (steps done, RSUM of the validation pairs) of each evaluation.
        best_step: steps after which the best weights stood; 0 before the first evaluation.
        best: the weights of the best evaluation.
        negatives: (pairs, k) rows of the last search for hard negatives; None where the arm makes none.
        saved: step of the newest checkpoint; of none before the first step, which there is nothing to save of.
    """

    clip: Clip
    recipe: Recipe
    folder: Path
    settings: Mapping[str, Any]
    accelerator: Accelerator
    evaluate: Callable[[Clip], float] | None
    optimizer: torch.optim.Optimizer
    names: list[str]
    step: int = 0
    losses: list[float | Tensor] = field(default_factory=list)
    curve: list[tuple[int, float]] = field(default_factory=list)
    best_step: int = 0
    best: dict[str, Tensor] = field(default_factory=dict)
    negatives: Tensor | None = None
    saved: int = 0


@dataclass(frozen=True)
class ClipFit:
    """What came of a training.

    Attributes:
        best_step: steps after which the kept weights stood.
        curve: (steps done, RSUM of the validation pairs) of each evaluation.
        training_loss: mean of the last steps, in nats.
    """

    best_step: int
    curve: list[tuple[int, float]]
    training_loss: float


def fit_clip(
    clip: Clip,
    pairs: Pairs,
    techniques: Techniques,
    recipe: Recipe,
    folder: Path,
    settings: Mapping[str, Any],
    accelerator: Accelerator,
    *,
    crop_scale: float,
    micro_batch_size: int | None,
    bf16: bool,
    mining_steps: int,
    negatives: int,
    num_workers: int,
    evaluate: Callable[[Clip], float] | None,
    keep_best: bool,
    shown: Meter,
) -> ClipFit:
    """Train a CLIP in place, from the newest checkpoint in a folder if there is one.

    Args:
        clip: on the accelerator's device.
        pairs: training pairs.
        techniques: the arm.
        recipe: how to optimise.
        folder: of the checkpoints.
        settings: flat JSON values that the result depends on; a checkpoint made with others is refused.
        accelerator: device and processes.
        crop_scale: least share of the area of a random crop.
        micro_batch_size: pairs at once on a device; None for the process's whole share.
        bf16: compute the network's passes in bfloat16.
        mining_steps: steps between two searches for hard negatives.
        negatives: hard negatives of each pair.
        num_workers: processes that decode images.
        evaluate: gives the RSUM of the validation pairs; None without such.
        keep_best: leave the weights of the best evaluation, not the last ones.
        shown: advanced by a step at a time.

    Raises:
        NumericError: a loss is not finite; the last checkpoint is kept.
        ConfigError: the checkpoints were made with other settings.
        Stopped: a signal asked for a stop; a checkpoint was saved.
    """
    training = _begin(clip, recipe, folder, settings, accelerator, evaluate)
    shown.advance(training.step, note=techniques.arm)
    size = recipe.train_batch_size
    low = accelerator.process_index * size // accelerator.num_processes
    high = (accelerator.process_index + 1) * size // accelerator.num_processes
    look = techniques.look(clip.image_size, crop_scale)
    _evaluate(training)
    clip.network.train()
    while training.step < recipe.max_train_steps:
        if techniques.mines and training.step % mining_steps == 0:
            _mine(training, pairs, negatives)
        end = _segment_end(training.step, recipe.max_train_steps, mining_steps if techniques.mines else None)
        steps = range(training.step, end)
        rows = rows_of_steps(len(pairs), size, techniques.seed, steps, training.negatives)
        asked = (
            [(own[place], step * size + place) for place in techniques.places(step, low, high)]
            for step, own in zip(steps, rows, strict=True)
        )
        for images, captions in batches(look, pairs, asked, num_workers):
            step = training.step
            mixed, texts = techniques.mixed(step, images.to(accelerator.device).float() / 255, captions, low, high)
            _update(training, techniques, mixed, texts, micro_batch_size or high - low, bf16)
            shown.advance(1, note=techniques.arm)
            _look(training)
    if keep_best and training.best:
        clip.network.load_state_dict(training.best)
    clip.network.eval()
    losses = _numbers(training)[-LAST_STEPS:]
    best = training.best_step if keep_best and training.best else training.step
    return ClipFit(best, training.curve, sum(losses) / len(losses))


def _segment_end(step: int, total: int, mining_steps: int | None) -> int:
    """Where the order of the pairs changes next, because hard negatives are searched anew."""
    return total if mining_steps is None else min(total, (step // mining_steps + 1) * mining_steps)


def _begin(
    clip: Clip,
    recipe: Recipe,
    folder: Path,
    settings: Mapping[str, Any],
    accelerator: Accelerator,
    evaluate: Callable[[Clip], float] | None,
) -> ClipTraining:
    with accelerator.main_process_first():
        found = newest_whole(folder, settings, f"delete {folder}")
    groups = list(_groups(clip.network, recipe.adam_weight_decay))
    optimizer = torch.optim.AdamW(
        [{"params": [value for _, value in named], "weight_decay": decay} for named, decay in groups],
        lr=recipe.learning_rate,
        betas=(recipe.adam_beta1, recipe.adam_beta2),
        eps=recipe.adam_epsilon,
        fused=accelerator.device.type in ("cuda", "cpu"),
    )
    names = [name for named, _ in groups for name, _ in named]
    training = ClipTraining(clip, recipe, folder, settings, accelerator, evaluate, optimizer, names)
    if found is None:
        return training
    path, manifest = found
    more = read_json(path / "state.json")
    clip.network.load_state_dict(load_file(path / "clip.safetensors"))
    restore_optimizer(optimizer, training.names, load_file(path / "optimizer.safetensors"))
    training.step = training.saved = int(manifest["step"])
    training.losses, training.best_step = list(more["losses"]), int(more["best_step"])
    training.curve = [(int(step), float(rsum)) for step, rsum in more["curve"]]
    training.best = load_file(path / "best.safetensors")
    training.negatives = load_file(path / "mined.safetensors").get("negatives")
    if accelerator.is_main_process:
        say(f"clip: {folder.name} goes on after step {training.step} of {recipe.max_train_steps}")
    return training


def _groups(network: nn.Module, weight_decay: float) -> Iterator[tuple[list[tuple[str, Tensor]], float]]:
    """Matrices, and what has no weight decay: biases, norms, the logarithm of the factor (Radford et al., Sec. 2.5)."""
    named = [(name, value) for name, value in network.named_parameters() if value.requires_grad]
    yield [(name, value) for name, value in named if value.ndim > 1], weight_decay
    yield [(name, value) for name, value in named if value.ndim <= 1], 0.0


def _update(
    training: ClipTraining,
    techniques: Techniques,
    images: Tensor,
    captions: Sequence[str],
    micro_batch_size: int,
    bf16: bool,
) -> None:
    """One step."""
    clip, recipe, step = training.clip, training.recipe, training.step
    for group in training.optimizer.param_groups:
        group["lr"] = learning_rate_at(step, recipe)
    loss = contrastive_backward(
        clip.network,
        normalized(images, clip),
        clip.tokenize(captions),
        micro_batch_size,
        seed=techniques.seed,
        step=step,
        objective=techniques.objective(step),
        autocast_dtype=torch.bfloat16 if bf16 else None,
    )
    nn.utils.clip_grad_norm_(clip.network.parameters(), recipe.max_grad_norm)
    training.optimizer.step()
    clamp_logit_scale(clip.network)
    training.losses.append(loss)
    training.step += 1


def _mine(training: ClipTraining, pairs: Pairs, count: int) -> None:
    """Search for hard negatives: process 0 does, so that all have the same ones and a stop is met by it alone."""
    accelerator = training.accelerator
    found = torch.zeros(len(pairs), count, dtype=torch.int64)
    if accelerator.is_main_process:
        with _saved_at_a_stop(training):
            found = negatives_of(training.clip, pairs, count)
    shared: Tensor = broadcast(found.to(accelerator.device))
    training.negatives = shared.cpu()


def _look(training: ClipTraining) -> None:
    """Evaluate, save and stop where the step is due."""
    step, accelerator, recipe = training.step, training.accelerator, training.recipe
    stop = _stop_wanted(accelerator)
    if not stop:
        _evaluate(training)
    if stop or step % recipe.checkpointing_steps == 0 or step == recipe.max_train_steps:
        _require_finite(training)
        if accelerator.is_main_process:
            _save(training)
        accelerator.wait_for_everyone()
    if stop:
        raise _stopped(training)


def _evaluate(training: ClipTraining) -> None:
    """Measure the weights of the moment where that is due and not done, and keep them if they are the best so far.

    Process 0 does. What a stop keeps from being done is made up for when the training goes on, before the next step.
    """
    step, recipe = training.step, training.recipe
    due = step > 0 and (step % recipe.validation_steps == 0 or step == recipe.max_train_steps)
    if not due or not training.accelerator.is_main_process or (training.curve and training.curve[-1][0] == step):
        return
    _require_finite(training)
    if training.evaluate is None:
        return
    with _saved_at_a_stop(training):
        rsum = training.evaluate(training.clip)
    if not training.curve or rsum > max(found for _, found in training.curve):
        state = training.clip.network.state_dict()
        training.best = {name: value.detach().cpu().clone() for name, value in state.items()}
        training.best_step = step
    training.curve.append((step, rsum))


@contextmanager
def _saved_at_a_stop(training: ClipTraining) -> Iterator[None]:
    """Save the steps done so far if a signal comes in the block, which gives up what it was at."""
    try:
        yield
    except Stopped as error:
        _save(training)
        raise _stopped(training) from error


def _stopped(training: ClipTraining) -> Stopped:
    saved = f"the checkpoint of step {training.step} is saved" if training.step else "no step was done yet"
    return Stopped(f"stopped by a signal; {saved}", do="run the same command again to go on")


def _save(training: ClipTraining) -> None:
    if training.saved == training.step:
        return
    parts = {
        "clip": training.clip.network.state_dict(),
        "best": training.best,
        "optimizer": optimizer_tensors(training.optimizer, training.names),
        "mined": {} if training.negatives is None else {"negatives": training.negatives},
    }
    more = {"losses": _numbers(training), "best_step": training.best_step, "curve": training.curve}
    keep = training.recipe.checkpoints_total_limit
    publish_checkpoint(training.folder, training.step, parts, more, training.settings, keep)
    training.saved = training.step


def _numbers(training: ClipTraining) -> list[float]:
    """All losses as numbers; reads those that are still on the device."""
    training.losses = [float(loss) for loss in training.losses]
    return [float(loss) for loss in training.losses]


def _require_finite(training: ClipTraining) -> None:
    wrong = next((place for place, loss in enumerate(_numbers(training)) if not math.isfinite(loss)), None)
    if wrong is not None:
        raise NumericError(
            f"the loss of the CLIP is not finite at step {wrong + 1}",
            why="training diverged",
            do="lower train.learning_rate; the last checkpoint is kept",
        )


def _stop_wanted(accelerator: Accelerator) -> bool:
    """Whether any process was asked to stop."""
    if accelerator.num_processes == 1:
        return bool(flag)
    asked: Any = accelerator.reduce(torch.tensor([float(bool(flag))], device=accelerator.device), "sum")
    return bool(asked.item() > 0)
