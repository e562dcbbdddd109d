"""Several processes, one command: process 0 does the command, the others wait for its words and join some stages.

A launcher (`mvc train --num-processes`, torchrun, accelerate launch) starts the same command several times and tells
each its place in the environment. Process 0 alone reads the command line, holds the lock of the run and prints. The
others ask the key-value store that torch keeps for its process groups, so that they wait for hours of captioning
without any timeout of a collective call. Its words are numbered; each asks to join a stage, and the last one to leave.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any

from mvc.error_facts import error_facts
from mvc.errors import ConfigError, EnvironmentFault, MvcError
from mvc.stopping import watching

LAUNCHED = "MVC_LAUNCHED"
"""Set by `mvc.launch` for the processes that it starts."""

_CONNECT = timedelta(minutes=10)
"""Until all processes, possibly of several machines, have started."""

_POLL, _PATIENCE, _FAREWELL = 0.2, 5.0, 3.0
"""Seconds between two looks into the store, for which one waits for what another has to say, and to be heard."""


def several() -> bool:
    """Whether this is one of several processes of one command."""
    named = all(os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))
    return named and int(os.environ["WORLD_SIZE"]) > 1


def rank() -> int:
    """Number of this process, counted from 0; 0 if there is only one."""
    return int(os.environ["RANK"]) if several() else 0


def size() -> int:
    """How many processes do the command."""
    return int(os.environ["WORLD_SIZE"]) if several() else 1


@cache
def _store() -> Any:
    """The store that all processes see; connecting waits until all are there.

    Raises:
        EnvironmentFault: one of them did not come.
    """
    # Process groups that end with a process fill the terminal with C++ stacks otherwise.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from torch.distributed import DistError
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    try:
        store, _, _ = next(iter(rendezvous("env://", timeout=_CONNECT)))
    except (DistError, OSError) as error:
        raise EnvironmentFault(
            f"the {size()} processes did not meet at {place}",
            why=str(error).splitlines()[0],
            do="start all of them with the same MASTER_ADDR and MASTER_PORT, and a port that is free",
        ) from error
    return PrefixStore("mvc", store)


def gather() -> None:
    """Wait until all processes of the command have started; nothing if there is one.

    Raises:
        EnvironmentFault: one of them did not come.
    """
    if several():
        _store()


def local_rank() -> int:
    """Number of this process among those of its machine."""
    return int(os.environ.get("LOCAL_RANK", "0")) if several() else 0


def local_size() -> int:
    """How many processes of the command run on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several() else 1


def publish(key: str, value: Any) -> None:
    """Set a JSON value that all processes see; keys are used once, so that nobody can miss one.

    Raises:
        DistError: the store is gone, and process 0 with it.
    """
    _store().set(key, json.dumps(value))


def published(key: str) -> Any:
    """The value that a process has set; None as long as none has.

    Raises:
        DistError: the store is gone, and process 0 with it.
    """
    return json.loads(_store().get(key)) if _store().check([key]) else None


def count(key: str, amount: int) -> int:
    """Add to a number that all processes see, which begins at 0; returns it.

    Raises:
        DistError: the store is gone, and process 0 with it.
    """
    return int(_store().add(key, amount))


def _heard(key: str, seconds: float | None = None) -> Any:
    """What process 0 has set for a key; None if it has not within so many seconds.

    Raises:
        DistError: the store is gone, and process 0 with it.
    """
    end = None if seconds is None else time.monotonic() + seconds
    while not _store().check([key]):
        if end is not None and time.monotonic() > end:
            return None
        time.sleep(_POLL)
    return json.loads(_store().get(key))


def _give(word: Mapping[str, Any]) -> None:
    number = _store().add("words", 1) - 1
    publish(f"word/{number}", word)


def release(code: int) -> None:
    """Process 0 at its end, or once nothing is left to join: let the others go, with this exit code."""
    if not several():
        return
    try:
        if not _store().check(["released"]):
            publish("released", True)
            _give({"do": "leave", "code": code})
            end = time.monotonic() + _PATIENCE
            # The store may end with this process, so the others are given the time to read it; those that are still in
            # a stage, which then has failed, would not.
            while not published("joined") and _store().add("gone", 0) < size() - 1 and time.monotonic() < end:
                time.sleep(_POLL)
        publish("ended", code)
        end = time.monotonic() + _FAREWELL
        # Those that are still in a stage, which has failed, look for this before they end.
        while published("joined") and _store().add("told", 0) < size() - 1 and time.monotonic() < end:
            time.sleep(_POLL)
    except (MvcError, RuntimeError):
        return  # no store: they never met, or the launcher has ended it


@contextmanager
def together(word: Mapping[str, Any]) -> Iterator[None]:
    """Process 0: do the block while all other processes do what `word` says.

    Args:
        word: JSON values, handed to the `join` of the others.

    Raises:
        EnvironmentFault: another process ended during the block.
    """
    if not several():
        yield
        return
    publish("joined", True)
    _give({**word, "do": "join"})
    try:
        yield
    except RuntimeError as error:
        explained = _explained(error)
        if explained is None:
            raise
        raise explained from error
    _leave_group()
    publish("joined", False)


def _leave_group() -> None:
    """The process group of a stage ends with it; process 0 goes on alone, or they form another one."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _explained(error: BaseException) -> EnvironmentFault | None:
    """A collective call that failed because another process is gone, in words; None for other errors."""
    from torch.distributed import DistError

    text = str(error)
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    if not isinstance(error, DistError) and not (type(error) is RuntimeError and any(sign in text for sign in signs)):
        return None
    return EnvironmentFault(
        f"another of the {size()} processes has ended",
        why="it was killed, ran out of memory, or met the error that is shown beside this one",
        do="run the same command again; it goes on from the last checkpoint",
    )


def follow(join: Callable[[Mapping[str, Any]], None]) -> int:
    """Any process but 0: wait for its words, join when one says so, and print nothing unless only this one failed.

    Args:
        join: does the work, given the word of process 0; called for each stage that they do together.

    Returns:
        the exit code.
    """
    sys.stdout = sys.stderr = open(os.devnull, "w")
    try:
        gather()
        # A signal comes to all processes; process 0 stops for it where it can, and says so.
        with watching():
            number = 0
            while (word := _heard(f"word/{number}"))["do"] == "join":
                join(word)
                _leave_group()
                number += 1
            _store().add("gone", 1)
            return int(word["code"])
    except BaseException as error:
        return _after(error)


def _after(error: BaseException) -> int:
    """Exit code after an error, which is printed if process 0 has not met it too and printed it."""
    own = error.exit_code if isinstance(error, MvcError) else 143 if isinstance(error, KeyboardInterrupt) else 1
    try:
        publish("failed", {**error_facts(error), "rank": rank()})
        code = _heard("ended", _PATIENCE)
        _store().add("told", 1)
    except (MvcError, RuntimeError):
        # Process 0 is gone with its store; our own launcher says so where it could not do it itself.
        code = own if LAUNCHED in os.environ else None
    if code is not None:
        return int(code) or own
    shown = error if isinstance(error, MvcError) else _explained(error)
    if shown is None:
        traceback.print_exception(error, file=sys.__stderr__)
        return own
    print(f"error: {shown}\n(process {rank()} of {size()})", file=sys.__stderr__, flush=True)
    return shown.exit_code


def sharded() -> bool:
    """Whether the launcher asks accelerate to spread weights and moments over the processes (FSDP)."""
    return _wanted("ACCELERATE_USE_FSDP")


def _wanted(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")


def require_supported(device_type: str) -> None:
    """Refuse what a launcher asks for and training would not do, or do wrongly without a word.

    Args:
        device_type: cpu, cuda or mps.

    Raises:
        ConfigError: DeepSpeed or Megatron-LM, FSDP version 1 or on a CPU, or more processes than devices.
    """
    for name, what in (("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"), ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM")):
        if _wanted(name):
            raise ConfigError(
                f"the launcher asks for {what}, which is not supported",
                why="it keeps weights and moments in its own way, and checkpoints would miss them",
                do="use FSDP version 2 to spread a model over GPUs, or plain processes",
            )
    if sharded() and device_type != "cuda":
        raise ConfigError(
            f"the launcher asks for FSDP, and the device is {device_type}",
            why="accelerate shards on GPUs alone and would train whole copies",
            do="leave FSDP out, or train on GPUs",
        )
    if sharded() and os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(
            "the launcher asks for FSDP version 1", do="set fsdp_version: 2 in accelerate's configuration"
        )
    if several() and device_type == "mps":
        raise ConfigError("several processes cannot share an mps device", do="use one process, or run.device=cpu")
    if several() and device_type == "cuda":
        import torch

        there, here = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        if here > there:
            raise ConfigError(f"{here} processes on this machine, which has {there} GPUs", do="start one process a GPU")


def watch_parent() -> None:
    """In a process of `mvc.launch`: stop as after SIGTERM once the parent is gone, however it ended."""
    if LAUNCHED not in os.environ:
        return

    def wait() -> None:
        # The parent holds the other end of this pipe and never writes.
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
