"""Sampling by Gumbel noise: it follows the softmax, keeps to the nucleus, and each row stands for itself."""

from __future__ import annotations

import math

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessorList

from mvc.randomness import generator, seeded_global
from mvc.sampling import SeededSampling, gumbel_noise

LOGITS = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0])
NONE = torch.empty(0, 0, dtype=torch.int64)


def drawn(count: int, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """Shares with which each of five tokens is drawn, by rows of different seeds."""
    sampling = SeededSampling(range(count), temperature, top_p)
    tokens = sampling(NONE, LOGITS.repeat(count, 1)).argmax(dim=1)
    return torch.bincount(tokens, minlength=5) / count


def test_gumbel_noise_has_its_mean_and_variance() -> None:
    noise = gumbel_noise(200_000, generator(0, "noise")).double()
    assert noise.mean().item() == pytest.approx(0.5772156649, abs=0.012)  # four standard errors
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.04)
    assert bool(noise.isfinite().all())


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_the_softmax_says(temperature: float) -> None:
    expected = (LOGITS / temperature).softmax(0)
    error = 4 * (expected * (1 - expected) / 20_000).sqrt()
    assert bool(((drawn(20_000, temperature) - expected).abs() < error).all())


def test_the_nucleus_is_the_smallest_set_of_enough_probability() -> None:
    probabilities = LOGITS.softmax(0)  # 0.56, 0.21, 0.12, 0.08, 0.03
    inside = probabilities[:2].sum()
    shares = drawn(20_000, top_p=float(inside) - 1e-3)
    assert shares[2:].sum() == 0
    assert shares[0].item() == pytest.approx(float(probabilities[0] / inside), abs=0.013)
    assert drawn(2_000, top_p=float(inside) + 1e-3)[2] > 0
    assert drawn(500, top_p=1e-6)[0] == 1  # the likeliest always stays


def test_a_text_does_not_depend_on_its_batch() -> None:
    with seeded_global(0, "test language model"):
        model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()

    def texts(seeds: list[int]) -> list[list[int]]:
        start = torch.tensor([[7, 8, 9]]).repeat(len(seeds), 1)
        with torch.no_grad():
            tokens = model.generate(
                input_ids=start,
                attention_mask=torch.ones_like(start),
                max_new_tokens=8,
                do_sample=False,
                pad_token_id=0,
                eos_token_id=None,
                logits_processor=LogitsProcessorList([SeededSampling(seeds, 1.0, 0.9)]),
            )
        return [list(map(int, row)) for row in tokens]

    together = texts([11, 12, 13])
    assert together == [texts([seed])[0] for seed in (11, 12, 13)] == texts([13, 12, 11])[::-1]
    assert len({tuple(row) for row in together}) == 3
