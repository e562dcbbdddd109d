"""The inside of a drill: the mvc command in a process that ends, stops or interrupts itself at a chosen call.

Nothing in the product knows of this; the calls are wrapped from outside. The signals and the limits are real ones.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from pkgutil import resolve_name
from typing import Any, Literal

import torch

# What the command imports only when it runs; processes forked from here have it already.
import mvc.caption_stage  # noqa: F401
import mvc.data_stage  # noqa: F401
import mvc.train.stage  # noqa: F401
from mvc import cli

TRAINED_ON = "mvc.train.step.sample_losses"
"""Called for every batch that is trained on."""


@dataclass(frozen=True)
class Point:
    """A moment of a command.

    Attributes:
        function: dotted name under which the caller finds what is called.
        file: shell pattern of the last path among the arguments; every call counts where it is empty.
        when: before the call, after it, or half-way through what it writes or removes.
        number: which of these calls, counted from 1.
        signals: what the process then sends to itself.
    """

    function: str
    file: str = ""
    when: Literal["before", "half", "after"] = "before"
    number: int = 1
    signals: Sequence[signal.Signals] = (signal.SIGKILL,)


@dataclass(frozen=True)
class Disk:
    """A disk on which some writes find no room.

    Attributes:
        limit: no file can grow beyond so many bytes meanwhile.
        writes: which calls of `function`, counted from 1.
        function: dotted name of what writes.
    """

    limit: int
    writes: Sequence[int]
    function: str = "mvc.train.writer.save_checkpoint"


def command(
    arguments: Sequence[str], output: Path, point: Point | None, disk: Disk | None, begun: Connection | None
) -> None:
    """Do an mvc command; the process ends with its exit code.

    Args:
        arguments: what follows `mvc`.
        output: file for what is printed.
        point: where to send signals to this process.
        disk: which writes fail.
        begun: told when the first sample is trained on.
    """
    with open(output, "ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    torch.set_num_threads(1)
    if point is not None:
        _wrap(point.function, lambda call: _at(point, call))
    if disk is not None:
        _wrap(disk.function, lambda call: _limited(disk, call))
    if begun is not None:
        _wrap(TRAINED_ON, lambda call: _telling(begun, call))
    sys.argv = ["mvc", *arguments]
    cli.main()


def _wrap(name: str, wrapper: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    place, _, attribute = name.rpartition(".")
    owner = resolve_name(place)
    setattr(owner, attribute, wrapper(getattr(owner, attribute)))


def _at(point: Point, call: Callable[..., Any]) -> Callable[..., Any]:
    calls = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        paths = [Path(value) for value in arguments if isinstance(value, str | Path)]
        calls += not point.file or (bool(paths) and fnmatch(str(paths[-1]), point.file))
        if calls != point.number:
            return call(*arguments, **named)
        calls += 1  # this moment comes once
        if point.when == "before":
            _send(point)
            return call(*arguments, **named)
        if point.when == "half":
            _half(paths[-1], lambda: call(*arguments, **named))
            _send(point)
        result = call(*arguments, **named)
        _send(point)
        return result

    return wrapped


def _send(point: Point) -> None:
    for number in point.signals:
        os.kill(os.getpid(), number)


def _half(path: Path, call: Callable[[], Any]) -> None:
    """Remove every second file of a folder, or let the call write a file and cut off half of what it wrote."""
    if path.is_dir():
        for found in sorted(found for found in path.rglob("*") if found.is_file())[::2]:
            found.unlink()
        return
    before = path.stat().st_size if path.exists() else 0
    call()
    os.truncate(path, (before + path.stat().st_size) // 2)


def _limited(disk: Disk, call: Callable[..., Any]) -> Callable[..., Any]:
    writes = 0

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal writes
        writes += 1
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if writes in disk.writes:
            resource.setrlimit(resource.RLIMIT_FSIZE, (disk.limit, limits[1]))
        try:
            return call(*arguments, **named)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return wrapped


def _telling(begun: Connection, call: Callable[..., Any]) -> Callable[..., Any]:
    told = False

    def wrapped(*arguments: Any, **named: Any) -> Any:
        nonlocal told
        if not told:
            told = True
            begun.send("training")
        return call(*arguments, **named)

    return wrapped
