"""Killed at any moment, generation comes to the files and bytes of an uninterrupted one; see drill.py."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from mvc.candidates import pool_of, read_candidates
from mvc.randomness import generator
from mvc.storage import read_json, read_json_lines
from tests.generate.drill import Drill, Ground, contents, lives, require_equal, wait_for, workers_of
from tests.train.crash import Point
from tests.two_processes import free_port

RENAME, APPEND, DRAW = "os.replace", "mvc.candidates.append_json_lines", "mvc.generate.drawing.draw"
POINTS = {
    "before the first image": Point(DRAW),
    "half of an image": Point(RENAME, "*/synthetic/train/dog/finetuned-00000.png"),
    "images without their rows": Point(APPEND, "*/candidates.partial.jsonl", number=2),
    "half of the rows of a batch": Point(APPEND, "*/candidates.partial.jsonl", "half", 3),
    "while the first attempt is looked at": Point("mvc.generate.stage.judge_pool"),
    "between two attempts": Point("mvc.generate.stage.judge_pool", when="after"),
    "in the second attempt": Point(RENAME, "*-2.png", "after"),
    "in the third attempt": Point(APPEND, "*/candidates.partial.jsonl", "after", 5),
    "before the pool is closed": Point(RENAME, "*/synthetic/candidates.jsonl"),
    "the pool is closed": Point(RENAME, "*/synthetic/candidates.jsonl", "after"),
    "in the previews": Point(RENAME, "*/preview/pretrained/cat/pretrained-00001.png", "after"),
    "before the previews are closed": Point(RENAME, "*/preview/pretrained/candidates.jsonl"),
    "before the filters judge": Point("mvc.generate.filter_stage.judge_pool"),
    "while images are moved": Point(RENAME, "*/synthetic/rejected/*.png", "after", 3),
    "all but one image is moved": Point(RENAME, "*/rejected.jsonl"),
    "before the set is there": Point(RENAME, "*/train/metadata.jsonl"),
    "the set is there": Point(RENAME, "*/train/metadata.jsonl", "after"),
}
"""In the order in which one generation meets them, each when it goes on after the one before."""


def test_a_kill_in_each_phase_of_one_generation(ground: Ground) -> None:
    drill = ground.drill()
    for name in ("images without their rows", "in the second attempt", "while images are moved"):
        assert drill.generate(POINTS[name]) == -signal.SIGKILL, f"{name}\n{drill.said}"
    assert drill.generate() == 0, drill.said
    require_equal(drill, ground.whole())


@pytest.mark.slow
def test_one_generation_is_killed_at_every_named_moment(ground: Ground) -> None:
    drill = ground.drill()
    for name, point in POINTS.items():
        assert drill.generate(point) == -signal.SIGKILL, f"{name}\n{drill.said}"
    assert drill.generate() == 0, drill.said
    require_equal(drill, ground.whole())


PHASES = ("first attempt", "later attempt", "filter", "done")


def phase(run: Path) -> str:
    """How far a run came."""
    if (run / "synthetic/train/metadata.jsonl").exists():
        return "done"
    if (run / "synthetic/candidates.jsonl").exists():
        return "filter"
    return "later attempt" if any((run / "synthetic").glob("train/*/*-2.png")) else "first attempt"


def kill_in(drill: Drill, wanted: str, seconds: float) -> bool:
    """Kill a generation so long after it came to a phase; False if it was done before."""
    process = drill.start()
    wait_for(lambda: PHASES.index(phase(drill.run)) >= PHASES.index(wanted) or process.exitcode is not None, drill)
    process.join(seconds)
    process.kill()
    code = drill.finish(process)
    assert code in (0, -signal.SIGKILL), drill.said
    return code != 0


def lengths(drill: Drill) -> dict[str, float]:
    """Seconds from the first printed line, or from the beginning of a phase, to its end."""
    process, found, last = drill.start(), {}, time.monotonic()
    for name, following in zip(PHASES, PHASES[1:], strict=False):
        wait_for(lambda after=following: PHASES.index(phase(drill.run)) >= PHASES.index(after), drill)
        found[name], last = time.monotonic() - last, time.monotonic()
    assert drill.finish(process) == 0, drill.said
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_at_any_moment_of_every_phase_change_no_byte(ground: Ground) -> None:
    whole, seconds = ground.whole(), lengths(ground.drill())
    random, killed = generator(0, "kills"), Counter[str]()
    while killed.total() < 20:
        drill = ground.drill()
        for number in sorted(torch.randint(3, (2,), generator=random).tolist()):
            name = PHASES[number]
            killed[name] += kill_in(drill, name, seconds[name] * float(torch.rand((), generator=random)))
        assert drill.generate() == 0, drill.said
        require_equal(drill, whole)
    assert set(killed) == set(PHASES[:3]) and min(killed.values()) >= 2, killed


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 3])
def test_several_workers_make_the_bytes_of_one(ground: Ground, count: int) -> None:
    drill = ground.drill(f"generate.num_processes={count}")
    assert drill.generate() == 0, drill.said
    require_equal(drill, ground.whole())
    assert "generate: 20 images at" in drill.said and f"in {count} processes" in drill.said
    # One meter for all: the workers show none.
    assert drill.said.count("generating: 20/20 images in") == 1 and "generating (" not in drill.said


SLOWLY = ("generate.batch_size=1", "generate.num_inference_steps=10")
"""So that there is something to interrupt."""


def begun(drill: Drill, worker: int) -> bool:
    """Whether a worker has written rows."""
    path = drill.run / "synthetic" / f"candidates.partial{f'-{worker}' if worker else ''}.jsonl"
    return bool(read_json_lines(path, torn_tail=True))


@pytest.mark.slow
def test_a_killed_worker_is_started_again_and_changes_no_byte(ground: Ground) -> None:
    drill = ground.drill(*SLOWLY, "generate.num_processes=2")
    process = drill.start()
    wait_for(lambda: begun(drill, 1), drill)
    os.kill(workers_of(process)[1], signal.SIGKILL)
    assert drill.finish(process) == 0, drill.said
    assert "worker 2 of 2 was ended by signal 9 (SIGKILL); it is started again (1 of 3)" in drill.said
    require_equal(drill, ground.whole(*SLOWLY))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent_and_one_process_goes_on(ground: Ground, number: signal.Signals) -> None:
    drill = ground.drill(*SLOWLY, "generate.num_processes=2")
    process = drill.start()
    wait_for(lambda: begun(drill, 0) or begun(drill, 1), drill)
    workers = workers_of(process)
    assert len(workers) == 2 and process.pid is not None
    os.kill(process.pid, number)
    code = drill.finish(process)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL
        # They notice at once, in the middle of a batch.
        time.sleep(1.0)
    else:
        assert code == 143 and drill.said.count("error: stopped by signal 15; ") == 1, drill.said
        assert "of 20 images are kept" in drill.said and "Traceback" not in drill.said
    assert not any(lives(worker) for worker in workers)
    kept = read_candidates(pool_of(drill.run))
    assert 0 < len(kept) < 20
    drill.settings = SLOWLY
    assert drill.generate() == 0, drill.said
    require_equal(drill, ground.whole(*SLOWLY))


@pytest.mark.slow
def test_processes_of_torchrun_train_and_generate_in_one_command(ground: Ground) -> None:
    """The same command on two machines with a shared folder; here it is one machine that has both processes."""
    drill = ground.drill()
    shutil.rmtree(drill.run)
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port()), "-m", "mvc"]
    arguments = ["generate", str(ground.experiment), f"run.dir={drill.run}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *command, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    for line in ("fine-tuned for 2 steps", "generating: 20/20 images in", "filter: "):
        assert done.stderr.count(line) == 1, done.stderr
    assert "in 2 processes" in done.stderr
    assert {entry["state"] for entry in read_json(drill.run / "run.json")["stages"].values()} == {"finished"}
    made = contents(drill.run)
    for name in ("synthetic", "preview"):
        shutil.rmtree(drill.run / name)
    assert drill.generate() == 0, drill.said
    assert contents(drill.run) == made
    # Nothing to do: the others leave again.
    again = subprocess.run(
        [sys.executable, *command, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert again.returncode == 0 and "everything was done before" in again.stderr, again.stderr
