"""Killed at chosen and at random moments, `mvc clip` comes to the bytes of an unbroken run; see crash.py."""

from __future__ import annotations

import multiprocessing
import signal
import time
from functools import cache
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from mvc.config_file import to_yaml
from mvc.randomness import numpy_generator
from mvc.storage import files_below, read_json, sha256_file
from tests.train import crash
from tests.train.clip_runs import experiment, write_model, write_pairs
from tests.train.drill import LATEST, finished

SAVE, PUBLISH = "mvc.train.checkpoints.save_file", "mvc.clip.models.save_file"
RENAME, REMOVE = "os.replace", "shutil.rmtree"
SHORT = {"arms": ["hard_negatives"], "seeds": 1, "max_train_steps": 6, "evaluation_steps": 2}
LONG = {**SHORT, "arms": ["none", "mixgen", "hard_negatives"], "max_train_steps": 160, "checkpointing_steps": 20}
POINTS = {
    "before the first record": crash.Point(RENAME, "*/clip.json"),
    "in the weights of a checkpoint": crash.Point(SAVE, "*/clip.safetensors", "half", 2),
    "after the best weights": crash.Point(SAVE, "*/best.safetensors", "after"),
    "in the moments": crash.Point(SAVE, "*/optimizer.safetensors", "half"),
    "in the negatives": crash.Point(SAVE, "*/mined.safetensors", "half", 3),
    "before a checkpoint is there": crash.Point(RENAME, "*/step-*"),
    "a checkpoint is there": crash.Point(RENAME, "*/step-*", "after", 2),
    "half of an old checkpoint removed": crash.Point(REMOVE, "*/.tmp-old-step-*", "half", 2),
    "in the weights of the model": crash.Point(PUBLISH, "*", "half"),
    "the model is there and its row is not": crash.Point(RENAME, "*/results/*-seed0.json"),
    "the row is there and its checkpoints are": crash.Point(RENAME, "*/results/*-seed0.json", "after"),
    "half of its checkpoints removed": crash.Point(REMOVE, "*/checkpoints/*-seed0", "half"),
    "the table is there and the verdict is not": crash.Point(RENAME, "*/verdict.json"),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # on a busy machine


@cache
def context() -> ForkServerContext:
    """Processes are forked from one that has imported everything."""
    servers = multiprocessing.get_context("forkserver")
    servers.set_forkserver_preload(["tests.train.crash", "mvc.train.clip_stage", "open_clip"])
    return servers


class Drill:
    """A run of one experiment, and what its processes say.

    Args:
        place: a folder with pairs and a model.
        run: the run folder.
        train: changes of section train.
    """

    def __init__(self, place: Path, run: Path, train: dict[str, Any]) -> None:
        self.run, self._file, self._output = run, run.with_suffix(".yaml"), run.with_suffix(".txt")
        self._file.write_text(to_yaml(experiment(place / "pairs", run, place / "toy.json", train=train)))

    @property
    def said(self) -> str:
        return self._output.read_text()

    def start(self, point: crash.Point | None = None) -> ForkServerProcess:
        arguments = ["clip", str(self._file)]
        process = context().Process(target=crash.command, args=(arguments, self._output, point, None, None))
        process.start()
        return process

    def do(self, point: crash.Point | None = None) -> int:
        """Start and wait; returns the exit code, below zero that of a signal."""
        return finished(self.start(point))

    def start_until_work(self) -> ForkServerProcess:
        """Start and wait until the record is written, after which pairs are read and models trained."""
        before, end = self._written(), time.monotonic() + LATEST
        process = self.start()
        while self._written() == before and process.exitcode is None:
            assert time.monotonic() < end, self.said
            time.sleep(0.005)
        return process

    def _written(self) -> int:
        path = self.run / "clip.json"
        return path.stat().st_mtime_ns if path.exists() else 0

    def result(self) -> dict[str, Any]:
        """All files by their bytes; rows without the seconds that they took."""
        found: dict[str, Any] = {}
        for path in files_below(self.run):
            name = path.relative_to(self.run).as_posix()
            if path.match("results/*-seed*.json"):
                found[name] = {key: value for key, value in read_json(path).items() if key != "seconds"}
            elif name not in ("clip.json", ".lock"):
                found[name] = sha256_file(path)
        return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs and a model."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder)
    write_pairs(folder / "pairs")
    return folder


@pytest.fixture(scope="module")
def wanted(place: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What an unbroken short run leaves."""
    drill = Drill(place, tmp_path_factory.mktemp("whole") / "run", SHORT)
    assert drill.do() == 0, drill.said
    found = drill.result()
    names = {"results/hard_negatives-seed0.json", "results/table.csv", "results/verdict.json", "experiment.yaml"}
    assert names < set(found) and "models/hard_negatives-seed0/open_clip_model.safetensors" in found
    assert not any(name.startswith("checkpoints/") for name in found)
    return found


@pytest.mark.parametrize("name", POINTS)
def test_every_named_moment_by_itself(name: str, place: Path, wanted: dict[str, Any], tmp_path: Path) -> None:
    drill = Drill(place, tmp_path / "run", SHORT)
    assert drill.do(POINTS[name]) == -signal.SIGKILL, drill.said
    assert not (drill.run / "results" / "verdict.json").exists()
    assert drill.do() == 0, drill.said
    assert drill.result() == wanted, drill.said


def test_a_kill_before_and_after_every_single_rename(place: Path, wanted: dict[str, Any], tmp_path: Path) -> None:
    """Whatever a run writes appears by a rename, so these are all the states that it can be found in."""
    number = 0
    while True:
        number += 1
        drill = Drill(place, tmp_path / f"run{number}", SHORT)
        code = drill.do(crash.Point(RENAME, "*", "before" if number % 2 else "after", (number + 1) // 2))
        if code == 0:
            break
        assert code == -signal.SIGKILL, drill.said
        assert drill.do() == 0 and drill.result() == wanted, f"rename {number}\n{drill.said}"
    assert number > 20


def test_killed_and_stopped_at_random_moments(place: Path, tmp_path: Path) -> None:
    whole = Drill(place, tmp_path / "whole", LONG)
    process, begun = whole.start_until_work(), time.monotonic()
    assert finished(process) == 0, whole.said
    seconds = time.monotonic() - begun
    drill, ended = Drill(place, tmp_path / "broken", LONG), 0
    for number in range(8):
        process = drill.start_until_work()
        time.sleep(float(numpy_generator(0, "kills", number).uniform(0, 0.35 * seconds)))
        if number % 3 == 2:
            process.terminate()
        else:
            process.kill()
        code = finished(process)
        assert code in (0, 143, -signal.SIGKILL) and "Traceback" not in drill.said, drill.said
        ended += code != 0
        assert code == 0 or not (drill.run / "results" / "verdict.json").exists()
    assert ended >= 3
    assert drill.do() == 0 and drill.result() == whole.result(), drill.said
