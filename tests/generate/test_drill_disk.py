"""A full disk, and an image that cannot be used: finished images stay, and with more room the bytes are the same."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mvc.candidates import pool_of, read_candidates, whole_rows
from tests.generate.drill import Drill, Ground, require_equal, wait_for, workers_of
from tests.small_disk import fill, mounted
from tests.train.crash import Disk, Point
from tests.train.drill import waited_for_stop

LIMIT = 1000
"""Bytes a file may have: less than an image or the rows of a batch."""
WRITE, APPEND, DRAW = (
    "mvc.generate.drawing.write_image",
    "mvc.generate.drawing.add_candidates",
    "mvc.generate.drawing.draw",
)


def require_clean_stop(drill: Drill, code: int, why: str) -> int:
    """The command ended as on a full disk; returns how many images are kept, all of them whole."""
    assert code == 4, drill.said
    [error] = [line for line in drill.said.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: cannot write {drill.run}/synthetic/")
    assert why in drill.said and "do: free some space" in drill.said and "Traceback" not in drill.said
    kept = read_candidates(pool_of(drill.run))
    assert whole_rows(pool_of(drill.run), kept.values()) == kept
    assert not (drill.run / "synthetic/candidates.jsonl").exists()
    return len(kept)


# The limit is one of the whole process, so the image that another thread writes meanwhile may meet it as well.
@pytest.mark.parametrize(("function", "call", "kept"), [(WRITE, 6, {6, 7}), (APPEND, 3, {4})])
def test_an_image_or_its_row_without_room_stops_cleanly(
    ground: Ground, function: str, call: int, kept: set[int]
) -> None:
    drill = ground.drill()
    code = drill.generate(disk=Disk(LIMIT, writes=[call], function=function))
    assert require_clean_stop(drill, code, "File too large") in kept
    assert drill.generate() == 0, drill.said
    require_equal(drill, ground.whole())


@pytest.fixture
def small_disk(ground: Ground) -> Iterator[Path]:
    """A disk with room for the run and all that generation writes."""
    with mounted(ground.folder / "small") as folder:
        yield folder


@pytest.mark.slow
@pytest.mark.parametrize("left", [40_000, 0])
def test_a_disk_that_fills_up_during_generation(ground: Ground, small_disk: Path, left: int) -> None:
    drill = ground.drill(place=small_disk)
    process = drill.start(Point(DRAW, number=3, signals=[signal.SIGSTOP]))
    waited_for_stop(process)
    filler = fill(small_disk, left)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    kept = require_clean_stop(drill, drill.finish(process), "No space left on device")
    filler.unlink()
    assert 4 <= kept < 20
    assert drill.generate() == 0, drill.said
    require_equal(drill, ground.whole())


@pytest.mark.slow
def test_a_disk_that_fills_up_under_several_workers(ground: Ground, small_disk: Path) -> None:
    drill = ground.drill("generate.num_processes=2", place=small_disk)
    process = drill.start()
    wait_for(lambda: len(workers_of(process)) == 2, drill)
    filler = fill(small_disk, 40_000)
    require_clean_stop(drill, drill.finish(process), "No space left on device")
    assert not workers_of(process)
    filler.unlink()
    drill.settings = ()
    assert drill.generate() == 0, drill.said
    require_equal(drill, ground.whole())
