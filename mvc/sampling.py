"""Sampling words from a language model so that a text depends on its own seed and on nothing else of its batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

from mvc.randomness import generator


class SeededSampling(LogitsProcessor):
    """Makes transformers' greedy decoding a sampling, each row by a generator of its own.

    The largest of logits / temperature + Gumbel noise is distributed as a draw from their softmax (Gumbel 1954), so
    that an argmax samples exactly. `generate(do_sample=True)` would draw from one global state for the whole batch.

    Args:
        seeds: of each row; randomness from (seed, "next token"). The noise of a step is drawn for the whole
            vocabulary, on the CPU.
        temperature: above 0; 1 samples as the model says, less is surer.
        top_p: the smallest set of tokens with this much probability is sampled from, in (0, 1].
    """

    def __init__(self, seeds: Sequence[int], temperature: float = 1.0, top_p: float = 1.0) -> None:
        self._generators = [generator(seed, "next token") for seed in seeds]
        self._temperature, self._top_p = temperature, top_p

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Scores of (rows, vocabulary) whose largest is the token that was drawn."""
        logits = scores.float() / self._temperature
        if self._top_p < 1.0:
            logits = _within_nucleus(logits, self._top_p)
        noise = torch.stack([gumbel_noise(logits.shape[1], one) for one in self._generators])
        return logits + noise.to(logits.device)


def gumbel_noise(count: int, source: torch.Generator) -> Tensor:
    """(count,) float32 of the standard Gumbel law, -log(-log(u)).

    Args:
        count: how many.
        source: CPU generator that they are drawn from.
    """
    # An exponential draw is -log(u); it is never 0 but by rounding, whose logarithm would be infinite.
    exponential = torch.empty(count).exponential_(generator=source).clamp_min(torch.finfo(torch.float32).tiny)
    return -exponential.log()


def _within_nucleus(logits: Tensor, top_p: float) -> Tensor:
    """Logits with -inf for all tokens outside the smallest set of probability `top_p` (Holtzman et al. 2020)."""
    ordered, places = logits.sort(dim=1, descending=True)
    before = ordered.softmax(dim=1).cumsum(dim=1) - ordered.softmax(dim=1)
    # The most likely token always stays: before it there is no probability.
    outside = torch.zeros_like(logits, dtype=torch.bool).scatter(1, places, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)
