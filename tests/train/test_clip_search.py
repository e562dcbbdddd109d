"""Policies are searched on validation pairs, no trial twice, and the arms are trained with the best one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator

from mvc.config_clip import ClipExperiment
from mvc.errors import ConfigError, Stopped
from mvc.multimodal.policies import Policy
from mvc.stopping import flag
from mvc.storage import read_json
from mvc.train import clip_search
from mvc.train.clip_data import read_data
from mvc.train.clip_search import _figure, _tasks, with_policy
from mvc.train.clip_stage import run_clip
from mvc.train.clip_task import start_of
from tests.train.clip_runs import experiment, write_model, write_pairs


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"))


def asked(data: Path, run: Path, model: Path, **techniques: Any) -> ClipExperiment:
    """A comparison of `none` and a searched policy, three trials of two steps each where nothing else is said."""
    settings = {"operations": 3, "magnitude": 9, "search_trials": 3, "search_steps": 2, **techniques}
    return experiment(data, run, model, train={"arms": ["none", "policy"]}, techniques=settings)


def trials_of(run: Path) -> list[dict[str, Any]]:
    (path,) = (run / "results").glob("policy_search-*.json")
    return list(read_json(path)["trials"])


def test_the_arms_are_trained_with_the_best_policy(data: Path, model: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    asked_for = asked(data, run, model)
    run_clip(run, asked_for)
    trials = trials_of(run)
    assert [(one["num_ops"], one["magnitude"]) for one in trials][0] == (3, 9) and len(trials) == 3  # the given one
    best = max(trials, key=lambda one: (one["figure"], -one["num_ops"] * one["magnitude"], -one["num_ops"]))
    n, m = best["num_ops"], best["magnitude"]
    assert (n, m) != (3, 9)  # or nothing would show that it is the best one that trains
    expected = (
        f"policy: {n} operations of magnitude {m} were the best on validation of 3 trials "
        f"of 2 steps (RSUM {best['figure']:.1f}, the given policy's {trials[0]['figure']:.1f})"
    )
    assert expected in read_json(run / "results" / "verdict.json")["warnings"]
    assert not list((run / "checkpoints").glob("policy_search*"))

    # A run that is given what was found trains the same model: the search chose, and did nothing else.
    other = tmp_path / "given"
    found = {"operations": n, "magnitude": m, "search_trials": 0}
    given = experiment(data, other, model, train={"arms": ["none", "policy"]}, techniques=found)
    run_clip(other, given)
    for name in ("none-seed0", "policy-seed0", "policy-seed1"):
        one, two = (read_json(place / "results" / f"{name}.json") for place in (run, other))
        assert (one["identity"], one["test"]) == (two["identity"], two["test"])

    # Neither the search nor a training is repeated.
    stamp = (run / "results" / "policy-seed1.json").stat().st_mtime_ns
    run_clip(run, asked_for)
    assert trials_of(run) == trials and (run / "results" / "policy-seed1.json").stat().st_mtime_ns == stamp


def test_a_figure_is_the_mean_over_the_seeds_on_validation_pairs(data: Path, model: Path, tmp_path: Path) -> None:
    given = asked(data, tmp_path, model, search_steps=4)
    pairs, accelerator = read_data(given, tmp_path), Accelerator(cpu=True)
    tasks = _tasks(tmp_path, given, pairs, start_of(given), "policy")(Policy(2, 5))
    assert [(task.seed, task.experiment.techniques.operations) for task in tasks] == [(0, 2), (1, 2)]
    figures = [_figure([task], accelerator) for task in tasks]
    assert _figure(tasks, accelerator) == pytest.approx(sum(figures) / 2, abs=1e-12)
    run_clip(
        tmp_path / "run",
        experiment(
            data,
            tmp_path / "run",
            model,
            train={"arms": ["policy"], "max_train_steps": 4},
            techniques={"operations": 2, "magnitude": 5},
        ),
    )
    rows = [read_json(tmp_path / "run" / "results" / f"policy-seed{seed}.json") for seed in (0, 1)]
    assert [row["validation_rsum"] for row in rows] == pytest.approx(figures, abs=1e-12)


def test_a_stopped_search_goes_on(data: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    run_clip(whole, asked(data, whole, model))
    real, calls = clip_search._figure, []

    def stopped_before_the_second(tasks: Any, accelerator: Any) -> float:
        calls.append(tasks)
        if len(calls) == 2:
            flag.signal = 15
        return real(tasks, accelerator)

    monkeypatch.setattr(clip_search, "_figure", stopped_before_the_second)
    try:
        with pytest.raises(Stopped, match="run the same command again"):
            run_clip(broken, asked(data, broken, model))
    finally:
        flag.signal = None
    assert trials_of(broken) == trials_of(whole)[:1]
    monkeypatch.undo()
    run_clip(broken, asked(data, broken, model))
    assert trials_of(broken) == trials_of(whole)
    names = ("results/table.csv", "results/verdict.json")
    assert [(broken / name).read_text() for name in names] == [(whole / name).read_text() for name in names]


def test_no_search_without_an_arm_or_trials(data: Path, model: Path, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    for given in (
        asked(data, tmp_path, model, search_trials=0),
        experiment(data, tmp_path, model, techniques={"search_trials": 3}),
    ):
        assert with_policy(tmp_path, given, read_data(given, tmp_path), "x", accelerator) == (given, None)
    assert not (tmp_path / "results").exists()


def test_several_processes_do_not_search(data: Path, model: Path, tmp_path: Path) -> None:
    class Two(Accelerator):  # type: ignore[misc]
        num_processes = 2

    given = asked(data, tmp_path, model)
    with pytest.raises(ConfigError, match="policies are searched by one process"):
        with_policy(tmp_path, given, read_data(given, tmp_path), start_of(given), Two(cpu=True))


def test_more_trials_than_policies_are_refused() -> None:
    with pytest.raises(ValueError, match="less than or equal to 15"):
        ClipExperiment.model_validate({"techniques": {"search_trials": 16}})
