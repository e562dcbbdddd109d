"""One conclusion over several runs: their data seeds are the samples, and their rows the only source."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from mvc.classify.repeats import conclude_repeats
from mvc.classify.stage import run_classify
from mvc.config import Experiment
from mvc.config_file import to_yaml
from mvc.errors import DataError
from mvc.storage import read_json, write_text

from .runs import make_run

ARMS = ["real", "duplicate", "rsp"]


def experiment(**classify: Any) -> Experiment:
    settings = {"arms": ARMS, "seeds": 2, "max_train_steps": 6, "train_batch_size": 8, "evaluation_steps": 3}
    return Experiment.model_validate({"classify": {**settings, **classify}})


def classified(run: Path, settings: Experiment, **counts: int) -> Path:
    make_run(run, {"train": 6, "validation": 8, "test": 20, **counts})
    write_text(run / "experiment.yaml", to_yaml(settings))
    run_classify(run, settings)
    return run


def test_the_figures_are_those_of_all_runs(tmp_path: Path) -> None:
    runs = [
        classified(tmp_path / "all" / "seed-0", experiment()),
        classified(tmp_path / "all" / "seed-1", experiment(), train=8),
        classified(tmp_path / "all" / "seed-2", experiment(), train=10),
    ]
    conclude_repeats(tmp_path / "all", runs)
    with open(tmp_path / "all" / "results" / "table.csv", newline="") as file:
        table = {row["arm"]: row for row in csv.DictReader(file)}
    assert list(table) == ARMS
    for arm in ARMS:
        rows = [read_json(run / "results" / f"{arm}-seed{seed}.json") for run in runs for seed in (0, 1)]
        values = [row["test_accuracy"] for row in rows]
        assert [float(value) for value in table[arm]["values"].split()] == pytest.approx(values, abs=1e-6)
        assert float(table[arm]["mean"]) == pytest.approx(sum(values) / 6, abs=1e-5)
        assert float(table[arm]["diversity"]) == pytest.approx(sum(row["training_loss"] for row in rows) / 6, rel=1e-4)
    verdict = read_json(tmp_path / "all" / "results" / "verdict.json")
    # Three data seeds are the samples, and not six classifiers.
    assert verdict["seeds"] == 3 and "3 data seeds" in verdict["sentence"]


def test_every_backbone_has_its_conclusion(tmp_path: Path) -> None:
    settings = experiment(backbone=["small", "test_resnet"], arms=["real", "rsp"], seeds=1, max_train_steps=2)
    runs = [classified(tmp_path / f"seed-{number}", settings, train=6 + 2 * number) for number in (0, 1)]
    conclude_repeats(tmp_path, runs)
    assert (tmp_path / "results" / "verdict.json").exists()
    assert (tmp_path / "results" / "test_resnet" / "verdict.json").exists()


def test_runs_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    one = classified(tmp_path / "seed-0", experiment(seeds=1))
    two = classified(tmp_path / "seed-1", experiment(seeds=1, arms=["real", "rsp"]))
    with pytest.raises(DataError, match="seed-1 compared other arms, seeds or backbones than the first run"):
        conclude_repeats(tmp_path, [one, two])
    (one / "results" / "rsp-seed0.json").unlink()
    with pytest.raises(DataError, match=r"rsp-seed0\.json"):
        conclude_repeats(tmp_path, [one])
