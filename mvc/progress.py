"""Progress of long work: a bar with rate and time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_SECONDS = 10.0
"""Seconds between two plain lines where there is no terminal."""


class Meter:
    """Counts units of work and shows them.

    Args:
        label: what is being done.
        total: units in all.
        unit: plural name of a unit, such as "images".
        done: units that were finished before, for resumed work; not counted in the rate.
        stream: where to write.
    """

    def __init__(self, label: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None) -> None:
        self.label, self.total, self.unit, self.done, self._first = label, total, unit, done, done
        self._stream = stream or sys.stderr
        self._start = self._last = time.monotonic()
        self._bar: Progress | None = None
        console = Console(file=self._stream)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
                console=console,
            )
            self._task = self._bar.add_task(label, total=total, completed=done, rate="", note="")
            self._bar.start()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._start

    @property
    def rate(self) -> float:
        """Units per second since the start."""
        return (self.done - self._first) / max(time.monotonic() - self._start, 1e-9)

    def advance(self, units: int = 1, note: str = "") -> None:
        """Count `units` as done and show `note` beside them."""
        self.done += units
        if self._bar is not None:
            rate = f"{self.rate:.1f} {self.unit}/s"
            self._bar.update(self._task, completed=self.done, rate=rate, note=note)
        elif time.monotonic() - self._last >= PLAIN_SECONDS:
            self._last = time.monotonic()
            self._line(note)

    def _line(self, note: str) -> None:
        text = f"{self.label}: {self.done}/{self.total} {self.unit}"
        if self.rate > 0:
            text += f", {self.rate:.1f}/s, {(self.total - self.done) / self.rate:.0f} s left"
        print(f"{text}{', ' + note if note else ''}", file=self._stream, flush=True)

    def close(self, note: str = "") -> None:
        """Stop showing; prints one last plain line with the time taken."""
        if self._bar is not None:
            self._bar.stop()
        seconds = time.monotonic() - self._start
        text = f"{self.label}: {self.done}/{self.total} {self.unit} in {seconds:.1f} s"
        print(f"{text}{', ' + note if note else ''}", file=self._stream, flush=True)


@contextmanager
def meter(label: str, total: int, unit: str, done: int = 0, stream: TextIO | None = None) -> Iterator[Meter]:
    """Show the progress of a block of work; yields the `Meter` to advance."""
    shown = Meter(label, total, unit, done, stream)
    try:
        yield shown
    finally:
        shown.close()


def say(text: str) -> None:
    """Print one line for the user, apart from the results that go to standard output."""
    print(text, file=sys.stderr, flush=True)
