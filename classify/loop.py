"""Fit one classifier for a fixed number of steps; validation chooses the weights, and no test image comes near."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from mvc.errors import NumericError
from mvc.moving_average import MovingAverage

from . import parallel
from .augment import to_float
from .choice import Choice
from .images import Images
from .mixing import Mixer

BETAS = (0.9, 0.999)
MOMENTUM = 0.9
TAIL = 10
"""The training loss is the mean over one step in so many, the last ones."""


@dataclass(frozen=True)
class Fit:
    """What happened in one fit.

    Args:
        best_step: number of steps after which the kept weights stood (the last step without validation).
        validation_accuracy: theirs, share in [0, 1]; None without validation images.
        curve: (steps done, validation accuracy, validation loss in nats) of each evaluation.
        training_loss: mean loss of the last tenth of the steps, at least one, in nats; what the literature calls
            the diversity of an augmentation (Gontijo-Lopes et al., "Affinity and diversity", 2020).
    """

    best_step: int
    validation_accuracy: float | None
    curve: list[tuple[int, float, float]]
    training_loss: float


def learning_rates(phases: Sequence[tuple[int, float]], warmup: int) -> list[float]:
    """The learning rate of each step: a linear warm-up, and a cosine from the peak to zero in each phase.

    Args:
        phases: (steps, peak rate) of each phase.
        warmup: steps over which the first rates rise; once, at the very start.
    """
    rates = [peak * 0.5 * (1 + math.cos(math.pi * step / steps)) for steps, peak in phases for step in range(steps)]
    return [rate * min(1.0, (step + 1) / max(warmup, 1)) for step, rate in enumerate(rates)]


@torch.inference_mode()
def logits_of(network: nn.Module, images: Images, batch_size: int = 256) -> Tensor:
    """(n, classes) float32 logits on the CPU, in evaluation mode (running BatchNorm statistics) and in float32."""
    device = next(network.parameters()).device
    network.eval()
    parts = [network(to_float(part.to(device))).float() for part in images.batches(batch_size)]
    return torch.cat(parts).cpu()


def probabilities(network: nn.Module, images: Images, batch_size: int = 256) -> Tensor:
    """What a classifier says of images.

    Args:
        network: put into evaluation mode; computes in float32.
        images: n images.
        batch_size: images at once.

    Returns:
        (n, classes) float32 on the CPU; rows add up to 1.
    """
    return logits_of(network, images, batch_size).softmax(dim=1)


def scores(network: nn.Module, images: Images) -> tuple[float, float]:
    """Accuracy, a share in [0, 1], and mean loss in nats; the network is left in evaluation mode."""
    logits = logits_of(network, images)
    accuracy = (logits.argmax(dim=1) == images.labels).double().mean().item()
    return accuracy, F.cross_entropy(logits, images.labels).item()


class Objective(nn.Module):
    """From images and targets to the loss, as one module, so that processes can average all that passes through it.

    Args:
        network: takes (B, 3, S, S), returns (B, classes) logits.
        mixer: mixes the batch and makes the forward pass; None for the plain one.
        mixed_precision: "bf16" for a forward pass under autocast, "no" for float32.
    """

    def __init__(self, network: nn.Module, mixer: Mixer | None, mixed_precision: str) -> None:
        super().__init__()
        self.network, self.mixer, self.reduced = network, mixer, mixed_precision == "bf16"

    def forward(self, images: Tensor, targets: Tensor, step: int) -> Tensor:
        """() float32: -(targets * log_softmax(logits)).sum(1).mean(), always in float32."""
        with torch.autocast(images.device.type, torch.bfloat16) if self.reduced else nullcontext():
            if self.mixer is None:
                logits = self.network(images)
            else:
                logits, targets = self.mixer(self.network, images, targets, step)
        return F.cross_entropy(logits.float(), targets)


def _make_optimizer(name: str, weights: Sequence[Tensor], weight_decay: float) -> Optimizer:
    fused = weights[0].device.type != "mps"
    if name == "sgd":
        return SGD(weights, momentum=MOMENTUM, nesterov=True, weight_decay=weight_decay, fused=fused)
    return AdamW(weights, betas=BETAS, weight_decay=weight_decay, fused=fused)


def fit(
    network: nn.Module,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    rates: Sequence[float],
    *,
    optimizer: str = "adamw",
    weight_decay: float,
    evaluation_steps: int,
    validation: Images | None,
    mixer: Mixer | None = None,
    mixed_precision: str = "no",
    ema_decay: float = 0.0,
    on_step: Callable[[int], None] = lambda step: None,
) -> Fit:
    """Train `network` in place by cross entropy, and leave the best weights in it.

    The best weights are those of the highest validation accuracy, a tie going to the lower validation loss.
    Without validation images the last weights stay. Where torch's process group is up, all its processes call this
    with equal arguments, train on a part of each batch, and end with equal weights (`classify.parallel`).

    Args:
        network: takes (B, 3, S, S) float32 in [0, 1] on its device, returns (B, classes) logits. Parameters that
            require no gradient stay as they are.
        batch: step, from 0, to (images (B, 3, S, S) float32 in [0, 1], targets (B, classes) float32) on any device.
            The weight of an image is the sum of its row; the loss is -(targets * log_softmax(logits)).sum(1).mean().
        rates: learning rate of each step; their number is the number of steps.
        optimizer: adamw, or sgd with a momentum of 0.9 (Nesterov).
        weight_decay: the optimizer's.
        evaluation_steps: validate every so many steps, and after the last.
        validation: the validation split.
        mixer: mixes images and targets of a batch and makes the forward pass.
        mixed_precision: no, or bf16 for the forward and backward pass; loss, weights and validation are float32.
        ema_decay: largest decay of a moving average of the weights, which then is validated and kept; 0 for none.
        on_step: called after each step with the number of steps done.

    Raises:
        NumericError: the loss is not finite.
        ConfigError: a batch has fewer images than there are processes.
    """
    named = [(name, weight) for name, weight in network.named_parameters() if weight.requires_grad]
    weights = [weight for _, weight in named]
    device = weights[0].device
    objective = parallel.spread(Objective(network, mixer, mixed_precision), device)
    solver = _make_optimizer(optimizer, weights, weight_decay)
    average = MovingAverage(named, ema_decay) if ema_decay else None
    choice, losses = Choice(len(rates)), torch.zeros(len(rates), device=device)
    network.train()
    for step, rate in enumerate(rates):
        images, targets = parallel.part(*batch(step))
        loss = objective(images.to(device), targets.to(device), step)
        _update(solver, loss, rate)
        losses[step] = loss.detach()  # read only at evaluations: a read waits for the device
        if average is not None:
            average.update(named)
        done = step + 1
        if done % evaluation_steps == 0 or done == len(rates):
            _require_finite(parallel.mean(losses[:done]))
            parallel.share_buffers(network)
            if validation is not None:
                with average.in_place(named) if average is not None else nullcontext():
                    choice.consider(network, done, *parallel.of_first(partial(scores, network, validation), device))
                network.train()
        on_step(done)
    if choice.weights:
        network.load_state_dict(choice.weights)
    elif average is not None:
        average.copy_to(named)
    last = parallel.mean(losses[-max(1, len(rates) // TAIL) :])
    return Fit(choice.step, choice.accuracy, choice.curve, last.mean().item())


def _update(solver: Optimizer, loss: Tensor, rate: float) -> None:
    """One step of the optimizer."""
    for group in solver.param_groups:
        group["lr"] = rate
    solver.zero_grad()
    torch.autograd.backward(loss)
    solver.step()


def _require_finite(losses: Tensor) -> None:
    if not bool(losses.isfinite().all()):
        raise NumericError(
            f"the classifier's loss is not finite by step {len(losses)}", do="lower classify.learning_rate"
        )
