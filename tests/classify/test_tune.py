"""Short classifier runs: trained as the comparison trains, judged on validation images; test images are not there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from mvc.arms import parse_arm
from mvc.classify.evaluation import result_path
from mvc.classify.stage import run_classify
from mvc.classify.tune import FOLDER, Given, ShortRuns, prepare_short_runs
from mvc.config import Experiment
from mvc.errors import ConfigError, DataError, Stopped
from mvc.progress import meter
from mvc.stopping import flag
from mvc.storage import read_json
from mvc.synthetic import read_synthetic
from tests.classify.runs import CLASSES, COUNTS, make_run

STEPS = 12


def experiment(seeds: int = 2, **classify: Any) -> Experiment:
    settings = {"arms": ["real", "duplicate", "rsp"], "seeds": seeds, "max_train_steps": STEPS, "train_batch_size": 8}
    tune = {"classifier_steps": STEPS, "classifier_seeds": seeds}
    return Experiment.model_validate({"classify": {**settings, "evaluation_steps": 4, **classify}, "tune": tune})


def given(run: Path) -> list[Given]:
    return [Given(one.path, one.row["sha256"], CLASSES.index(one.class_name)) for one in read_synthetic(run)]


def accuracies(short: ShortRuns, arm: str, synthetic: list[Given]) -> list[float]:
    with meter("test", 1, "steps") as shown:
        return short.accuracies(arm, synthetic, shown)


def last_accuracy(run: Path, arm: str, seed: int) -> float:
    row = read_json(result_path(run / "results", parse_arm(arm), seed))
    return float(row["validation_curve"][-1][1])


def test_accuracies_are_those_of_the_comparison_after_its_last_step(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    run_classify(run, experiment())
    expected = {arm: [last_accuracy(run, arm, seed) for seed in (0, 1)] for arm in ("real", "duplicate", "rsp")}
    shutil.rmtree(run / "data" / "images" / "test")
    short = prepare_short_runs(run, experiment(), 16)
    assert (len(short.train), len(short.validation)) == (COUNTS["train"], COUNTS["validation"])
    assert {arm: accuracies(short, arm, given(run)) for arm in expected} == expected


def test_finished_runs_are_kept_as_long_as_they_are_right(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    images, short = given(run), prepare_short_runs(run, experiment(1), 16)

    def files() -> int:
        return len(list((run / FOLDER).glob("*.json")))

    first = {arm: accuracies(short, arm, images) for arm in ("real", "duplicate", "rsp")}
    assert files() == 3
    stamps = {path: path.stat().st_mtime_ns for path in (run / FOLDER).glob("*.json")}
    assert {arm: accuracies(short, arm, images) for arm in first} == first
    # Other settings of the comparison that play no part here, and other images of the same number for `duplicate`.
    same = prepare_short_runs(run, experiment(1, max_train_steps=99, evaluation_steps=5), 16)
    accuracies(same, "real", images)
    accuracies(same, "duplicate", images[::-1])
    assert {path: path.stat().st_mtime_ns for path in (run / FOLDER).glob("*.json")} == stamps
    accuracies(short, "rsp", images[1:])
    accuracies(short, "duplicate", images[1:])
    assert files() == 5
    accuracies(prepare_short_runs(run, experiment(1, learning_rate=1e-2), 16), "real", [])
    assert files() == 6
    accuracies(prepare_short_runs(run, experiment(2), 16), "real", [])
    assert files() == 7


def test_a_stop_keeps_finished_classifiers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run")
    short = prepare_short_runs(run, experiment(1), 16)
    accuracies(short, "real", [])
    monkeypatch.setattr(flag, "signal", 15)
    with pytest.raises(Stopped):
        accuracies(short, "rsp", given(run))
    monkeypatch.setattr(flag, "signal", None)
    assert len(list((run / FOLDER).glob("*.json"))) == 1


def test_the_size_is_the_users_or_that_of_the_images(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert prepare_short_runs(run, experiment(), 16).train.pixels.shape[1] == 16
    short = prepare_short_runs(run, experiment(image_size=8), 16)
    assert short.train.pixels.shape[1] == 8 and short.backbone == "small"
    assert torch.equal(short.train.labels, torch.tensor([0, 0, 0, 1, 1, 1]))


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", {"train": 4, "test": 2})
    with pytest.raises(DataError, match="no validation image") as caught:
        prepare_short_runs(run, experiment(), 16)
    assert "tune.classifier_steps=0" in caught.value.do
    with pytest.raises(ConfigError, match=r"classify\.weights: nowhere is missing"):
        prepare_short_runs(run, experiment(weights="nowhere"), 16)
