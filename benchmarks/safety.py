"""What it costs that checkpoints and logs survive kills and power cuts, as a share of the training time.

A checkpoint is flushed to disk, digested and published whole; the reference writes the same tensors with safetensors
and no more. Rows of the log are flushed to disk; the reference only appends them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from mvc.config import TrainSection
from mvc.storage import append_json_lines
from mvc.train.checkpoints import TrainingState, save_checkpoint
from mvc.train.log import FLUSH_SECONDS, FLUSH_STEPS
from mvc.train.optimizers import optimizer_tensors

from .results import Gate, Section, Table, finish, parser
from .train_step import BATCH, both_steps, timed

ROUNDS, LARGEST_SHARE = 7, 0.03
REAL_BYTES = 4 * 4 * 859.5e6
"""UNet, average and two moments of Stable Diffusion 1.5, float32."""
BUILD = Path(__file__).resolve().parent.parent / "build"


def seconds(work: Callable[[], object]) -> float:
    """Seconds of one call, begun with nothing left to be written by those before."""
    os.sync()
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def training_state() -> tuple[TrainingState, float]:
    """A real state of the benchmark's UNet after some steps, and the seconds of such a step."""
    _, step = both_steps()
    times = [timed(step, number)[1] for number in range(6)]
    unet: Any = step.model
    names = [name for name, _ in unet.named_parameters()]
    weights = unet.state_dict()
    average = {name: value.detach().clone() for name, value in unet.named_parameters()}
    state = TrainingState(1, weights, average, 6, optimizer_tensors(step.optimizer, names), {})
    return state, statistics.median(times[1:])


def write_plainly(folder: Path, state: TrainingState) -> None:
    """The tensors of a checkpoint as safetensors files, no more."""
    folder.mkdir()
    for name, tensors in (("unet", state.unet), ("ema", state.ema), ("optimizer", state.optimizer)):
        save_file({key: value.detach().contiguous() for key, value in tensors.items()}, folder / f"{name}.safetensors")


def append_plainly(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows of JSON at the end of a file, left to the system to write when it likes."""
    with open(path, "a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_in_turn(folder: Path, state: TrainingState, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way to write a checkpoint, and of each way to write the rows of a flush."""
    rows = [{"step": number, "loss": 0.1, "learning_rate": 1e-4, "seconds": 0.5} for number in range(FLUSH_STEPS)]
    settings = {"run.seed": 0}
    ways: dict[str, Callable[[], object]] = {
        "plain": lambda: write_plainly(folder / "plain", state),
        "safe": lambda: save_checkpoint(folder / "safe", state, settings, 2),
        "plain rows": lambda: append_plainly(folder / "plain.jsonl", rows),
        "safe rows": lambda: append_json_lines(folder / "safe.jsonl", rows),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, work in ways.items():
            found[name].append(seconds(work))
        shutil.rmtree(folder / "plain")
        shutil.rmtree(folder / "safe")
    return {name: times[1:] for name, times in found.items()}


def share_of_training(checkpoint: float, rows: float, interval: int, step: float) -> float:
    """Share of the time of `interval` steps that safety adds.

    Args:
        checkpoint: seconds that a checkpoint costs more than a plain one.
        rows: seconds that a flush of the log costs more than a plain one.
        interval: steps between two checkpoints.
        step: seconds of a step.
    """
    flushes = max(interval / FLUSH_STEPS, interval * step / FLUSH_SECONDS)
    share: float = (checkpoint + rows * flushes) / (interval * step)
    return share


def measure(rounds: int) -> Section:
    """Write both ways in turn, and relate the difference to the time of the steps in between."""
    torch.set_num_threads(1)
    state, step = training_state()
    # A temporary folder may lie in memory, where flushing costs nothing; this one lies where runs do.
    BUILD.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as name:
        found = write_in_turn(Path(name), state, rounds)
    plain, safe, plain_rows, safe_rows = (statistics.median(times) for times in found.values())
    extra = statistics.median(a - b for a, b in zip(found["safe"], found["plain"], strict=True))
    extra_rows = statistics.median(a - b for a, b in zip(found["safe rows"], found["plain rows"], strict=True))
    parts = (state.unet, state.ema, state.optimizer)
    size = sum(value.numel() * value.element_size() for part in parts for value in part.values())
    interval = int(TrainSection().checkpointing_steps)
    share = share_of_training(extra, extra_rows, interval, step)
    factor = REAL_BYTES / size
    rows = (
        ("checkpoint", f"{size / 1e6:.0f} MB", f"{plain:.3f}", f"{safe:.3f}", f"{extra:.3f}"),
        (f"{FLUSH_STEPS} rows of the log", "", f"{plain_rows:.5f}", f"{safe_rows:.5f}", f"{extra_rows:.5f}"),
        (
            "checkpoint of SD 1.5, computed from the first row",
            f"{REAL_BYTES / 1e9:.1f} GB",
            f"{plain * factor:.1f}",
            f"{safe * factor:.1f}",
            f"{extra * factor:.1f}",
        ),
    )
    return Section(
        title="Cost of safety",
        how="`save_checkpoint` (finite check, safetensors, flush to disk, sha256, rename) against the same files "
        f"written by safetensors alone, and rows of the log with and without a flush to disk, in turn, {rounds} "
        "rounds. The UNet is that of the training step, with its average and both moments.",
        tables=(Table(("what", "size", "plain, s", "safe, s", "difference, s"), rows),),
        notes=(
            f"Steps of {BATCH} samples take {step:.3f} s here; a checkpoint comes after {interval} by default.",
            f"At full size the difference stays below {LARGEST_SHARE:.0%} where {interval} steps take "
            f"{extra * factor / LARGEST_SHARE / 60:.0f} minutes or more, "
            f"{extra * factor / LARGEST_SHARE / interval:.1f} s each. On an accelerator a thread writes while "
            f"training goes on, so that only the copy to the host is waited for. This disk writes "
            f"{size / safe / 1e6:.0f} MB/s safely.",
        ),
        gates=(Gate("share of the training time", 100 * share, high=100 * LARGEST_SHARE, unit=" %"),),
    )


def main() -> int:
    """Measure, print, and return the exit code."""
    options = parser(__doc__, ROUNDS).parse_args()
    return finish(measure(options.rounds), options)


if __name__ == "__main__":
    sys.exit(main())
