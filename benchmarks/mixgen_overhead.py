"""MixGen: its time on a batch as a share of a CLIP training step, for the default and each variant of its Table 6.

    python -m benchmarks.mixgen_overhead [--rounds N]

A round times a training step (tokenising, forward and backward pass, AdamW) of an open_clip CLIP on a batch that is
mixed already, and right after it the mixing in place of such batches, of which the median counts. The paper names
0.4 % of the wall clock time, for ALBEF on 8 GPUs (Sec. 2).
"""

from __future__ import annotations

import statistics
import sys
import time

import torch
from open_clip.loss import ClipLoss
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from open_clip.tokenizer import SimpleTokenizer
from torch import Tensor

from mvc.mixgen import mixgen
from mvc.mixgen_plan import VARIANTS
from mvc.randomness import generator, numpy_generator, seeded_global
from mvc.tiny.evaluate import full_caption
from mvc.tiny.world import draw_character

from .results import Gate, Section, Table, finish, parser

ROUNDS, REPEATS, BATCH, SIDE = 9, 15, 64, 64
WIDTH, LAYERS, TOKENS = 192, 4, 77
MOST, AIM = 1.0, 0.4


class Training:
    """A CLIP of random weights, and its step."""

    def __init__(self) -> None:
        with seeded_global(0, "benchmark clip"):
            self.network = CLIP(
                WIDTH,
                CLIPVisionCfg(layers=LAYERS, width=WIDTH, head_width=64, patch_size=16, image_size=SIDE),
                CLIPTextCfg(context_length=TOKENS, width=WIDTH, heads=WIDTH // 64, layers=LAYERS),
            )
        self.tokenizer, self.loss = SimpleTokenizer(context_length=TOKENS), ClipLoss()
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-4)

    def step(self, images: Tensor, texts: list[str]) -> None:
        """Train on one batch."""
        loss = self.loss(*self.network(images, self.tokenizer(texts)))
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def batch(number: int) -> tuple[Tensor, list[str]]:
    """Noise, because speed does not depend on pixels, and captions of printed characters."""
    images = torch.randn((BATCH, 3, SIDE, SIDE), generator=generator(0, "benchmark images", number))
    return images, [full_caption(draw_character(number, index)) for index in range(BATCH)]


def mixing_seconds(variant: str, images: Tensor, texts: list[str]) -> float:
    """Median seconds of mixing a batch in place, its plan and generator included."""
    spent = []
    for repeat in range(REPEATS):
        own, lines = images.clone(), list(texts)  # what was mixed once would be mixed again
        start = time.perf_counter()
        mixgen(own, lines, numpy_generator(0, "mixgen", repeat), variant=variant, in_place=True)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def tokenising_seconds(training: Training, texts: list[str]) -> float:
    """Median seconds of tokenising a batch."""
    spent = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        training.tokenizer(texts)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def measure(rounds: int) -> Section:
    """Time steps and mixing in turn."""
    torch.set_num_threads(1)
    training = Training()
    training.step(*batch(0))  # a warm-up that no round counts
    steps, longer, mixing = list[float](), list[float](), {variant: list[float]() for variant in VARIANTS}
    for number in range(1, rounds + 1):
        images, texts = batch(number)
        mixed = mixgen(images, texts, numpy_generator(0, "mixgen", number))
        start = time.perf_counter()
        training.step(*mixed)
        steps.append(time.perf_counter() - start)
        extra = tokenising_seconds(training, mixed[1]) - tokenising_seconds(training, texts)
        longer.append(100 * extra / steps[-1])
        for variant in VARIANTS:
            mixing[variant].append(mixing_seconds(variant, images, texts))
    shares = {name: [100 * one / step for one, step in zip(mixing[name], steps, strict=True)] for name in VARIANTS}
    rows = [
        (name, f"{1e3 * statistics.median(mixing[name]):.2f}", f"{statistics.median(shares[name]):.3f} %")
        for name in VARIANTS
    ]
    parameters = sum(one.numel() for one in training.network.parameters())
    return Section(
        title="MixGen",
        how=f"Mixing a quarter of {BATCH} pairs at {SIDE} px in place, drawing the plan included, as a share of a "
        f"training step of an open_clip CLIP of {parameters / 1e6:.1f} M parameters on that batch: tokenising, "
        f"forward, backward, AdamW; float32, {rounds} rounds. A step took {statistics.median(steps):.2f} s.",
        tables=(Table(("variant", "mixing, ms", "of a step"), tuple(rows)),),
        notes=(
            f"The default's share was between {min(shares['default']):.3f} and {max(shares['default']):.3f} %. "
            f"That its texts are longer costs {statistics.median(longer):.3f} % more when they are tokenised.",
        ),
        gates=(
            Gate("MixGen of a training step", statistics.median(shares["default"]), high=MOST, aim_high=AIM, unit=" %"),
        ),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
