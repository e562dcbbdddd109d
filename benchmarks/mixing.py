"""MVC: Algorithm 1 row by row in torch against a plan and a batched gather; also the cost of a large plan.

Both sides draw their own integers and fill batches of 64
embeddings; the batched side must also rebuild the other side's rows to the bit from their records.
"""

from __future__ import annotations

import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import torch

from mvc.mixing import MixingPlan, apply_plan, draw_plan
from mvc.randomness import generator

from .results import Gate, Section, Table, finish, parser

ROUNDS, IMAGES, BATCH, CAPTIONS = 7, 2000, 64, 30
COARSE, FINE = 2, 8
SIZES = ((77, 64), (77, 768))
LEAST_RATIO, AIM, PLAN_SECONDS, PLAN_MIB = 3.0, 4.0, 0.5, 100.0


def row_by_row(embeddings: torch.Tensor, first: int, images: int) -> tuple[torch.Tensor, list[dict[str, Any]]]:
    """A plain torch loop over Algorithm 1, one draw and one slice at a time."""
    captions, rows, columns = embeddings.shape
    source = generator(0, "benchmark rows", first)

    def below(bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=source))

    def other(base: int) -> int:
        drawn = below(captions - 1)
        return drawn + (drawn >= base)

    def pair(size: int) -> tuple[int, int]:
        while True:
            low, high = below(size) + 1, below(size) + 1
            if low < high:
                return low, high

    mixed, recipes = torch.empty(images, rows, columns), []
    for number in range(images):
        base = below(captions)
        mixed[number] = embeddings[base]
        coarse, fine = [], []
        for _ in range(COARSE):
            partner, (r, s) = other(base), pair(rows)
            mixed[number, r - 1 : s] = embeddings[partner, r - 1 : s]
            coarse.append([partner, r, s])
        for _ in range(FINE):
            partner, w, (u, v) = other(base), below(rows) + 1, pair(columns)
            mixed[number, w - 1, u - 1 : v] = embeddings[partner, w - 1, u - 1 : v]
            fine.append([partner, w, u, v])
        recipes.append({"base": base, "coarse": coarse, "fine": fine})
    return mixed, recipes


def batched(embeddings: torch.Tensor, first: int, images: int) -> torch.Tensor:
    """The project's way."""
    captions, rows, columns = embeddings.shape
    indices = range(first, first + images)
    return apply_plan(draw_plan(0, "class", indices, captions, rows, columns, COARSE, FINE), embeddings)


def seconds(mix: Callable[[torch.Tensor, int, int], object], embeddings: torch.Tensor) -> float:
    start = time.perf_counter()
    for first in range(0, IMAGES, BATCH):
        mix(embeddings, first, min(BATCH, IMAGES - first))
    return time.perf_counter() - start


def times(rows: int, columns: int, rounds: int) -> list[tuple[float, float]]:
    """Seconds row by row and batched, in turn."""
    embeddings = torch.randn((CAPTIONS, rows, columns), generator=generator(0, "benchmark embeddings"))
    mixed, recipes = row_by_row(embeddings, 0, BATCH)
    if not torch.equal(apply_plan(MixingPlan.from_rows(recipes), embeddings), mixed):
        sys.exit("mixing: the batched rows differ from the row-by-row ones")
    batched(embeddings, 0, BATCH)
    return [(seconds(row_by_row, embeddings), seconds(batched, embeddings)) for _ in range(rounds)]


def large_plan(rounds: int) -> tuple[float, float]:
    """Median seconds and peak MiB of drawing 100,000 plans."""

    def draw() -> MixingPlan:
        return draw_plan(0, "class", range(100_000), CAPTIONS, 77, 768, COARSE, FINE)

    spent = []
    for _ in range(rounds):
        start = time.perf_counter()
        draw()
        spent.append(time.perf_counter() - start)
    tracemalloc.start()
    draw()
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return statistics.median(spent), peak


def measure(rounds: int) -> Section:
    """Both ways in turn at two sizes, and the cost of a large plan."""
    torch.set_num_threads(1)
    duration, peak = large_plan(rounds)
    rows, gates = [], []
    for size in SIZES:
        name = f"{size[0]} x {size[1]}"
        found = times(*size, rounds)
        slow, fast = (1e6 * statistics.median(column) / IMAGES for column in zip(*found, strict=True))
        ratio = statistics.median(one / other for one, other in found)
        rows.append((name, f"{slow:.0f}", f"{fast:.0f}", f"{ratio:.1f}"))
        gates.append(Gate(f"batched mixing at {name}, times as fast", ratio, low=LEAST_RATIO, aim_low=AIM))
    return Section(
        title="Mixing",
        how=f"Algorithm 1 row by row in torch against a plan and a batched gather: {IMAGES} embeddings in batches of "
        f"{BATCH} from {CAPTIONS} captions, {COARSE} coarse and {FINE} fine replacements each, {rounds} rounds. The "
        "batched side must rebuild the other's rows to the bit from their records.",
        tables=(Table(("embedding", "row by row, us", "batched, us", "ratio"), tuple(rows)),),
        gates=(
            *gates,
            Gate("plan of 100,000 embeddings", duration, high=PLAN_SECONDS, unit=" s"),
            Gate("its peak memory", peak, high=PLAN_MIB, unit=" MiB"),
        ),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
