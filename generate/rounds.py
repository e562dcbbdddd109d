"""Draw the rounds of a stage: in this process, or shared among workers of this machine and of others.

The batches of a round follow from the table alone, and are shared by number. So neither how many work, nor who of them
died, changes an image.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvc import processes
from mvc.candidates import Pool, journals, read_candidates
from mvc.config import Experiment
from mvc.errors import ConfigError, EnvironmentFault
from mvc.others import Others, beating, require_first
from mvc.progress import meter, say
from mvc.stopping import flag
from mvc.storage import write_json_lines
from mvc.synthetic import Candidate, recipe_of

from .drawing import Work, batches_of, draw_missing, file_name
from .inputs import Inputs
from .jobs import Job
from .loading import fill_caches
from .recipes import recipes_of
from .workers import Crew, Round

DrawRound = Callable[[Pool, dict[str, Candidate], Sequence[Job]], None]
"""Draws the jobs of one attempt that have no row yet, into a pool that is open; the rows are extended."""

_POLL, _LAG = 0.1, 90.0
"""Seconds between two looks, and until what another machine has written is seen in a shared folder."""


@contextmanager
def drawing(inputs: Inputs) -> Iterator[DrawRound]:
    """Yield what draws the rounds of a stage; inside the block workers stay alive, and keep their models.

    Args:
        inputs: of the stage; generate.num_processes workers draw, and as many for each process of a launcher.

    Raises:
        ConfigError: several processes are asked for where they cannot be.
        MvcError: what a worker met; finished images are kept.
        Stopped: a signal asked for a stop; finished images are kept.
    """
    if inputs.experiment.generate.num_processes * processes.size() == 1:
        yield lambda pool, rows, jobs: draw_missing(Work(inputs, pool, rows), jobs)
        return
    if inputs.device.type == "mps":
        raise ConfigError("several processes cannot share an mps device", do="set generate.num_processes=1")
    with Crew(inputs.run, inputs.experiment, 0, processes.size()) as crew:
        shared = _Shared(inputs, crew)
        yield shared.draw
    if processes.several():
        processes.publish(_key(shared.number), {"round": None})


def join_drawing(run: Path, experiment: Experiment) -> None:
    """Any process but 0 of a launcher: draw a share of what process 0 draws, in workers of its own.

    Args:
        run: the run folder, which all processes share.
        experiment: the same for all.

    Raises:
        MvcError: what a worker met.
        Stopped: a signal asked for a stop, or process 0 has ended.
    """
    number = 0
    with beating(), Crew(run, experiment, processes.rank(), processes.size()) as crew:
        while (word := _next_round(number)) is not None:
            crew.begin(Round(**word))
            while not crew.is_done():
                _look_around()
            processes.publish(f"{_key(number)}/done/{processes.rank()}", True)
            number += 1


def _key(number: int) -> str:
    """Where process 0 tells the others of a round; None there says that it was the last one."""
    return f"generate/round/{number}"


def _next_round(number: int) -> dict[str, Any] | None:
    while (word := processes.published(_key(number))) is None:
        _look_around()
    announced: dict[str, Any] | None = word["round"]
    return announced


def _look_around() -> None:
    require_first()
    flag.check("finished images are kept")
    time.sleep(_POLL)


class _Shared:
    """Process 0 of a drawing that is shared: announces rounds, watches, and reads the rows back.

    Attributes:
        number: rounds so far.
    """

    def __init__(self, inputs: Inputs, crew: Crew) -> None:
        self.inputs, self.crew, self.number = inputs, crew, 0
        self._others = Others()
        self._filled = {"import"}

    def draw(self, pool: Pool, rows: dict[str, Candidate], jobs: Sequence[Job]) -> None:
        """Draw the jobs of a round that have no row yet; a `DrawRound`."""
        batches = batches_of(jobs, self.inputs.experiment.generate.batch_size)
        todo = [number for number, batch in enumerate(batches) if any(file_name(job) not in rows for job in batch)]
        if not todo:
            return
        for source in dict.fromkeys(batches[number][0].source for number in todo):
            if source not in self._filled:
                fill_caches(self.inputs, source)
                self._filled.add(source)
        # A leftover by its name, should all be killed. Always another name, because a folder that machines share may
        # show an old file for a while.
        path = pool.folder / f".tmp-round-{os.getpid()}-{self.number}.jsonl"
        write_json_lines(path, (asdict(job) for job in jobs))
        try:
            self._watch(pool, self._announce(path, pool, todo), len(jobs), sum(file_name(job) in rows for job in jobs))
        finally:
            path.unlink(missing_ok=True)
        rows.update(self._collected(pool, jobs))

    def _announce(self, path: Path, pool: Pool, todo: Sequence[int]) -> str:
        """Let all begin; returns the key of the round."""
        run, key = self.inputs.run, _key(self.number)
        folders = (pool.folder, pool.accepted, pool.rejected)
        due = sorted({number % self.crew.total for number in todo})
        names = [folder.relative_to(run).as_posix() for folder in folders]
        new = Round(path.relative_to(run).as_posix(), names, due)
        if processes.several():
            processes.publish(key, {"round": asdict(new)})
        self.crew.begin(new)
        self.number += 1
        return key

    def _watch(self, pool: Pool, key: str, total: int, done: int) -> None:
        """Show how the journals grow until all have done their share."""
        growth = _Growth(pool)
        with meter("generating", total, "images", done) as shown:
            while not (self.crew.is_done() and _others_are_done(key)):
                shown.advance(growth.rows())
                self._others.check()
                if flag:
                    self.crew.stop()
                    break
                time.sleep(_POLL)
            shown.advance(growth.rows())
        flag.check(f"{shown.done} of {total} images are kept")
        say(f"generate: {shown.done - done} images at {shown.rate:.2f} images/s in {self.crew.total} processes")

    def _collected(self, pool: Pool, jobs: Sequence[Job]) -> dict[str, Candidate]:
        """The rows of all jobs, from the journals.

        Raises:
            EnvironmentFault: a row is missing, or was drawn from something else than ours.
        """
        names, end = [file_name(job) for job in jobs], time.monotonic() + _LAG
        while True:
            found = read_candidates(pool)
            lacking = [name for name in names if name not in found]
            if not lacking or not processes.several() or time.monotonic() > end:
                break
            flag.check("finished images are kept")
            time.sleep(1.0)
        if lacking:
            raise EnvironmentFault(
                f"{len(lacking)} of {len(jobs)} images were drawn, but {pool.folder} has no row of {lacking[0]}",
                why="not all processes write to the same folder" if processes.several() else "somebody removed it",
                do="give all processes the same run.dir in a shared folder, and run the same command again",
            )
        if processes.several():
            self._require_same(jobs, found)
        return {name: found[name] for name in names}

    def _require_same(self, jobs: Sequence[Job], found: Mapping[str, Candidate]) -> None:
        for name, recipe in recipes_of(self.inputs, jobs).items():
            other = recipe_of(found[name])
            different = [key for key in recipe if other.get(key) != recipe[key]]  # type: ignore[literal-required]
            if different:
                raise EnvironmentFault(
                    f"{name} was drawn with another {different[0]} than process 0 has",
                    why="another machine has other files of the model, or another version of mvc",
                    do="give all machines the same, and run the same command again",
                )


def _others_are_done(key: str) -> bool:
    return all(processes.published(f"{key}/done/{rank}") for rank in range(1, processes.size()))


class _Growth:
    """Counts rows that are appended to the journals of a pool, without reading any twice."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._ends = {path: path.stat().st_size for path in journals(pool)}

    def rows(self) -> int:
        """Rows since the last call."""
        found = 0
        for path in journals(self._pool):
            with open(path, "rb") as file:
                # A tail that a kill had cut short is removed by the next writer.
                file.seek(min(self._ends.get(path, 0), path.stat().st_size))
                found += file.read().count(b"\n")
                self._ends[path] = file.tell()
        return found
