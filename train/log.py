"""The training log: numbers stay on the device for some steps, then become rows of run/logs/train.jsonl."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from mvc.errors import EnvironmentFault
from mvc.progress import say
from mvc.storage import append_json_lines, read_json_lines, write_json_lines

LOG = "logs/train.jsonl"
"""Below the run folder: one row a step."""
VALIDATION_LOG = "logs/validation.jsonl"
"""Below the run folder: one row each time the validation loss was computed."""

FLUSH_STEPS, FLUSH_SECONDS = 25, 2.0
"""Numbers stay on the device for so long: reading one makes the device wait."""


@dataclass(frozen=True)
class _Pending:
    """One step whose numbers are still on the device: `numbers` are loss, bin sums and bin counts of this process."""

    row: dict[str, Any]
    numbers: Tensor
    skipped: Tensor


class TrainingLog:
    """Rows of steps, written a few at a time.

    Args:
        run: the run folder.
        accelerator: its main process writes; losses of all processes are added up.
        step: the step that training goes on from; later rows are dropped, for they are done again.
        track: also gets every row.
    """

    def __init__(
        self, run: Path, accelerator: Accelerator, step: int, track: Callable[[Mapping[str, float], int], None] | None
    ) -> None:
        self.run, self._accelerator, self._track = run, accelerator, track
        self._pending: list[_Pending] = []
        self._flushed = time.monotonic()
        self._interval = 1
        self._unwritten: dict[str, list[dict[str, Any]]] = {}
        self.losses: list[float] = []
        if accelerator.is_main_process:
            self.losses = [_number(row["loss"]) for row in _cut(run / LOG, step)]
            _cut(run / VALIDATION_LOG, step or -1)  # the look before the first step is done again too

    def add(self, row: dict[str, Any], loss: Tensor, bins: Tensor, skipped: Tensor) -> None:
        """Take a step.

        Args:
            row: what is known without the device.
            loss: () this process's share of the mean loss.
            bins: (2, BINS) sums and numbers of losses by timestep.
            skipped: () bool, the weights were not changed.
        """
        self._pending.append(_Pending(row, torch.cat([loss.reshape(1), bins.flatten()]), skipped))

    def due(self) -> bool:
        """Whether it is time to write; the same on all processes."""
        if self._accelerator.num_processes > 1:
            return len(self._pending) >= self._interval
        return len(self._pending) >= FLUSH_STEPS or time.monotonic() - self._flushed >= FLUSH_SECONDS

    def flush(self) -> list[dict[str, Any]]:
        """Write what is pending; returns its rows."""
        if not self._pending:
            return []
        numbers = torch.stack([step.numbers for step in self._pending])
        waited = numbers.new_full((len(numbers), 1), time.monotonic() - self._flushed)
        summed: Any = self._accelerator.reduce(torch.cat([numbers, waited], dim=1), "sum")
        self._interval = flush_interval(len(numbers), float(summed[0, -1]) / self._accelerator.num_processes)
        skipped = torch.stack([step.skipped for step in self._pending]).tolist()
        rows = [
            _row(step.row, found, one)
            for step, found, one in zip(self._pending, summed[:, :-1].tolist(), skipped, strict=True)
        ]
        self._pending, self._flushed = [], time.monotonic()
        self.losses.extend(_number(row["loss"]) for row in rows)
        if self._accelerator.is_main_process:
            self._write(LOG, rows)
            for row in rows:
                self._report({key: row[key] for key in ("loss", "learning_rate") if row[key] is not None}, row["step"])
        return rows

    def validated(self, step: int, loss: float, on: str) -> None:
        """Write a validation loss and what images it was computed on."""
        if self._accelerator.is_main_process:
            kept = loss if math.isfinite(loss) else None
            self._write(VALIDATION_LOG, [{"step": step, "loss": kept, "on": on}])
            if kept is not None:
                self._report({"validation_loss": kept}, step)

    def _write(self, name: str, rows: list[dict[str, Any]]) -> None:
        """Append rows; those that a full disk refuses are kept and tried again with the next ones."""
        waiting = self._unwritten.setdefault(name, [])
        waiting.extend(rows)
        try:
            append_json_lines(self.run / name, waiting)
        except EnvironmentFault as error:
            say(f"fine-tuning: {error.what} ({error.why}); training goes on, and its log is tried again")
        else:
            waiting.clear()

    def close(self) -> None:
        """Write what could not be written before.

        Raises:
            EnvironmentFault: it still cannot be.
        """
        for name, rows in self._unwritten.items():
            if rows:
                append_json_lines(self.run / name, rows)

    def _report(self, values: Mapping[str, float], step: int) -> None:
        if self._track is not None:
            self._track(values, step)


def flush_interval(steps: int, seconds: float) -> int:
    """After how many steps several processes write and ask each other next, given how long the last ones took."""
    return max(1, min(FLUSH_STEPS, int(FLUSH_SECONDS * steps / max(seconds, 1e-6))))


def _row(row: dict[str, Any], numbers: list[float], skipped: bool) -> dict[str, Any]:
    loss, bins = numbers[0], (len(numbers) - 1) // 2
    sums, counts = numbers[1 : 1 + bins], numbers[1 + bins :]
    means = [one / count if count and math.isfinite(one) else None for one, count in zip(sums, counts, strict=True)]
    return {
        **row,
        "loss": loss if math.isfinite(loss) else None,
        "seconds": round(row["seconds"], 4),
        "skipped": skipped,
        "loss_by_timestep": [mean if mean is None else round(mean, 6) for mean in means],
    }


def _number(loss: float | None) -> float:
    return math.nan if loss is None else loss


def _cut(path: Path, step: int) -> list[dict[str, Any]]:
    """Drop the rows of steps that are done again; returns those that stay."""
    rows = [row for row in read_json_lines(path, torn_tail=True) if row["step"] <= step]
    if path.exists():
        write_json_lines(path, rows)
    return rows
