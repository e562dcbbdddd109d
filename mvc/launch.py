"""`--num-processes N`: the same command N times on this machine, ended together."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType

from mvc.errors import EnvironmentFault, Stopped
from mvc.processes import LAUNCHED

_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", LAUNCHED)
"""What tells a process that it is one of a launcher's."""
_POLL = 0.1

GRACE = 15.0
"""Seconds that the others have to end by themselves, with their own words, once one has failed."""

_KILL = 5.0
"""Seconds between asking them to stop and ending them."""


def launch(number: int, arguments: Sequence[str]) -> int:
    """Run `mvc` with these arguments in several processes and wait for them.

    SIGTERM and SIGINT go on to all of them; each then saves and leaves. If one fails, the others are ended.

    Args:
        number: of processes, at least 2.
        arguments: of the command, as process 0 and all others get them.

    Returns:
        exit code of process 0.

    Raises:
        EnvironmentFault: process 0 was ended by a signal, so that it could not say why.
        Stopped: a signal came before it had begun anything.
    """
    command = [sys.executable, "-m", "mvc", *arguments]
    port = _free_port()
    children: list[subprocess.Popen[bytes]] = []
    with _forwarding(children) as signals:
        try:
            for rank in range(number):
                # A session of their own, because a terminal sends Ctrl-C to a whole group, and we forward it. What they
                # read is a pipe that nobody writes to: it ends with us, even when we are killed.
                child = subprocess.Popen(
                    command, env=_environment(rank, number, port), stdin=subprocess.PIPE, start_new_session=True
                )
                children.append(child)
            _wait(children)
        finally:
            _end(children)
    return _outcome(children, signals)


def share_of_cores(number: int) -> int:
    """Cores for each of so many processes that compute on this machine at once, at least one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // number)


def environment_of_workers(number: int) -> dict[str, str]:
    """The environment of each of so many processes that compute on this machine and belong to no launcher."""
    own = {name: value for name, value in os.environ.items() if name not in _PLACE}
    return {"OMP_NUM_THREADS": str(share_of_cores(number)), **own}


def _environment(rank: int, number: int, port: int) -> Mapping[str, str]:
    """What torch and accelerate read to find their place; names are those of torchrun."""
    defaults = {"OMP_NUM_THREADS": str(share_of_cores(number))}
    # gloo otherwise looks up this machine's name, which need not lead anywhere.
    loopback = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    if loopback:
        defaults["GLOO_SOCKET_IFNAME"] = loopback[0]
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": number,
        "LOCAL_WORLD_SIZE": number,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        LAUNCHED: 1,
    }
    return {**defaults, **os.environ, **{name: str(value) for name, value in place.items()}}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _forwarding(children: list[subprocess.Popen[bytes]]) -> Iterator[list[int]]:
    """Send SIGTERM and SIGINT on to the processes inside the block; yields the list of those that came."""
    signals: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        signals.append(number)
        for child in children:
            child.send_signal(number)  # does nothing once the process has ended and was waited for

    before = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """Return when all have ended, or some time after one failed; at once when process 0 was ended by a signal."""
    failed_at: float | None = None
    while any(child.poll() is None for child in children) and (children[0].returncode or 0) >= 0:
        if failed_at is None and any(child.returncode for child in children):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > GRACE:
            return
        time.sleep(_POLL)


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    end = time.monotonic() + _KILL
    for child in children:
        try:
            child.wait(max(end - time.monotonic(), 0.0))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _outcome(children: Sequence[subprocess.Popen[bytes]], signals: Sequence[int]) -> int:
    code = children[0].returncode
    if code >= 0:
        return code
    if signals:
        raise Stopped(f"stopped by signal {signals[0]}", do="run the same command again to go on")
    failed = [(rank, child.returncode) for rank, child in enumerate(children) if rank and child.returncode]
    more = f"; process {failed[0][0]} had ended with code {failed[0][1]}" if failed else ""
    raise EnvironmentFault(
        f"process 0 of {len(children)} was ended by signal {-code}{more}",
        why="someone ended it, memory ran out, or another process failed and it could not notice",
        do="run the same command again; it goes on from the last checkpoint",
    )
