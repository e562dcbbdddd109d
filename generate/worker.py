"""One of several processes that draw: `python -m mvc.generate.worker`, started and spoken to by workers.py."""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvc.candidates import Pool, read_candidates
from mvc.error_facts import error_facts
from mvc.errors import MvcError
from mvc.stopping import flag, watching
from mvc.storage import read_json_lines

if TYPE_CHECKING:
    from .inputs import Inputs

_POLL = 0.1
"""Seconds between two looks at whether a stop was asked for, while there is nothing to draw."""


def main() -> None:
    """Draw this worker's part of each round that is announced on standard input, until that ends or a signal comes."""
    # Its warning of a kernel that nothing here uses.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    speak, lines = _mouth(), _ears()
    with watching():
        try:
            order = json.loads(lines.get())
            _work(order, lines, speak)
        except MvcError as error:
            speak({"error": error_facts(error)})
            code = error.exit_code
        except BaseException:
            traceback.print_exc()
            code = 1
        else:
            code = 0
    sys.stderr.flush()
    # At once: Python would wait for the thread that listens.
    os._exit(code)


def _mouth() -> Callable[[Mapping[str, Any]], None]:
    """What speaks to the parent; whatever a library prints goes to standard error from here on."""
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def speak(message: Mapping[str, Any]) -> None:
        print(json.dumps(message), file=pipe, flush=True)

    return speak


def _ears() -> queue.Queue[str]:
    """Lines of the parent. Once it can send no more it has ended, perhaps killed, and so does this process.

    At once, and not after the batch: the next start of the command may already be under way.
    """
    lines: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            lines.put(line)
        os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    return lines


def _work(order: Mapping[str, Any], lines: queue.Queue[str], speak: Callable[[Mapping[str, Any]], None]) -> None:
    # Only now, so that a parent that ends meanwhile is noticed.
    from mvc.config import Experiment

    from .drawing import Work, draw_missing
    from .inputs import read_inputs
    from .jobs import Job

    run, experiment = Path(order["run"]), Experiment.model_validate(order["experiment"])
    inputs, drawer = _on_own_device(read_inputs(run, experiment), order["local"]), None
    while not flag:
        try:
            told = json.loads(lines.get(timeout=_POLL))
        except queue.Empty:
            continue
        jobs = [Job(**row) for row in read_json_lines(run / told["jobs"])]
        pool = Pool(*(run / folder for folder in told["pool"]))
        rows = read_candidates(pool)
        # Progress is shown by the parent, for all.
        work = Work(inputs, pool, rows, order["worker"], order["workers"], drawer, stream=io.StringIO())
        draw_missing(work, jobs)
        drawer = work.drawer
        speak({"done": len(jobs)})


def _on_own_device(inputs: Inputs, local: int) -> Inputs:
    """The same with a GPU of its own, where there are as many as workers."""
    if inputs.device.type != "cuda":
        return inputs
    import torch

    device = torch.device("cuda", local % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return replace(inputs, device=device)


if __name__ == "__main__":
    main()
