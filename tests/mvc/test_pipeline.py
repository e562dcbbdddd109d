"""Stages are done once, in order, skipped while nothing changed, and never silently made from other inputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mvc import pipeline
from mvc.config import Experiment
from mvc.errors import ConfigError, DataError
from mvc.pipeline import join_stage, run_stages
from mvc.stages import Stage

CALLS: list[str] = []
FAIL: set[str] = set()


def first(run: Path, experiment: Experiment) -> None:
    CALLS.append("first")
    (run / "one").mkdir(exist_ok=True)
    (run / "one" / "out.txt").write_text(f"seed {experiment.run.seed}")


def second(run: Path, experiment: Experiment) -> None:
    CALLS.append("second")
    if "second" in FAIL:
        raise DataError("cannot go on")
    (run / "two.txt").write_text((run / "one" / "out.txt").read_text() + f" per_real {experiment.generate.per_real}")


def whole(run: Path) -> bool:
    return not (run / "one" / "lost").exists()


HERE = "tests.mvc.test_pipeline"
TWO_STAGES = (
    Stage("first", f"{HERE}:first", ("run.seed",), (), "one/out.txt", ("one",)),
    Stage(
        "second",
        f"{HERE}:second",
        ("generate",),
        ("one/out.txt",),
        "two.txt",
        ("two.txt",),
        ("generate.per_real",),
    ),
)


@pytest.fixture(autouse=True)
def two_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLS.clear()
    FAIL.clear()
    monkeypatch.setattr(pipeline, "STAGES", TWO_STAGES)


def experiment(folder: Path, **sections: dict[str, object]) -> Experiment:
    sections["run"] = {"dir": str(folder), **sections.get("run", {})}
    return Experiment.model_validate(sections)


def test_second_time_nothing_is_done(tmp_path: Path) -> None:
    assert run_stages(experiment(tmp_path), "second")
    assert CALLS == ["first", "second"]
    assert not run_stages(experiment(tmp_path), "second")
    assert CALLS == ["first", "second"]
    record = json.loads((tmp_path / "run.json").read_text())
    assert [entry["state"] for entry in record["stages"].values()] == ["finished", "finished"]
    assert record["versions"]["mvc"] and record["hardware"]["cores"] >= 1


def test_until_stops_early_and_a_later_call_goes_on(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path), "first")
    run_stages(experiment(tmp_path), "second")
    assert CALLS == ["first", "second"]


def test_changed_setting_is_refused_by_name_and_touches_nothing(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path), "second")
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    with pytest.raises(ConfigError, match="'first' was made from has changed: run.seed: 0 -> 1") as caught:
        run_stages(experiment(tmp_path, run={"seed": 1}), "second")
    assert "--redo" in caught.value.do
    assert before == {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    assert CALLS == ["first", "second"]


def test_redo_makes_the_changed_stage_and_what_follows_again(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path), "second")
    assert run_stages(experiment(tmp_path, run={"seed": 1}), "second", redo=True)
    assert CALLS == ["first", "second"] * 2
    assert (tmp_path / "two.txt").read_text().startswith("seed 1")


def test_redo_without_a_change_does_nothing(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path), "second")
    assert not run_stages(experiment(tmp_path), "second", redo=True)


def test_changed_input_file_is_refused_by_name(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path), "second")
    (tmp_path / "one" / "out.txt").write_text("edited by hand")
    with pytest.raises(ConfigError, match="'second' was made from has changed: one/out.txt is no longer the same"):
        run_stages(experiment(tmp_path), "second")


def test_an_input_that_is_younger_than_the_run_counts_as_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_stages(experiment(tmp_path), "second")
    younger = (TWO_STAGES[0], replace(TWO_STAGES[1], inputs=("one/out.txt", "more.txt")))
    monkeypatch.setattr(pipeline, "STAGES", younger)
    assert not run_stages(experiment(tmp_path), "second")
    (tmp_path / "more.txt").write_text("now it is there")
    with pytest.raises(ConfigError, match="'second' was made from has changed: more.txt"):
        run_stages(experiment(tmp_path), "second")


def test_free_setting_makes_the_stage_go_on(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path), "second")
    assert run_stages(experiment(tmp_path, generate={"per_real": 9}), "second")
    assert CALLS == ["first", "second", "second"]
    assert (tmp_path / "two.txt").read_text().endswith("9.0")


def test_failed_stage_is_done_again_next_time_and_the_finished_one_is_not(tmp_path: Path) -> None:
    FAIL.add("second")
    with pytest.raises(DataError, match="cannot go on"):
        run_stages(experiment(tmp_path), "second")
    assert json.loads((tmp_path / "run.json").read_text())["stages"]["second"]["state"] == "started"
    FAIL.clear()
    assert run_stages(experiment(tmp_path), "second")
    assert CALLS == ["first", "second", "second"]


def test_a_stage_that_failed_before_it_made_anything_takes_other_settings(tmp_path: Path) -> None:
    """Someone whose run stopped with an error must be able to change the setting that caused it."""
    FAIL.add("second")
    with pytest.raises(DataError, match="cannot go on"):
        run_stages(experiment(tmp_path), "second")
    FAIL.clear()
    assert run_stages(experiment(tmp_path, generate={"batch_size": 3}), "second")


def test_an_unfinished_stage_with_work_in_it_keeps_its_settings(tmp_path: Path) -> None:
    FAIL.add("second")
    with pytest.raises(DataError, match="cannot go on"):
        run_stages(experiment(tmp_path), "second")
    (tmp_path / "two.txt").write_text("half of it")
    with pytest.raises(ConfigError, match="generate.batch_size: 16 -> 3"):
        run_stages(experiment(tmp_path, generate={"batch_size": 3}), "second")


def test_missing_result_is_made_again(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path), "second")
    (tmp_path / "two.txt").unlink()
    assert run_stages(experiment(tmp_path), "second")
    assert CALLS == ["first", "second", "second"]


def test_a_kept_stage_stays_as_it_is_whatever_has_changed(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path), "second")
    changed = experiment(tmp_path, generate={"per_real": 9, "batch_size": 3})
    assert not run_stages(changed, "second", keep=("second",))
    assert CALLS == ["first", "second"] and (tmp_path / "two.txt").read_text().endswith("4.0")
    # What it was made from is still on record, so that the change is noticed later.
    with pytest.raises(ConfigError, match="generate.batch_size: 16 -> 3"):
        run_stages(changed, "second")
    # Only a finished stage is kept.
    (tmp_path / "two.txt").unlink()
    assert run_stages(experiment(tmp_path), "second", keep=("first", "second"))
    assert CALLS == ["first", "second", "second"]


def test_a_stage_that_lost_a_part_of_its_result_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = replace(TWO_STAGES[0], whole=f"{HERE}:whole")
    monkeypatch.setattr(pipeline, "STAGES", (looks, TWO_STAGES[1]))
    run_stages(experiment(tmp_path), "second")
    assert not run_stages(experiment(tmp_path), "second")
    (tmp_path / "one" / "lost").touch()
    assert run_stages(experiment(tmp_path), "second")
    assert CALLS == ["first", "second", "first"], "its result is the same, so what follows is as it was"


def test_a_run_can_be_moved(tmp_path: Path) -> None:
    run_stages(experiment(tmp_path / "a"), "second")
    (tmp_path / "a").rename(tmp_path / "b")
    assert not run_stages(experiment(tmp_path / "b"), "second")
    for path in (tmp_path / "b").rglob("*.json"):
        assert str(tmp_path) not in path.read_text()


def test_another_process_does_the_named_stage_alone_and_writes_no_record(tmp_path: Path) -> None:
    wanted = experiment(tmp_path, run={"seed": 7})
    join_stage({"stage": "first", "run": str(tmp_path), "experiment": wanted.model_dump(mode="json")})
    assert CALLS == ["first"] and (tmp_path / "one" / "out.txt").read_text() == "seed 7"
    assert [path.name for path in tmp_path.iterdir()] == ["one"]
