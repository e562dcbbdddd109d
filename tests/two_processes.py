"""Two processes of one group, for tests of what has to be the same as in one."""

from __future__ import annotations

import multiprocessing
import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

Work = Callable[[int, int, Path], None]
"""What each process does with its rank, the port of the group and the folder that both write to."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def in_two_processes(work: Work, folder: Path) -> None:
    """Do a module's function in two new processes of one thread each; what failed in one is said by the assertion."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    both = [context.Process(target=_process, args=(work, rank, port, folder)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
        process.kill()
        process.join()
    said = "\n".join(path.read_text() for path in sorted(folder.glob("failure-*.txt")))
    assert [process.exitcode for process in both] == [0, 0], said


def _process(work: Work, rank: int, port: int, folder: Path) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    try:
        work(rank, port, folder)
    except BaseException:
        (folder / f"failure-{rank}.txt").write_text(traceback.format_exc())
        raise
