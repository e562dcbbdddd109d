"""Whole runs over data seeds and folds: other splits and nothing else, resumed, and never mixed up."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.errors import ConfigError, DataError, Stopped
from mvc.pipeline import read_record, run_stages
from mvc.repeats import REPEATS, run_repeats
from mvc.stopping import watching
from mvc.storage import read_json, write_json
from tests.mvc.pictures import fill


@pytest.fixture
def work(tmp_path: Path) -> Path:
    fill(tmp_path / "data", {"cat": 10, "dog": 10})
    return tmp_path


def experiment(work: Path, **data: Any) -> Experiment:
    return Experiment.model_validate(
        {
            "run": {"dir": str(work / "runs"), "seed": 5, "device": "cpu"},
            "data": {"path": str(work / "data"), **data},
            "captions": {"captioner": "template"},
        }
    )


def in_folder(work: Path, name: str, **data: Any) -> Experiment:
    one = experiment(work, **data)
    return one.model_copy(update={"run": one.run.model_copy(update={"dir": str(work / name)})})


def ids_of_test(run: Path) -> set[str]:
    return {record.id for record in load_index(run).split("test")}


def test_data_seeds_make_runs_with_other_splits(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_repeats(experiment(work, seed=7), 3, None, "data")
    runs = [work / "runs" / f"seed-{number}" for number in range(3)]
    assert read_json(work / "runs" / REPEATS) == {"kind": "seed", "values": [0, 1, 2]}
    for number, run in enumerate(runs):
        entry = read_record(run)["stages"]["data"]
        assert entry["state"] == "finished" and entry["dependencies"]["data.seed"] == 7 + number
        assert read_record(run)["seed"] == 5
    assert len({frozenset(ids_of_test(run)) for run in runs}) == 3
    text = capsys.readouterr().err
    assert [f"repeat {number} of 3: {runs[number - 1]}" in text for number in (1, 2, 3)] == [True] * 3
    # The first of them is what a plain run with this seed would be.
    run_stages(in_folder(work, "plain", seed=7), "data")
    assert (work / "plain/data/index.jsonl").read_bytes() == (runs[0] / "data/index.jsonl").read_bytes()


def test_folds_test_every_image_once(work: Path) -> None:
    assert run_repeats(experiment(work), None, 5, "data")
    folds = [ids_of_test(work / "runs" / f"fold-{number}") for number in range(5)]
    assert [len(ids) for ids in folds] == [4] * 5 and len(set().union(*folds)) == 20
    assert read_json(work / "runs" / REPEATS) == {"kind": "fold", "values": [0, 1, 2, 3, 4]}


def test_finished_repeats_are_skipped_and_more_seeds_are_added(work: Path) -> None:
    run_repeats(experiment(work), 2, None, "data")
    index = work / "runs" / "seed-0" / "data" / "index.jsonl"
    before = index.stat().st_mtime_ns
    assert not run_repeats(experiment(work), 2, None, "data")
    assert run_repeats(experiment(work), 3, None, "data")
    assert index.stat().st_mtime_ns == before and (work / "runs/seed-2/data/index.jsonl").exists()
    assert read_json(work / "runs" / REPEATS)["values"] == [0, 1, 2]


def test_later_stages_follow_once_all_data_are_in_order(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_repeats(experiment(work), 2, None, "caption")
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("repeat", "captions"))]
    first, second = (work / "runs" / f"seed-{number}" for number in range(2))
    assert [line for line in lines if line.startswith("repeat")] == [
        f"repeat 1 of 2: {first}: data",
        f"repeat 2 of 2: {second}: data",
        f"repeat 1 of 2: {first}",
        f"repeat 2 of 2: {second}",
    ]
    assert lines.index(f"repeat 2 of 2: {second}: data") < next(
        number for number, line in enumerate(lines) if line.startswith("captions")
    )
    assert (first / "captions.jsonl").exists() and (second / "captions.jsonl").exists()
    assert not (work / "runs" / "results").exists()


def test_what_one_fold_refuses_is_known_before_captions(work: Path) -> None:
    fill(work / "data", {"owl": 2}, first=50)
    with pytest.raises(DataError, match=r"data.folds=5 would leave fewer .* to: owl \(1\)"):
        run_repeats(experiment(work), None, 5, "caption")
    assert not list(work.glob("runs/*/captions.jsonl"))


def test_a_repeat_goes_on_after_a_failure(work: Path) -> None:
    """A folder that cannot be used stops the second repeat; once that is put right the first one is not done again."""
    run_repeats(experiment(work), 1, None, "data")
    (work / "data/cat/bad.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="files in data.path"):
        run_repeats(experiment(work), 2, None, "data")
    (work / "data/cat/bad.png").unlink()
    assert run_repeats(experiment(work), 2, None, "data")
    assert (work / "runs/seed-1/data/index.jsonl").exists()


def test_redo_reaches_the_repeats(work: Path) -> None:
    run_repeats(experiment(work), 2, None, "data")
    with pytest.raises(ConfigError, match="data.shots: None -> 3"):
        run_repeats(experiment(work, shots=3), 2, None, "data")
    assert run_repeats(experiment(work, shots=3), 2, None, "data", redo=True)
    assert len(load_index(work / "runs/seed-1").split("train")) == 6


def test_a_signal_stops_between_repeats(work: Path) -> None:
    with watching(), pytest.raises(Stopped, match="(?s)stopped by signal.*kept.*run the same command again"):
        os.kill(os.getpid(), signal.SIGTERM)
        run_repeats(experiment(work), 2, None, "data")
    assert run_repeats(experiment(work), 2, None, "data")


def test_what_cannot_be_repeated(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="both --data-seeds and --folds"):
        run_repeats(experiment(work), 3, 5, "data")
    for seeds, folds, text in ((0, None, "repeats nothing"), (None, None, "repeats nothing"), (None, 1, "--folds 1")):
        with pytest.raises(ConfigError, match=text):
            run_repeats(experiment(work), seeds, folds, "data")
    with pytest.raises(ConfigError, match="(?s)--folds 5, but data.folds=3.*leave data.folds"):
        run_repeats(experiment(work, folds=3), None, 5, "data")
    with pytest.raises(ConfigError, match="data.fold=1"):
        run_repeats(experiment(work, folds=5, fold=1), None, 5, "data")
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="2 processes together"):
        run_repeats(experiment(work), 3, None, "data")
    assert not (work / "runs").exists()


def test_a_plain_run_is_not_turned_into_repeats(work: Path) -> None:
    run_repeats(experiment(work), 1, None, "data")
    with pytest.raises(ConfigError, match="(?s)is a run by itself.*leave --data-seeds out"):
        run_repeats(in_folder(work, "runs/seed-0"), 2, None, "data")
    assert not (work / "runs/seed-0" / REPEATS).exists()


def test_other_repeats_in_the_folder_are_refused(work: Path) -> None:
    run_repeats(experiment(work), 3, None, "data")
    note = (work / "runs" / REPEATS).read_bytes()
    with pytest.raises(
        ConfigError, match="(?s)holds the repeats of --data-seeds 3, and --folds 3.*data-seeds 3 or more"
    ):
        run_repeats(experiment(work), None, 3, "data")
    with pytest.raises(ConfigError, match="and --data-seeds 2 was given"):
        run_repeats(experiment(work), 2, None, "data")
    assert (work / "runs" / REPEATS).read_bytes() == note and not list(work.glob("runs/fold-*"))
    folds = in_folder(work, "folds")
    run_repeats(folds, None, 2, "data")
    with pytest.raises(ConfigError, match="(?s)--folds 2, and --folds 3 was given.*do: give --folds 2, or"):
        run_repeats(folds, None, 3, "data")
    write_json(work / "folds" / REPEATS, {"kind": "month", "values": [1]})
    with pytest.raises(DataError, match="(?s)repeats.json cannot be used.*KeyError"):
        run_repeats(folds, None, 2, "data")
