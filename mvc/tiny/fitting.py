"""One training loop for the tiny models: AdamW, warm-up and cosine, bfloat16 where it is faster."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from mvc.errors import NumericError
from mvc.storage import write_bytes

WARM_UP = 100
"""Steps over which the learning rate rises."""


def learning_rate_at(step: int, steps: int) -> float:
    """Share of the peak learning rate: linear warm-up, then half a cosine down to 2 %."""
    if step < WARM_UP:
        return (step + 1) / WARM_UP
    done = (step - WARM_UP) / max(1, steps - WARM_UP)
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def fit(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    steps: int,
    learning_rate: float,
    cache: Path | None = None,
    ema_decay: float | None = None,
    weight_decay: float = 0.01,
) -> float:
    """Train a model in place.

    Args:
        name: for the lines that are printed, and for the checkpoint.
        model: trained in float32; its loss runs under bfloat16 autocast.
        loss_at: gives the scalar loss of a step 0..steps-1; owns the batches and their randomness.
        steps: optimisation steps.
        learning_rate: the peak.
        cache: a folder for `<name>.safetensors`, written every 250 steps; None writes none. If one is there, the
            training goes on from it: from the averaged weights and with fresh AdamW moments.
        ema_decay: keep a moving average of the weights with this decay and leave it in the model.
        weight_decay: of AdamW, for matrices and filters only.

    Returns:
        Seconds that it took, those before a checkpoint included.

    Raises:
        NumericError: the loss is not finite.
    """
    checkpoint = None if cache is None else cache / f"{name}.safetensors"
    first, earlier = _restore(model, checkpoint)
    matrices = [weight for weight in model.parameters() if weight.ndim > 1 and weight.requires_grad]
    others = [weight for weight in model.parameters() if weight.ndim <= 1 and weight.requires_grad]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_at(first + step, steps))
    ema = None if ema_decay is None else EMAModel(model.parameters(), decay=ema_decay, use_ema_warmup=True, power=0.75)
    model.train()
    start, mean = time.monotonic() - earlier, 0.0
    for step in range(first, steps):
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_at(step)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if ema is not None:
            ema.step(model.parameters())
        mean += float(loss.detach()) / 100
        if (step + 1) % 100 == 0:
            if not math.isfinite(mean):
                raise NumericError(f"{name}: the loss is not finite at step {step + 1}")
            print(f"{name} step {step + 1}/{steps} loss {mean:.5f} {time.monotonic() - start:.0f} s", flush=True)
            mean = 0.0
        if checkpoint is not None and (step + 1) % 250 == 0:
            _keep(model, ema, checkpoint, step + 1, time.monotonic() - start)
    if ema is not None:
        ema.copy_to(model.parameters())
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    model.eval()
    return time.monotonic() - start


def _keep(model: nn.Module, ema: EMAModel | None, file: Path, step: int, seconds: float) -> None:
    if ema is not None:
        ema.store(model.parameters())
        ema.copy_to(model.parameters())
    weights = {key: value.detach().clone().contiguous() for key, value in model.state_dict().items()}
    write_bytes(file, save(weights, {"step": str(step), "seconds": f"{seconds:.0f}"}))
    if ema is not None:
        ema.restore(model.parameters())


def _restore(model: nn.Module, file: Path | None) -> tuple[int, float]:
    """Load a checkpoint, if there is one: the step it was written after and the seconds until then, or zeros."""
    if file is None or not file.exists():
        return 0, 0.0
    with safe_open(file, framework="pt") as opened:
        facts = opened.metadata()
    model.load_state_dict(load_file(file))
    return int(facts["step"]), float(facts["seconds"])
