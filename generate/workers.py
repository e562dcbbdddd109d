"""Worker processes of one machine: they stay alive over the rounds of a stage; one that dies is started again.

A worker reads what to draw from its standard input, a JSON line a round, and says on its standard output that it is
done, or which error it met. Images and rows go to the run folder alone.
"""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mvc import processes
from mvc.config import Experiment
from mvc.error_facts import error_of
from mvc.errors import EnvironmentFault, MvcError, Stopped
from mvc.launch import environment_of_workers
from mvc.progress import say

COMMAND = ("-m", "mvc.generate.worker")
"""What Python runs in a worker."""
RESTARTS = 3
"""How often a worker that died is started again."""
_POLL, _KILL = 0.05, 5.0
"""Seconds between two looks at the workers, and those that they have to end once their work is done."""


@dataclass(frozen=True)
class Round:
    """What is drawn together: jobs of one attempt, cut into batches that workers share by number.

    Attributes:
        jobs: file of all jobs of the round, a JSON line each; paths are relative to the run folder.
        pool: folders of the pool: its own, of accepted and of rejected images.
        due: numbers of the workers of whose batches an image is missing.
    """

    jobs: str
    pool: Sequence[str]
    due: Sequence[int]


@dataclass
class _Worker:
    """One worker, whichever process it is by now.

    Attributes:
        number: among those of all machines.
        local: among those of this one.
        process: None before its first round.
        ears: threads that listen to the process.
        round: what it is drawing; None while it waits.
        restarts: how often it was started again.
        given_up: how its last process ended, once that was too often.
    """

    number: int
    local: int
    process: subprocess.Popen[bytes] | None = None
    ears: list[threading.Thread] = field(default_factory=list)
    round: Round | None = None
    restarts: int = 0
    given_up: str = ""


class Crew:
    """The workers of this process; a context that ends them.

    Args:
        run: the run folder.
        experiment: of the run; generate.num_processes of them work here.
        rank: number of this process among those that have workers.
        size: how many such processes there are.
    """

    def __init__(self, run: Path, experiment: Experiment, rank: int = 0, size: int = 1) -> None:
        self.run, self.experiment = run, experiment
        count = experiment.generate.num_processes
        self.total = count * size
        first = processes.local_rank() * count
        self._workers = [_Worker(rank * count + place, first + place) for place in range(count)]
        self._heard: queue.Queue[tuple[_Worker, Any]] = queue.Queue()
        self._said: set[str] = set()
        self._stopping = False

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if isinstance(error, MvcError):
                self.stop()
        finally:
            self._end()

    def begin(self, new: Round) -> None:
        """Let the workers that have something to do in a round begin it."""
        for worker in self._workers:
            if worker.number in new.due:
                worker.round = new
                if worker.process is None or worker.process.poll() is not None:
                    self._start(worker)
                self._send(worker)

    def is_done(self) -> bool:
        """Whether the round is drawn; starts workers again that have died.

        Raises:
            MvcError: what a worker met; the others are still at work.
            EnvironmentFault: a worker died too often, and the others have done their part.
        """
        self._listen()
        for worker in self._workers:
            if worker.round is not None and worker.process is not None and worker.process.poll() is not None:
                self._bury(worker, worker.process.returncode)
        if any(worker.round is not None for worker in self._workers):
            return False
        for worker in self._workers:
            if worker.given_up:
                raise EnvironmentFault(
                    f"worker {worker.number + 1} of {self.total} died {RESTARTS + 1} times; "
                    f"the last time it {worker.given_up}",
                    why="it was killed, ran out of memory, or met an error that is shown above",
                    do="run the same command again, with a smaller generate.num_processes or generate.batch_size "
                    "if memory is too small; finished images are kept",
                )
        return True

    def stop(self) -> None:
        """Let all workers finish their batch and end, and wait for that."""
        self._stopping = True
        living = [worker.process for worker in self._workers if worker.process is not None]
        for process in living:
            process.terminate()
        while any(process.poll() is None for process in living):
            time.sleep(_POLL)
        for worker in self._workers:
            worker.round = None

    def _end(self) -> None:
        """End what is still there; a worker ends by itself once nobody can speak to it."""
        for worker in self._workers:
            _hang_up(worker)
        end = time.monotonic() + _KILL
        for worker in self._workers:
            if worker.process is None:
                continue
            try:
                worker.process.wait(max(end - time.monotonic(), 0.0))
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            for ear in worker.ears:
                ear.join(_KILL)

    def _start(self, worker: _Worker) -> None:
        _hang_up(worker)
        worker.process = subprocess.Popen(
            [sys.executable, *COMMAND],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment_of_workers(len(self._workers) * processes.local_size()),
            # Ctrl-C goes to a whole group; workers hear of it from us.
            start_new_session=True,
        )
        ears = ((self._hear, worker.process.stdout), (self._pass_on, worker.process.stderr))
        worker.ears = [threading.Thread(target=ear, args=(worker, pipe), daemon=True) for ear, pipe in ears]
        for ear in worker.ears:
            ear.start()
        order = {"run": str(self.run), "experiment": self.experiment.model_dump(mode="json")}
        place = {"worker": worker.number, "workers": self.total, "local": worker.local}
        self._write(worker, {**order, **place})

    def _send(self, worker: _Worker) -> None:
        if worker.round is not None:
            self._write(worker, asdict(worker.round))

    def _write(self, worker: _Worker, line: Mapping[str, Any]) -> None:
        assert worker.process is not None and worker.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died, which is noticed elsewhere
            worker.process.stdin.write(json.dumps(line).encode() + b"\n")
            worker.process.stdin.flush()

    def _hear(self, worker: _Worker, pipe: IO[bytes]) -> None:
        with pipe:
            for line in pipe:
                self._heard.put((worker, json.loads(line)))

    def _pass_on(self, worker: _Worker, pipe: IO[bytes]) -> None:
        """Show what a worker says, each text once, however many say it."""
        with pipe:
            for line in pipe:
                text = line.decode(errors="replace").rstrip()
                if text and text not in self._said:
                    self._said.add(text)
                    say(text)

    def _listen(self) -> None:
        while not self._heard.empty():
            worker, message = self._heard.get()
            error = error_of(message["error"]) if "error" in message else None
            if error is None:
                worker.round = None
            elif not isinstance(error, Stopped):
                worker.round = None
                raise error

    def _bury(self, worker: _Worker, code: int) -> None:
        """A worker has ended in a round; start it again unless it had done all, or that was done too often."""
        for ear in worker.ears:
            ear.join(_KILL)
        self._listen()
        if worker.round is None or self._stopping:
            return
        how = f"was ended by signal {-code} ({_name(-code)})" if code < 0 else f"ended with code {code}"
        if worker.restarts == RESTARTS:
            worker.given_up, worker.round = how, None
            return
        worker.restarts += 1
        say(
            f"generate: worker {worker.number + 1} of {self.total} {how}; "
            f"it is started again ({worker.restarts} of {RESTARTS})"
        )
        self._start(worker)
        self._send(worker)


def _hang_up(worker: _Worker) -> None:
    """Say to a worker that nothing more will come."""
    if worker.process is not None and worker.process.stdin is not None:
        with suppress(BrokenPipeError):  # it has ended before it read all
            worker.process.stdin.close()


def _name(number: int) -> str:
    return signal.Signals(number).name if number in set(signal.Signals) else "unknown"
