"""One of several processes that train classifiers: `python -m mvc.classify.worker N`, started by workers.py."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvc.errors import MvcError
from mvc.progress import Meter
from mvc.stopping import watching


def main() -> None:
    """Train classifiers that nobody has claimed, until none is left, a signal comes, or the parent is gone."""
    serve(lambda order, number: _work(Path(order["run"]), order["experiment"], set(order["due"]), number))


def serve(work: Callable[[Any, int], None]) -> None:
    """Do what the parent orders on standard input, and end with it.

    Args:
        work: takes the order and the number of this worker; looks at `mvc.stopping.flag`.
    """
    # Its warning of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    order = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    code = 0
    with watching():
        try:
            work(order, int(sys.argv[1]))
        except MvcError as error:
            print(f"error: {error}", file=sys.stderr)
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
            code = 1
    sys.stderr.flush()
    os._exit(code)  # at once: Python would wait for the thread that listens


def _end_with_parent() -> None:
    sys.stdin.read()
    os._exit(0)


def _work(run: Path, values: object, due: set[str], number: int) -> None:
    # Only now, so that a parent that ends meanwhile is noticed.
    import torch

    from mvc.config import Experiment

    from .comparison import prepare
    from .sweep import tasks_of
    from .workers import train_unclaimed

    experiment = Experiment.model_validate(values)
    device = None
    if torch.cuda.is_available() and experiment.run.device in ("auto", "cuda"):
        device = torch.device("cuda", number % torch.cuda.device_count())
        torch.cuda.set_device(device)
    silent = Meter("", 0, "steps", stream=io.StringIO())
    tasks = [
        task
        for comparison in prepare(run, experiment, device)
        for arm in comparison.arms
        for task in tasks_of(comparison, arm)
    ]
    # Once through is enough: what another process has claimed is its business, and then that of who started this one.
    train_unclaimed([task for task in tasks if task.key in due], silent)


if __name__ == "__main__":
    main()
