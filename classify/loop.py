"""Fit one classifier for a fixed number of steps; validation chooses the weights, the test split never does.

`fit` has no way to see test images: they go to `final_evaluation`, once, after `fit` has returned.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvc.errors import NumericError

from .augment import to_float
from .images import Images

BETAS = (0.9, 0.999)


@dataclass(frozen=True)
class Fit:
    """What happened in one fit.

    Args:
        best_step: number of steps after which the kept weights stood (the last step without validation).
        validation_accuracy: theirs, share in [0, 1]; None without validation images.
        curve: (steps done, validation accuracy, validation loss in nats) of each evaluation.
    """

    best_step: int
    validation_accuracy: float | None
    curve: list[tuple[int, float, float]]


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
    """(n, classes) float32 logits on the CPU, in evaluation mode (running BatchNorm statistics)."""
    device = next(network.parameters()).device
    network.eval()
    parts = [network(to_float(part.to(device))).float().cpu() for part in images.batches(batch_size)]
    return torch.cat(parts)


def _scores(network: nn.Module, images: Images) -> tuple[float, float]:
    logits = logits_of(network, images)
    accuracy = (logits.argmax(dim=1) == images.labels).double().mean().item()
    return accuracy, F.cross_entropy(logits, images.labels).item()


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def fit(
    network: nn.Module,
    batch: Callable[[int], tuple[Tensor, Tensor]],
    rates: Sequence[float],
    weight_decay: float,
    evaluation_steps: int,
    validation: Images | None,
    on_step: Callable[[int], None] = lambda step: None,
) -> Fit:
    """Train `network` in place by AdamW and cross entropy, and leave the best weights in it.

    The best weights are those of the highest validation accuracy, a tie going to the lower validation loss.
    Without validation images the last weights stay.

    Args:
        network: takes (B, 3, S, S) float32 in [0, 1] on its device, returns (B, classes) logits.
        batch: step, from 0, to (images (B, 3, S, S) float32 in [0, 1], labels (B,) int64) on any device.
        rates: learning rate of each step; their number is the number of steps.
        weight_decay: AdamW's.
        evaluation_steps: validate every so many steps, and after the last.
        validation: the validation split.
        on_step: called after each step with the number of steps done.

    Raises:
        NumericError: the loss is not finite.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(
        network.parameters(), lr=rates[0], betas=BETAS, weight_decay=weight_decay, fused=device.type != "mps"
    )
    curve: list[tuple[int, float, float]] = []
    best: tuple[float, float] | None = None
    best_step, best_weights = len(rates), None
    loss_sum = torch.zeros((), device=device)
    network.train()
    for step, rate in enumerate(rates):
        for group in optimizer.param_groups:
            group["lr"] = rate
        images, labels = batch(step)
        loss = F.cross_entropy(network(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        loss_sum += loss.detach()  # read only at evaluations: a read waits for the device
        done = step + 1
        if done % evaluation_steps == 0 or done == len(rates):
            if not math.isfinite(loss_sum.item()):
                raise NumericError(
                    f"the classifier's loss is not finite by step {done}", do="lower classify.learning_rate"
                )
            if validation is not None:
                accuracy, validation_loss = _scores(network, validation)
                curve.append((done, accuracy, validation_loss))
                if best is None or (accuracy, -validation_loss) > best:
                    best, best_step, best_weights = (accuracy, -validation_loss), done, _copy(network)
                network.train()
        on_step(done)
    if best_weights is not None:
        network.load_state_dict(best_weights)
    return Fit(best_step, None if best is None else best[0], curve)


def final_evaluation(network: nn.Module, test: Images, classes: Sequence[str]) -> tuple[float, dict[str, float]]:
    """Read the test split, once, with the weights that `fit` left.

    Args:
        network: a fitted classifier.
        test: the test split.
        classes: class names; the index is the label.

    Returns:
        Accuracy and accuracy per class, shares in [0, 1]; classes without test images are left out.
    """
    right = (logits_of(network, test).argmax(dim=1) == test.labels).double()
    per_class = {
        name: right[test.labels == label].mean().item()
        for label, name in enumerate(classes)
        if bool((test.labels == label).any())
    }
    return right.mean().item(), per_class
