"""Peak memory of the same training steps as train_step.py, each side in a fresh process.

The cached side encodes, then lets go of VAE and text encoder before the UNet is made, as the train stage does.
"""

from __future__ import annotations

import gc
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

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

ROUNDS, STEPS, BATCH, SIDE, IMAGES = 3, 3, 8, 128, 24
SIDES = ("reference", "cached")
CPU = torch.device("cpu")
FROZEN_BYTES = 4 * (83.7e6 + 123.1e6)
"""Of Stable Diffusion 1.5's VAE and text encoder in float32."""
ROOT = Path(__file__).resolve().parent.parent


def peak_bytes() -> int:
    """Largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would also count what the parent held before it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def run_side(side: str) -> dict[str, int]:
    """Train a few steps; bytes resident after the imports and at the peak."""
    torch.set_num_threads(1)
    # An optimiser's first step imports more of torch.
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.AdamW([weight]).step()
    before = peak_bytes()
    frozen: Any = new_frozen(RATIO_SHAPE, CPU)
    data: Any = new_data(RATIO_SHAPE, IMAGES, SIDE)
    losses = (encoding_losses if side == "reference" else cached_losses)(frozen, data, CPU)
    frozen = data = None
    gc.collect()
    unet = new_unet(RATIO_SHAPE, CPU)
    updates = reference_updates(unet) if side == "reference" else own_updates(unet, CPU)
    step = Step(unet, list(unet.parameters()), losses, *updates)
    for number in range(STEPS):
        step(range(number * BATCH, (number + 1) * BATCH), Clock())
    return {"before": before, "peak": peak_bytes()}


def in_fresh_process(side: str) -> dict[str, int]:
    """`run_side` in a process that has done nothing else."""
    code = f"import json; from benchmarks.train_memory import run_side; print(json.dumps(run_side({side!r})))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(rounds: int) -> Section:
    """Both sides in turn, the medians of their peaks."""
    found = [{side: in_fresh_process(side) for side in SIDES} for _ in range(rounds)]
    mib = {
        side: [statistics.median(one[side][key] for one in found) / 2**20 for key in ("before", "peak")]
        for side in SIDES
    }
    rows = tuple((side, *(f"{value:.0f}" for value in (*mib[side], mib[side][1] - mib[side][0]))) for side in SIDES)
    ratio = statistics.median(
        (one["cached"]["peak"] - one["cached"]["before"]) / (one["reference"]["peak"] - one["reference"]["before"])
        for one in found
    )
    return Section(
        title="Memory of training",
        how=f"Peak resident memory of {STEPS} steps of {BATCH} at {SIDE} px, each side in a fresh process, {rounds} "
        "times. The models are those of the training step; VAE and text encoder hold the same share of the parameters "
        "as in Stable Diffusion 1.5 (0.09 and 0.14 times the UNet's).",
        tables=(Table(("MiB", "after the imports", "peak", "difference"), rows),),
        notes=(
            f"In Stable Diffusion 1.5 the weights that need not be held are {FROZEN_BYTES / 2**30:.2f} GiB in float32 "
            "(by the number of parameters, not measured).",
        ),
        gates=(Gate("peak of the cached side, times the reference's (imports left out)", ratio, high=1.0),),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
