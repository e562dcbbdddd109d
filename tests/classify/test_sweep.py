"""Ratios are tried on validation images; the best is used, and nothing is trained twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mvc.arms import Arm, parse_arm
from mvc.classify.comparison import prepare
from mvc.classify.stage import run_classify
from mvc.classify.sweep import choose, passed_over, tasks_of
from mvc.classify.training import FOLDER, Task
from mvc.config import Experiment
from mvc.errors import ConfigError
from mvc.storage import publish_folder, read_json, write_json

from .runs import COUNTS, make_run

RSP = Arm("rsp")


def experiment(**classify: Any) -> Experiment:
    settings = {"arms": ["real", "rsp"], "seeds": 2, "max_train_steps": 6, "evaluation_steps": 3, "ratios": [0.5, 1, 2]}
    return Experiment.model_validate({"classify": {**settings, **classify}})


def pretend(task: Task, accuracy: float) -> None:
    """Publish a classifier as training does, with an accuracy of our choice."""
    with publish_folder(task.folder, {"key": task.key}) as folder:
        write_json(folder / "classifier.json", {"validation_accuracy": accuracy, "ratio": task.ratio})


def test_an_arm_has_a_classifier_of_each_ratio_and_others_have_their_own(tmp_path: Path) -> None:
    settings = experiment(arms=["real", "duplicate", "rsp", "combined:1.5"], ratio=1)
    comparison = prepare(make_run(tmp_path / "run"), settings)[0]
    ratios = {arm.name: [(task.ratio, task.seed) for task in tasks_of(comparison, arm)] for arm in comparison.arms}
    assert ratios["rsp"] == [(0.5, 0), (0.5, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert ratios["real"] == [(None, 0), (None, 1)] and ratios["duplicate"] == [(1, 0), (1, 1)]
    assert ratios["combined:1.5"] == [(1.5, 0), (1.5, 1)]


def test_members_follow_the_ratio_and_keep_the_classes(tmp_path: Path) -> None:
    comparison = prepare(make_run(tmp_path / "run"), experiment())[0]
    assert comparison.synthetic is not None
    for ratio in (0.5, 1.0, 2.0):
        rows = comparison.members(RSP, ratio)
        labels = comparison.synthetic.labels[rows]
        # 3 real images of each class; a half of 3 is 1 or 2.
        assert all(abs(int((labels == label).sum()) - 3 * ratio) <= 0.5 for label in (0, 1))
    assert len(comparison.members(RSP, 9.0)) == len(comparison.members(RSP, None)) == 12
    assert comparison.members(Arm("real"), None) == [] and len(comparison.members(Arm("duplicate"), 1.0)) == 6


def test_the_best_mean_is_chosen_and_the_smaller_ratio_of_equals(tmp_path: Path) -> None:
    comparison = prepare(make_run(tmp_path / "run"), experiment())[0]
    tasks = tasks_of(comparison, RSP)
    for task, accuracy in zip(tasks, [0.6, 0.8, 0.9, 0.7, 0.8, 0.8], strict=True):
        pretend(task, accuracy)
    chosen = choose(comparison, {RSP: tasks})[RSP]
    assert [(task.ratio, task.seed) for task in chosen] == [(1, 0), (1, 1)]
    written = read_json(comparison.folder / "ratios.json")["rsp"]
    assert written["chosen"] == 1 and [row["accuracies"] for row in written["tried"]] == [
        [0.6, 0.8],
        [0.9, 0.7],
        [0.8, 0.8],
    ]
    assert passed_over(comparison) == {task.key for task in tasks if task.ratio != 1}


def test_a_sweep_goes_through_and_repeats_nothing(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run_classify(run, experiment())
    rows = [read_json(run / "results" / f"rsp-seed{seed}.json") for seed in (0, 1)]
    written = read_json(run / "results" / "ratios.json")["rsp"]
    best = next(row for row in written["tried"] if row["ratio"] == written["chosen"])
    assert [row["key"] for row in rows] == best["keys"]
    assert [row["validation_accuracy"] for row in rows] == best["accuracies"]
    assert {row["ratio"] for row in rows} == {best["effective"]}
    assert best["effective"] * COUNTS["train"] == rows[0]["images_synthetic"]
    # The weights of the ratios passed over are gone, and yet they are not trained again.
    before = {path.name: path.stat().st_mtime_ns for path in (run / "results").glob("*seed*")}
    run_classify(run, experiment())
    assert {path.name: path.stat().st_mtime_ns for path in (run / "results").glob("*seed*")} == before
    clean = {Task(prepare(run, experiment())[0], parse_arm("real"), None, seed).folder.name for seed in (0, 1)}
    assert {path.name for path in (run / FOLDER).iterdir() if path.is_dir()} == clean


def test_a_sweep_needs_validation_images(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"train": 6, "test": 10})
    with pytest.raises(ConfigError, match=r"classify\.ratios cannot be compared, as there is no validation image"):
        run_classify(run, experiment())
