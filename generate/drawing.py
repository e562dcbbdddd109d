"""Draw what a pool lacks of some jobs: batch after batch, files written in threads, rows appended behind them."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from mvc.candidates import Pool, add_candidates, write_image
from mvc.config_generation import SOURCES
from mvc.errors import EnvironmentFault
from mvc.images import to_pixels
from mvc.progress import Meter, meter
from mvc.stopping import flag
from mvc.synthetic import Candidate, Recipe

from .imported import read_imported
from .inputs import Inputs
from .jobs import Job, in_batches
from .loading import load_source
from .recipes import recipes_of
from .source import draw

WRITERS = 2
"""Threads that encode and write PNG files while the next batch is drawn."""


@dataclass
class Work:
    """One worker's part of a round.

    Attributes:
        inputs: what the jobs refer to.
        pool: where images and rows go.
        rows: rows that are there, by file name; what is drawn is added.
        worker: number of the worker, which names its journal.
        workers: how many share the batches, by batch number.
        drawer: the models that were used last; handed on from round to round it saves loading them again.
        stream: where progress is shown; standard error when absent.
    """

    inputs: Inputs
    pool: Pool
    rows: dict[str, Candidate]
    worker: int = 0
    workers: int = 1
    drawer: _Drawer | None = None
    stream: TextIO | None = None
    pending: list[tuple[Future[str] | None, dict[str, Any]]] = field(default_factory=list)

    def collect(self, shown: Meter) -> None:
        """Wait until the files of the last batch are on disk, then append the rows of those that are.

        Raises:
            EnvironmentFault: one could not be written.
        """
        made: list[Candidate] = []
        failed: EnvironmentFault | None = None
        for written, row in self.pending:
            try:
                sha256 = None if written is None else written.result()
            except EnvironmentFault as error:
                failed = failed or error
                continue
            made.append(Candidate(**row, sha256=sha256))  # type: ignore[typeddict-item]
        self.pending.clear()
        add_candidates(self.pool, made, self.worker)
        self.rows.update({row["file_name"]: row for row in made})
        shown.advance(len(made))
        if failed is not None:
            raise failed

    def drawer_of(self, source: str) -> _Drawer:
        """What draws images of a source; loads its models if the last images were of another one."""
        if self.drawer is None or self.drawer.name != source:
            self.drawer = None  # its models make room for the others
            self.drawer = _Drawer(self.inputs, source)
        return self.drawer


def batches_of(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
    """The batches of a round, source after source; they follow from the jobs alone."""
    batches = []
    for source in SOURCES:
        batches += in_batches([job for job in jobs if job.source == source], batch_size)
    return batches


def draw_missing(work: Work, jobs: Sequence[Job]) -> None:
    """Draw the jobs of a round that have no row yet, as far as they are this worker's.

    A batch of which an image is missing is drawn whole, because its last bits depend on its size; only what is
    missing is written.

    Args:
        work: extended by what was drawn.
        jobs: all jobs of the round.

    Raises:
        EnvironmentFault: a model cannot be loaded, memory or disk is too small; finished images are kept.
        Stopped: a signal asked for a stop; finished images are kept.
    """
    inputs = work.inputs
    batches = batches_of(jobs, inputs.experiment.generate.batch_size)
    mine = batches[work.worker :: work.workers]
    for source in dict.fromkeys(batch[0].source for batch in mine):
        own = [batch for batch in mine if batch[0].source == source]
        recipes = recipes_of(inputs, [job for batch in own for job in batch])
        _draw_source(work, source, own, recipes)


def file_name(job: Job) -> str:
    """Name of a job's image below the folders of its pool."""
    return f"{job.class_name}/{job.id}.png"


def _draw_source(work: Work, source: str, batches: Sequence[list[Job]], recipes: Mapping[str, Recipe]) -> None:
    todo = [batch for batch in batches if any(file_name(job) not in work.rows for job in batch)]
    if not todo:
        return
    images = sum(len(batch) for batch in batches)
    missing = sum(file_name(job) not in work.rows for batch in todo for job in batch)
    drawer = work.drawer_of(source)
    with (
        meter(f"generating ({source})", images, "images", done=images - missing, stream=work.stream) as shown,
        ThreadPoolExecutor(WRITERS) as threads,
    ):
        for batch in todo:
            try:
                drawn = drawer.draw(batch)
            finally:
                # The files of the batch before were written meanwhile; their rows count whatever became of this one.
                work.collect(shown)
            for job, (pixels, facts) in zip(batch, drawn, strict=True):
                name = file_name(job)
                if name in work.rows:
                    continue
                future = None if pixels is None else threads.submit(write_image, work.pool.accepted, name, pixels)
                work.pending.append((future, {**recipes[name], **facts}))
            if flag:
                work.collect(shown)
            flag.check(f"{shown.done} of {images} images are kept")
        work.collect(shown)
        rate = shown.rate
    print(f"generate: {missing} {source} images at {rate:.2f} images/s", file=work.stream or sys.stderr, flush=True)


class _Drawer:
    """Turns batches of one source into pixels and what is to be said of them."""

    def __init__(self, inputs: Inputs, source: str) -> None:
        self.inputs, self.name = inputs, source
        self.source = None if source == "import" else load_source(inputs, source)

    def draw(self, batch: Sequence[Job]) -> list[tuple[NDArray[np.uint8] | None, dict[str, Any]]]:
        """(H, W, 3) uint8 pixels, None where they are not finite, and the outcome part of the row but its sha256."""
        if self.source is None:
            return [(self._imported(job), {"batch_size": 1, "batch_place": 0, "in_float32": False}) for job in batch]
        drawn = draw(self.source, batch)
        found = []
        for row, pixels in enumerate(drawn.pixels):
            facts = {
                "batch_size": drawn.batch_sizes[row],
                "batch_place": drawn.batch_places[row],
                "in_float32": drawn.in_float32[row],
            }
            found.append((to_pixels(pixels) if bool(pixels.isfinite().all()) else None, facts))
        return found

    def _imported(self, job: Job) -> NDArray[np.uint8]:
        imported, background = self.inputs.imported, self.inputs.experiment.data.background
        assert imported is not None and job.file is not None, "an import job comes from an imported folder"
        return read_imported(imported, job.file, self.inputs.image_size, background)
