"""Several processes train one comparison: nothing twice, nothing lost when one is killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from mvc.classify.comparison import prepare
from mvc.classify.stage import run_classify
from mvc.classify.sweep import tasks_of
from mvc.classify.training import FOLDER, Task
from mvc.classify.workers import crew, train_unclaimed
from mvc.config import Experiment
from mvc.progress import meter

from .runs import make_run


def experiment(**classify: Any) -> Experiment:
    settings = {"arms": ["real", "duplicate", "rsp"], "seeds": 2, "max_train_steps": 8, "evaluation_steps": 4}
    return Experiment.model_validate({"classify": {**settings, **classify}})


def tasks(run: Path, settings: Experiment) -> list[Task]:
    comparison = prepare(run, settings)[0]
    return [task for arm in comparison.arms for task in tasks_of(comparison, arm)]


def test_what_another_process_has_claimed_is_left_to_it(tmp_path: Path) -> None:
    every = tasks(make_run(tmp_path / "run"), experiment(seeds=1))
    with meter("test", 24, "steps") as shown:
        lock = every[1].comparison.run / FOLDER / f"{every[1].key[:24]}.lock"
        lock.parent.mkdir(parents=True)
        with FileLock(lock):
            assert train_unclaimed(every, shown) == [every[1]]
        assert [task.is_trained() for task in every] == [True, False, True] and shown.done == 16
        assert train_unclaimed(every, shown) == [] and all(task.is_trained() for task in every)


def test_workers_train_what_they_are_told_and_end_with_their_parent(tmp_path: Path) -> None:
    run, settings = make_run(tmp_path / "run"), experiment(seeds=1)
    every = tasks(run, settings)
    end = time.monotonic() + 60
    with crew(run, settings, every[:2], 2):
        while not all(task.is_trained() for task in every[:2]):
            assert time.monotonic() < end
            time.sleep(0.05)
    assert not every[2].is_trained()


@pytest.mark.slow
def test_a_killed_comparison_goes_on_to_the_same_results(tmp_path: Path) -> None:
    whole, cut = make_run(tmp_path / "whole"), make_run(tmp_path / "cut")
    settings = experiment(max_train_steps=40, seeds=3)
    run_classify(whole, settings)
    program = (
        "import sys; from pathlib import Path; from mvc.classify.stage import run_classify; "
        "from mvc.config import Experiment; "
        "run_classify(Path(sys.argv[1]), Experiment.model_validate_json(sys.argv[2]))"
    )
    text = settings.model_copy(update={"classify": settings.classify.model_copy(update={"jobs": 2})}).model_dump_json()
    for patience in (2.5, 4.0, 5.5, 7.0):
        process = subprocess.Popen([sys.executable, "-c", program, str(cut), text], start_new_session=True)
        time.sleep(patience)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run([sys.executable, "-c", program, str(cut), text], check=True)
    for name in ("table.csv", "verdict.json"):
        assert (cut / "results" / name).read_text() == (whole / "results" / name).read_text()


@pytest.mark.slow
def test_processes_of_a_launcher_share_the_classifiers(tmp_path: Path) -> None:
    """`mvc classify --num-processes 2` gives the bytes of one process; split batches give a whole comparison too."""
    few = ["data.shots=3", "train.max_train_steps=2", "generate.per_real=1", "generate.num_inference_steps=2"]
    few += ["filter.attempts=1", "classify.arms=[real,rsp]", "classify.seeds=2", "classify.max_train_steps=20"]

    def classify(name: str, *more: str) -> str:
        command = [sys.executable, "-m", "mvc", "classify", "--data", "digits", *few, f"run.dir={tmp_path / name}"]
        subprocess.run([*command, *more], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return (tmp_path / name / "results" / "table.csv").read_text()

    one = classify("one")
    for name in ("two", "split"):
        # The same synthetic images: several processes fine-tune to within rounding only.
        shutil.copytree(tmp_path / "one", tmp_path / name)
        for made in ("results", "cache/classifiers"):
            shutil.rmtree(tmp_path / name / made)
    assert classify("two", "--num-processes", "2") == one
    assert len(classify("split", "--num-processes", "2", "classify.split_batches=true").splitlines()) == 3
