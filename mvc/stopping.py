"""SIGTERM and Ctrl-C ask for a stop; loops look at the flag, save, and leave with exit code 143."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from mvc.errors import Stopped


class StopFlag:
    """Set by the first signal; the second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def check(self, saved: str) -> None:
        """Leave if a stop was asked for.

        Args:
            saved: what is safe on disk, for the message.

        Raises:
            Stopped: a signal came; exit code 143.
        """
        if self:
            raise Stopped(f"stopped by signal {self.signal}; {saved}", do="run the same command again to go on")


flag = StopFlag()
"""The process's flag: a signal is a property of the process, so this is the one global of the project."""


@contextmanager
def watching() -> Iterator[StopFlag]:
    """Catch SIGTERM and SIGINT inside the block; the former handlers come back afterwards."""

    def note(number: int, frame: FrameType | None) -> None:
        if flag.signal is not None:
            raise KeyboardInterrupt
        flag.signal = number

    flag.signal = None
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        flag.signal = None
