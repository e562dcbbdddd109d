"""`classify.jobs`: other processes of this machine that train classifiers of the same run.

Each claims a classifier by a lock file, which the system takes back when a process dies; whoever is left trains what
is left. Nothing but the run folder passes between them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from filelock import FileLock, Timeout

from mvc.config import Experiment
from mvc.launch import environment_of_workers
from mvc.progress import Meter, say
from mvc.stopping import flag

from .training import FOLDER, Task, train

COMMAND = ("-m", "mvc.classify.worker")
"""What Python runs in a worker."""
_POLL = 0.2
_SAFE = "classifiers that were finished are kept"
T = TypeVar("T")


@dataclass(frozen=True)
class Claims(Generic[T]):
    """How classifiers of a kind are claimed and trained.

    Attributes:
        is_done: whether one is trained.
        lock: file that whoever trains it holds.
        train: trains one and advances the meter by its steps.
        steps: of one.
        name: of one, for the meter.
    """

    is_done: Callable[[T], bool]
    lock: Callable[[T], Path]
    train: Callable[[T, Meter], None]
    steps: int
    name: Callable[[T], str]


def claim(tasks: Sequence[T], shown: Meter, claims: Claims[T]) -> list[T]:
    """Train every classifier that is neither trained nor claimed by another process.

    Args:
        tasks: in the order in which they are wanted.
        shown: advanced by each step of this process, and by whole classifiers of others.
        claims: how it is done.

    Returns:
        Those that others were at work on.
    """
    claimed = []
    for task in tasks:
        flag.check(_SAFE)
        if claims.is_done(task):
            shown.advance(claims.steps, note=f"{claims.name(task)}, by another process")
            continue
        lock = claims.lock(task)
        lock.parent.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(lock, timeout=0):
                if not claims.is_done(task):
                    claims.train(task, shown)
        except Timeout:
            claimed.append(task)
    return claimed


def until_all_done(tasks: Sequence[T], shown: Meter, claims: Claims[T], alone: bool) -> None:
    """Train what is missing, together with whoever else is at work, until all are trained.

    Args:
        tasks: without those that are trained.
        shown: progress.
        claims: how it is done.
        alone: no other process is at work, so that nothing has to be waited for.

    Raises:
        NumericError: a loss is not finite.
        Stopped: a signal asked for a stop; finished classifiers are kept.
    """
    left = list(tasks)
    while left:
        left = claim(left, shown, claims)
        if left and not alone:
            flag.check(_SAFE)
            time.sleep(_POLL)


def train_unclaimed(tasks: Sequence[Task], shown: Meter) -> list[Task]:
    """`claim` of classifiers of images."""
    return claim(tasks, shown, _claims(tasks)) if tasks else []


def train_all(tasks: Sequence[Task], shown: Meter, alone: bool) -> None:
    """`until_all_done` of classifiers of images."""
    if tasks:
        until_all_done(tasks, shown, _claims(tasks), alone)


def _claims(tasks: Sequence[Task]) -> Claims[Task]:
    return Claims(
        is_done=lambda task: task.is_trained(),
        lock=lambda task: task.comparison.run / FOLDER / f"{task.key[:24]}.lock",
        train=train,
        steps=tasks[0].comparison.settings.max_train_steps,
        name=lambda task: task.arm.name,
    )


@contextmanager
def crew(run: Path, experiment: Experiment, due: Sequence[Task], count: int) -> Iterator[None]:
    """Worker processes beside this one; they are ended with it, and finish no classifier then.

    Args:
        run: the run folder.
        experiment: the resolved experiment.
        due: what is to be trained.
        count: how many processes in all, this one included.
    """
    values = {"run": str(run.resolve()), "experiment": experiment.model_dump(mode="json")}
    with helpers(COMMAND, {**values, "due": [task.key for task in due]}, count):
        yield


@contextmanager
def helpers(command: Sequence[str], order: Mapping[str, Any], count: int) -> Iterator[None]:
    """Processes that `worker.serve` an order, beside this one; they are ended with it.

    Args:
        command: what Python runs in each of them, before its number.
        order: what they are told, as JSON values.
        count: how many processes in all, this one included.
    """
    line = json.dumps(order).encode() + b"\n"
    children = []
    try:
        for number in range(1, count):
            child = subprocess.Popen(
                [sys.executable, *command, str(number)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment_of_workers(count),
                start_new_session=True,  # Ctrl-C goes to a whole group; they hear of it from us
            )
            children.append(child)
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.write(line)
                child.stdin.flush()
        yield
    finally:
        for number, child in enumerate(children, 1):
            assert child.stdin is not None
            with suppress(BrokenPipeError):
                child.stdin.close()  # a worker whose parent can say no more ends at once
            code = child.wait()
            if code not in (0, 143):
                say(f"classify: worker {number} ended with code {code}; the others did its part")
