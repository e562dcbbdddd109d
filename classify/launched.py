"""Several processes of a launcher in the classify stage: `--num-processes`, torchrun.

Each trains classifiers of its own, with the same results as one process, or with classify.split_batches all of them
train each classifier together. Process 0 says what is due; it alone chooses, opens the test split and writes results.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import torch

from mvc import processes
from mvc.config import Experiment
from mvc.devices import pick_device
from mvc.progress import Meter

from . import parallel
from .comparison import prepare
from .sweep import tasks_of
from .training import Task, train
from .workers import train_unclaimed

_POLL = 0.05
_ROUNDS = count()
"""Numbers what is said, over all runs of a command; all processes count alike."""


def own_device(experiment: Experiment) -> torch.device:
    """The device of this process; with classify.split_batches it also joins the others' process group."""
    device = pick_device(experiment.run.device)
    if not processes.several():
        return device
    if experiment.classify.split_batches:
        return parallel.join(device)
    if device.type == "cuda":
        device = torch.device("cuda", processes.local_rank() % torch.cuda.device_count())
        torch.cuda.set_device(device)
    return device


def announce(due: Sequence[Task] | None) -> None:
    """Process 0: say what all others help to train now, or by None that there is nothing more."""
    if processes.several():
        processes.publish(f"classifiers/{next(_ROUNDS)}", {"due": None if due is None else [task.key for task in due]})


def train_together(tasks: Sequence[Task], shown: Meter) -> None:
    """Train classifiers one after the other, each by all processes; every process calls it with the same tasks."""
    for task in tasks:
        train(task, shown)


def help_out(run: Path, experiment: Experiment) -> None:
    """Any process but 0: train what process 0 says until there is nothing more.

    Args:
        run: the run folder.
        experiment: the resolved experiment.
    """
    tasks = {
        task.key: task
        for comparison in prepare(run, experiment, own_device(experiment))
        for arm in comparison.arms
        for task in tasks_of(comparison, arm)
    }
    silent = Meter("", 0, "steps", stream=io.StringIO())
    work: Callable[[Sequence[Task], Meter], object]
    work = train_together if experiment.classify.split_batches else train_unclaimed
    while (due := _heard(f"classifiers/{next(_ROUNDS)}")) is not None:
        work([tasks[key] for key in due], silent)


def _heard(key: str) -> list[str] | None:
    while (said := processes.published(key)) is None:
        time.sleep(_POLL)
    due: list[str] | None = said["due"]
    return due
