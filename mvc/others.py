"""A stage that several processes of one command do together, without collective calls: who is there, who failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from mvc import processes
from mvc.error_facts import error_of
from mvc.errors import EnvironmentFault, Stopped
from mvc.progress import say

_BEAT, SILENCE = 5.0, 120.0
"""Seconds between two signs of life, and without one after which a process counts as gone."""


@contextmanager
def beating() -> Iterator[None]:
    """Any process but 0: give signs of life inside the block."""
    ended = threading.Event()

    def beat() -> None:
        # Without a store there is nobody to hear.
        with suppress(RuntimeError):
            while True:
                processes.count(f"beat/{processes.rank()}", 1)
                if ended.wait(_BEAT):
                    return

    threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class Others:
    """What process 0 knows of the processes that are in a stage with it; none where there is one process."""

    def __init__(self) -> None:
        self._beats = {number: (-1, time.monotonic()) for number in range(1, processes.size())}

    def check(self) -> None:
        """Look whether all are well.

        Raises:
            MvcError: what one of them has met.
            EnvironmentFault: one failed in another way, or has given no sign of life for `SILENCE` seconds.
        """
        if not self._beats:
            return
        failed = processes.published("failed")
        if failed is not None:
            place = f"process {failed['rank']} of {processes.size()}"
            error = error_of(failed, place)
            if error is None:
                say(failed["what"])
            raise error or EnvironmentFault(f"{place} failed", why=str(failed["what"]).strip().splitlines()[-1])
        for number, (beat, when) in self._beats.items():
            now = processes.count(f"beat/{number}", 0)
            if now != beat:
                self._beats[number] = (now, time.monotonic())
            elif time.monotonic() - when > SILENCE:
                raise EnvironmentFault(
                    f"process {number} of {processes.size()} has given no sign of life for {SILENCE:.0f} s",
                    why="it was killed, or its machine cannot be reached",
                    do="run the same command again; finished images are kept",
                )


def require_first() -> None:
    """Any process but 0, in a stage: leave once process 0 has ended.

    Raises:
        Stopped: it has; what it said of why is not repeated.
        DistError: the store is gone, and process 0 with it.
    """
    if processes.published("ended") is not None:
        raise Stopped("process 0 has ended")
