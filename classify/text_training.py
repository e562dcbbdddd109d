"""Fit one text classifier for a fixed number of steps; validation chooses the weights, and no test text comes near."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW

from mvc.errors import NumericError
from mvc.randomness import derived_seed, seeded_global
from mvc.stopping import flag

from .choice import Choice
from .loop import BETAS, TAIL
from .strategies import shuffled
from .text_data import Texts
from .text_networks import Encoded, TextBatch, encode

_SAFE = "classifiers that were finished are kept"
TextLoss = Callable[[Any, TextBatch, Tensor, int], Tensor]
"""(network, texts, labels (B,) int64, step) to the loss to be minimised, () float32 in nats."""


@dataclass(frozen=True)
class TextFit:
    """What happened in one fit.

    Args:
        best_step: number of steps after which the kept weights stood (the last step without validation).
        validation_accuracy: theirs, share in [0, 1]; None without validation texts.
        curve: (steps done, validation accuracy, validation loss in nats) of each evaluation.
        diversity: mean training loss of the last tenth of the steps, at least one, in nats (Back-Modality, Sec. 3.5).
        cut: how many training texts lost their end.
    """

    best_step: int
    validation_accuracy: float | None
    curve: list[tuple[int, float, float]]
    diversity: float
    cut: int


def plain_loss(network: Any, batch: TextBatch, labels: Tensor, step: int) -> Tensor:
    """Cross entropy of the texts as they are; the step plays no part."""
    return F.cross_entropy(network(**batch.inputs).logits.float(), labels)


@torch.inference_mode()
def _logits(network: Any, encoded: Encoded, batch_size: int, device: torch.device) -> Tensor:
    """(n, classes) float32 on the CPU; the network is left in evaluation mode."""
    network.eval()
    found = torch.empty(len(encoded), network.config.num_labels)
    lengths = encoded.lengths
    order = sorted(range(len(encoded)), key=lengths.__getitem__)  # so that little is computed for padding
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        found[rows] = network(**encoded.batch(rows, device).inputs).logits.float().cpu()
        flag.check(_SAFE)
    return found


def predict(
    network: Any,
    tokenizer: Any,
    texts: Sequence[tuple[str, ...]],
    batch_size: int,
    max_length: int,
    device: torch.device,
) -> Tensor:
    """What a classifier says of texts.

    Args:
        network: from `load_classifier`; put into evaluation mode.
        tokenizer: its tokenizer.
        texts: n rows of one or two texts.
        batch_size: texts at once; a result depends on it, and on the other texts, by rounding alone.
        max_length: longest row in tokens; longer ones lose their end.
        device: where the network is.

    Returns:
        (n, classes) float32 on the CPU, in the order of the texts; rows add up to 1.

    Raises:
        ConfigError: max_length leaves no token of a text.
        Stopped: a signal asked for a stop.
    """
    return _logits(network, encode(tokenizer, texts, max_length), batch_size, device).softmax(dim=1)


@contextmanager
def _dropout(seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Seed what dropout draws from on a device, by (seed, "text dropout", step); it is as before afterwards."""
    with seeded_global(seed, "text dropout", step):
        if device.type != "cuda":
            yield
            return
        with torch.random.fork_rng(devices=[device]):  # seeded_global is of the CPU alone
            torch.cuda.default_generators[device.index or 0].manual_seed(derived_seed(seed, "text dropout", step))
            yield


def train_text_classifier(
    network: Any,
    tokenizer: Any,
    train: Texts,
    validation: Texts,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    evaluation_steps: int,
    evaluation_batch_size: int,
    max_length: int,
    seed: int,
    loss: TextLoss = plain_loss,
    on_step: Callable[[int], None] = lambda done: None,
) -> TextFit:
    """Train all weights of `network` in place, and leave the best in it (Back-Modality, appendix 9).

    AdamW at a constant learning rate with decay rates 0.9 and 0.999 of its moments. The best weights are those of the
    highest validation accuracy, a tie going to the lower validation loss and then to the earlier step, as for images.
    Without validation texts the last weights stay.

    Args:
        network: from `load_classifier`.
        tokenizer: its tokenizer.
        train: texts to train on, one at least.
        validation: texts to choose the weights by; may be none.
        steps: optimisation steps.
        batch_size: texts a step. (seed, "text order", epoch) decides their order; none is used again before all
            others were, and a batch may hold the end of one epoch and the start of the next.
        learning_rate, weight_decay: AdamW's.
        evaluation_steps: validate every so many steps, and after the last.
        evaluation_batch_size: validation texts at once.
        max_length: longest row in tokens; longer ones lose their end.
        seed: model seed; (seed, "text dropout", step) decides what is dropped.
        loss: how a batch is judged; `text_mixing.loss_of` makes those that mix texts.
        on_step: called after each step with the number of steps done.

    Raises:
        NumericError: the loss is not finite.
        Stopped: a signal asked for a stop.
        ConfigError: max_length leaves no token of a text.
    """
    device = next(network.parameters()).device
    encoded, judged = (encode(tokenizer, texts.texts, max_length) for texts in (train, validation))
    labels, wanted = torch.tensor(train.labels), torch.tensor(validation.labels)
    weights = [value for value in network.parameters() if value.requires_grad]
    solver = AdamW(weights, learning_rate, BETAS, weight_decay=weight_decay, fused=device.type != "mps")
    choice, losses = Choice(steps), torch.zeros(steps, device=device)
    network.train()
    for step in range(steps):
        rows = shuffled(seed, "text order", len(train), step, batch_size).tolist()
        with _dropout(seed, step, device):
            value = loss(network, encoded.batch(rows, device), labels[rows].to(device), step)
            solver.zero_grad()
            torch.autograd.backward(value)
        solver.step()
        losses[step] = value.detach()  # read only at evaluations: a read waits for the device
        done = step + 1
        if done % evaluation_steps == 0 or done == steps:
            _require_finite(losses[:done])
            if len(validation):
                logits = _logits(network, judged, evaluation_batch_size, device)
                accuracy = (logits.argmax(dim=1) == wanted).double().mean().item()
                choice.consider(network, done, accuracy, F.cross_entropy(logits, wanted).item())
                network.train()
        on_step(done)
        flag.check(_SAFE)
    if choice.weights:
        network.load_state_dict(choice.weights)
    network.eval()
    last = losses[-max(1, steps // TAIL) :].mean().item()
    return TextFit(choice.step, choice.accuracy, choice.curve, last, encoded.cut)


def _require_finite(losses: Tensor) -> None:
    if not bool(losses.isfinite().all()):
        raise NumericError(
            f"the text classifier's loss is not finite by step {len(losses)}", do="lower classify.learning_rate"
        )
