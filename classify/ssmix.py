"""SSMix: the span of a text that matters least gives way to the span of another text that matters most.

Yoon, Kim and Park, "SSMix: Saliency-Based Span Mixup for Text Classification", Findings of ACL 2021, Sec. 3. As in
their training, a batch counts half as it is and half mixed, each text being the base of one mixture.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mvc.randomness import numpy_generator

from .text_mixing import mixed_cross_entropy, partners
from .text_networks import TextBatch


def saliency(network: Any, batch: TextBatch, labels: Tensor) -> tuple[Tensor, Tensor]:
    """How much each token matters: the norm of the gradient of its text's loss by the token's embedding.

    Args:
        network: in either mode.
        batch: B texts of length L.
        labels: (B,) int64 on the network's device.

    Returns:
        The (B, classes) logits of the texts, part of a graph that can be used again, and the (B, L) norms, without one.
        A text's norms depend on no other text.
    """
    seen: list[Tensor] = []

    def note(embedding: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append(output)

    hook = network.get_input_embeddings().register_forward_hook(note)
    try:
        logits = network(**batch.inputs).logits.float()
    finally:
        hook.remove()
    loss = F.cross_entropy(logits, labels, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, seen, retain_graph=True)
    return logits, gradient.norm(dim=2)


def spans(own: Tensor, other: Tensor, span_share: float) -> tuple[int, int, int]:
    """The span to replace and the span that replaces it.

    Args:
        own: (n,) saliencies of the tokens of one text, n at least 1.
        other: (m,) those of the other, m at least 1.
        span_share: share of the one text to replace.

    Returns:
        Where the span with the least sum starts in the one, where that with the largest starts in the other, and the
        length of both, max(min(int(span_share * n), m), 1). The first of equal ones.
    """
    length = max(min(int(span_share * len(own)), len(other)), 1)
    least = own.unfold(0, length, 1).sum(dim=1).argmin()
    most = other.unfold(0, length, 1).sum(dim=1).argmax()
    return int(least), int(most), length


def mix_spans(batch: TextBatch, salience: Tensor, partner: Tensor, span_share: float) -> tuple[Tensor, Tensor]:
    """Put a span of each text's partner into it; of pairs a span of the first into the first, and so the second.

    Args:
        batch: B texts of length L.
        salience: (B, L) on any device.
        partner: (B,) int64.
        span_share: share of a text that is replaced.

    Returns:
        (B, L) int64 input_ids on the batch's device, and the (B,) float32 share of each row's tokens, special ones not
        counted, that are the partner's. Where one of the two texts has no token, nothing is replaced.
    """
    before, salience = batch.inputs["input_ids"].cpu(), salience.cpu()
    ids, shares = before.clone(), torch.zeros(len(batch))
    for row, other in enumerate(partner.tolist()):
        replaced = 0
        for sentence in (0, 1):
            here, there = (torch.nonzero(batch.sentences[place] == sentence).flatten() for place in (row, other))
            if len(here) and len(there):
                start, source, length = spans(salience[row, here], salience[other, there], span_share)
                ids[row, here[start : start + length]] = before[other, there[source : source + length]]
                replaced += length
        shares[row] = replaced / max(int((batch.sentences[row] >= 0).sum()), 1)
    device = batch.inputs["input_ids"].device
    return ids.to(device), shares.to(device)


def ssmix_loss(network: Any, batch: TextBatch, labels: Tensor, step: int, *, span_share: float, seed: int) -> Tensor:
    """The mean of the loss of a batch and of the loss of its mixtures.

    A mixture's loss is that to the class of the text and to its partner's, by their shares of the tokens. The saliency
    comes from the same forward pass as the loss of the texts, dropout included.

    Args:
        network: in training mode.
        batch: B texts.
        labels: (B,) int64 on the network's device.
        step: global step; (seed, "ssmix", step) decides the partners.
        span_share: share of a text that is replaced.
        seed: model seed.
    """
    partner = partners(len(batch), numpy_generator(seed, "ssmix", step))
    logits, salience = saliency(network, batch, labels)
    ids, share = mix_spans(batch, salience, partner, span_share)
    mixed = network(**{**batch.inputs, "input_ids": ids}).logits
    others = labels[partner.to(labels.device)]
    return (F.cross_entropy(logits, labels) + mixed_cross_entropy(mixed, labels, others, 1 - share)) / 2
