"""Fine-tuning: the body of diffusers' train_instruct_pix2pix.py against the cached step, and where the time goes."""

from __future__ import annotations

import statistics
import sys
import time

import torch

from .results import Gate, Section, Table, finish, parser
from .steps import (
    RATIO_SHAPE,
    Clock,
    Step,
    cached_losses,
    encoding_losses,
    new_data,
    new_frozen,
    new_unet,
    own_updates,
    reference_updates,
)

ROUNDS, BATCH, SIDE, IMAGES = 9, 8, 128, 24
LEAST_RATIO, LARGEST_DIFFERENCE = 1.35, 1e-4
CPU = torch.device("cpu")


def both_steps(images: int = IMAGES, side: int = SIDE) -> tuple[Step, Step]:
    """The reference's step and ours, on equal weights and data."""
    frozen, data = new_frozen(RATIO_SHAPE, CPU), new_data(RATIO_SHAPE, images, side)
    first, second = new_unet(RATIO_SHAPE, CPU), new_unet(RATIO_SHAPE, CPU)
    reference = Step(first, list(first.parameters()), encoding_losses(frozen, data, CPU), *reference_updates(first))
    cached = Step(second, list(second.parameters()), cached_losses(frozen, data, CPU), *own_updates(second, CPU))
    return reference, cached


def timed(step: Step, number: int, batch: int = BATCH) -> tuple[float, float, dict[str, float]]:
    """Loss, seconds and seconds by part of step `number`."""
    clock, start = Clock(), time.perf_counter()
    loss = float(step(range(number * batch, (number + 1) * batch), clock))
    return loss, time.perf_counter() - start, clock.parts


def parts_table(slow: list[dict[str, float]], fast: list[dict[str, float]]) -> Table:
    """Median milliseconds of each part on both sides, and its share of the reference's step."""
    names = list(slow[0])
    medians = [{name: statistics.median(row.get(name, 0.0) for row in rows) for name in names} for rows in (slow, fast)]
    whole = sum(medians[0].values())
    rows = [
        (name, f"{1e3 * medians[0][name]:.1f}", f"{medians[0][name] / whole:.1%}", f"{1e3 * medians[1][name]:.1f}")
        for name in names
    ]
    total = ("whole step", f"{1e3 * whole:.1f}", "100.0%", f"{1e3 * sum(medians[1].values()):.1f}")
    return Table(("part, ms", "encoding in the loop", "share", "cached"), (*rows, total))


def measure(rounds: int) -> Section:
    """Time both steps in turn and by part; their losses have to stay equal."""
    torch.set_num_threads(1)
    reference, cached = both_steps()
    # The first step is a warm-up that no round counts.
    differences = [abs(timed(reference, 0)[0] / timed(cached, 0)[0] - 1.0)]
    slow, fast = [], []
    for number in range(1, rounds + 1):
        slow.append(timed(reference, number))
        fast.append(timed(cached, number))
        differences.append(abs(slow[-1][0] / fast[-1][0] - 1.0))
    ratio = statistics.median(one[1] / other[1] for one, other in zip(slow, fast, strict=True))
    ratios = sorted(one[1] / other[1] for one, other in zip(slow, fast, strict=True))
    return Section(
        title="Training step",
        how="The body of diffusers' `train_instruct_pix2pix.py` (two VAE encodings, text, empty text, UNet, clipping, "
        "AdamW, EMA) against the step on cached moments and embeddings. The models are small, but keep Stable "
        "Diffusion 1.5's ratio: encodings cost 0.92 of the UNet's forward and backward pass (there 0.93). "
        f"Batch {BATCH} at {SIDE} px, float32, {rounds} rounds.",
        tables=(parts_table([row[2] for row in slow], [row[2] for row in fast]),),
        notes=(f"The ratio was between {ratios[0]:.2f} and {ratios[-1]:.2f} in single rounds.",),
        gates=(
            Gate("cached step, times as fast", ratio, low=LEAST_RATIO),
            Gate("largest relative difference of the losses", max(differences), high=LARGEST_DIFFERENCE),
        ),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
