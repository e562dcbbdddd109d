"""A full disk: what is whole stays whole, the next interval tries again, and with more room the training goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.small_disk import fill, mounted
from tests.train.crash import TRAINED_ON, Disk, Point
from tests.train.drill import Drill, Ground, finished, require_equal, verified, waited_for_stop

LIMIT = 100_000
"""Bytes a file may have: less than the weights of the toy model, more than everything else."""


def test_a_save_without_room_is_tried_again_at_the_next_interval(ground: Ground) -> None:
    drill = ground.drill()
    assert drill.train(disk=Disk(LIMIT, writes=[2])) == 0, drill.said
    assert f"cannot write {drill.run}/checkpoints/step-000004 (" in drill.said
    assert "training goes on, the next checkpoint tries again" in drill.said
    assert verified(drill.run) == ["step-000006", "step-000002"]
    require_equal(drill, ground.whole())


def test_a_last_save_without_room_is_an_error_that_a_larger_disk_mends(ground: Ground) -> None:
    drill = ground.drill()
    assert drill.train(disk=Disk(LIMIT, writes=[2, 3])) == 4, drill.said
    [error] = [line for line in drill.said.splitlines() if line.startswith("error: ")]
    assert error == f"error: cannot write {drill.run}/checkpoints/step-000006"
    assert "File too large" in drill.said and "do: free some space" in drill.said
    assert verified(drill.run) == ["step-000002"] and not (drill.run / "model").exists()
    assert drill.train() == 0, drill.said
    require_equal(drill, ground.whole())


@pytest.mark.slow
def test_a_stop_without_room_for_its_checkpoint_says_so(ground: Ground) -> None:
    drill = ground.drill()
    code = drill.train(Point(TRAINED_ON, number=3, signals=[signal.SIGTERM]), Disk(LIMIT, writes=[2]))
    assert code == 4 and f"cannot write {drill.run}/checkpoints/step-000003" in drill.said
    assert verified(drill.run) == ["step-000002"]
    assert drill.train() == 0, drill.said
    require_equal(drill, ground.whole())


def test_a_log_without_room_is_tried_again_and_loses_no_row(ground: Ground) -> None:
    drill = ground.drill()
    assert drill.train(disk=Disk(10, writes=[4], function="mvc.train.log.append_json_lines")) == 0, drill.said
    assert "cannot write" in drill.said and "its log is tried again" in drill.said
    require_equal(drill, ground.whole())


@pytest.fixture
def small_disk(ground: Ground) -> Iterator[Path]:
    """A disk with room for the run and all that a training asks for beforehand."""
    with mounted(ground.folder / "small") as folder:
        yield folder


def on(disk: Path, ground: Ground) -> Drill:
    """A run on another disk, with the images and the model where they are."""
    (disk / "drill.yaml").write_bytes((ground.folder / "drill.yaml").read_bytes())
    return Drill(disk / "run", ())


@pytest.mark.slow
@pytest.mark.parametrize("left", [200_000, 0])
def test_a_disk_that_fills_up_during_training(ground: Ground, small_disk: Path, left: int) -> None:
    drill = on(small_disk, ground)
    process = drill.start(Point(TRAINED_ON, number=3, signals=[signal.SIGSTOP]), until_training=True)
    waited_for_stop(process)
    assert verified(drill.run) == ["step-000002"]
    filler = fill(small_disk, left)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGCONT)
    code = finished(process)
    filler.unlink()
    assert code == 4, drill.said
    assert "cannot write" in drill.said and "No space left on device" in drill.said and "do: free some" in drill.said
    assert "Traceback" not in drill.said and verified(drill.run) == ["step-000002"]
    assert drill.train() == 0, drill.said
    require_equal(drill, ground.whole())


@pytest.mark.slow
def test_a_disk_that_is_too_small_is_noticed_before_training(ground: Ground, small_disk: Path) -> None:
    drill = on(small_disk, ground)
    filler = fill(small_disk, 2_000_000)
    assert drill.train() == 4, drill.said
    assert f"too little space in {drill.run} for the checkpoints" in drill.said
    assert " are needed and " in drill.said and " free on that disk" in drill.said
    assert not (drill.run / "logs").exists() and not (drill.run / "checkpoints").exists()
    filler.unlink()
    assert drill.train() == 0, drill.said
    require_equal(drill, ground.whole())
