"""A whole comparison of texts: what is trained on what, nothing twice, several processes, stops, and the table."""

from __future__ import annotations

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from rich.console import Console
from typer.testing import CliRunner

from mvc.classify.table import read_table
from mvc.classify.text_stage import prepare, print_texts, run_texts, train_unclaimed
from mvc.classify.text_tasks import TextTask, tasks_of
from mvc.cli import app
from mvc.config_file import to_yaml
from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.progress import meter
from mvc.storage import files_like, read_json

from .text_runs import experiment, write_texts
from .text_toys import save_bert


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bert(tmp_path_factory.mktemp("bert") / "model")


@pytest.fixture(scope="module")
def finished(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison by TF-IDF: 2 arms, 2 data seeds, 2 model seeds."""
    run = tmp_path_factory.mktemp("finished") / "run"
    run_texts(run, experiment(folder, run, model="tfidf"))
    return run


def rows_of(run: Path) -> dict[str, dict[str, object]]:
    return {path.stem: read_json(path) for path in files_like(run / "results", "*-seed*.json")}


def test_arms_are_trained_on_the_real_texts_and_their_augmentations(folder: Path, tmp_path: Path) -> None:
    own = experiment(folder, tmp_path, model="tfidf")
    comparison = prepare(tmp_path, own)
    real, count = comparison.training("real", 0)
    more, of_those = comparison.training("eda", 0)
    assert len(real) == count == of_those == 8 and sorted(real.labels) == [0] * 4 + [1] * 4
    assert more.texts[:8] == real.texts and len(more) == 8 * 4
    place = {own: label for own, label in zip(real.ids, real.labels, strict=True)}
    assert all(place[own] == label for own, label in zip(more.ids, more.labels, strict=True))
    assert comparison.subset(1).ids != real.ids and comparison.training("eda", 1)[0].ids != more.ids
    assert set(comparison.shifted) == {"eda"} and len(comparison.shifted["eda"].texts) == 20


def test_the_table_and_the_verdict_hold_what_the_rows_say(finished: Path) -> None:
    rows = rows_of(finished)
    assert sorted(rows) == [f"{arm}-data{d}-seed{s}" for arm in ("eda", "real") for d in (0, 1) for s in (0, 1)]
    table = {row["arm"]: row for row in read_table(finished / "results" / "table.csv")}
    for arm in ("real", "eda"):
        values = [rows[f"{arm}-data{d}-seed{s}"]["test"]["accuracy"] for d in (0, 1) for s in (0, 1)]  # type: ignore[index]
        assert [float(value) for value in table[arm]["values"].split()] == pytest.approx(values)
        assert float(table[arm]["mean"]) == pytest.approx(sum(values) / 4, abs=1e-5)
        assert table[arm]["seeds"] == "2"  # data seeds are the samples
    assert float(table["eda"]["ratio"]) == 3.0 and table["real"]["affinity"] == "0"
    affinities = [rows[f"real-data{d}-seed{s}"]["affinity"]["eda"] for d in (0, 1) for s in (0, 1)]  # type: ignore[index]
    assert float(table["eda"]["affinity"]) == pytest.approx(sum(affinities) / 4)
    verdict = read_json(finished / "results" / "verdict.json")
    assert verdict["best_arm"] == "eda" and verdict["test_set"].startswith("40 test texts")
    shown = Console(width=120, file=io.StringIO(), record=True)
    print_texts(finished, shown)
    text = shown.export_text()
    assert "verdict: " in text and "augmentations of the training texts" in text and "seconds each" in text


def test_nothing_is_made_twice_and_a_new_arm_is_added(finished: Path, folder: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in files_like(run / "results", "*-seed*.json")}
    run_texts(run, experiment(folder, run, model="tfidf"))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    more = experiment(folder, run, model="tfidf", seeds=[0, 1, 2])
    run_texts(run, more)
    assert {path: path.stat().st_mtime_ns for path in before} == before and len(rows_of(run)) == 12
    run_texts(run, experiment(folder, run, {"shots": 5}, model="tfidf"))
    assert all(path.stat().st_mtime_ns != when for path, when in before.items())


def test_a_network_is_trained_the_same_again_and_touches_no_global_state(
    folder: Path, bert: Path, tmp_path: Path
) -> None:
    arms = ["real", "eda", "tmix", "ssmix"]
    found = []
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))
        state = torch.get_rng_state()
        run = tmp_path / name
        run_texts(run, experiment(folder, run, {"seeds": 1}, model=str(bert), arms=arms, seeds=1))
        assert torch.equal(torch.get_rng_state(), state)
        found.append({stem: {k: v for k, v in row.items() if k != "seconds"} for stem, row in rows_of(run).items()})
    assert found[0] == found[1] and len(found[0]) == 4
    row = found[0]["tmix-data0-seed0"]
    assert [step for step, _, _ in row["curve"]] == [3, 6] and row["new_texts"] == 0  # type: ignore[misc, attr-defined]


def test_pairs_of_texts(bert: Path, tmp_path: Path) -> None:
    folder = write_texts(tmp_path / "pairs", pairs=True)
    data = {"text_columns": ["text", "more"], "seeds": 1}
    run_texts(tmp_path / "run", experiment(folder, tmp_path / "run", data, model=str(bert), seeds=1))
    assert {row["real_texts"] for row in rows_of(tmp_path / "run").values()} == {8}


def test_two_processes_make_the_same_rows(finished: Path, folder: Path, tmp_path: Path) -> None:
    run_texts(tmp_path, experiment(folder, tmp_path, model="tfidf", jobs=2))
    drop = ("seconds",)
    both = [
        {stem: {k: v for k, v in row.items() if k not in drop} for stem, row in rows_of(run).items()}
        for run in (finished, tmp_path)
    ]
    assert both[0] == both[1]


def test_what_another_process_has_claimed_is_left_to_it(folder: Path, tmp_path: Path) -> None:
    from filelock import FileLock

    comparison = prepare(tmp_path, experiment(folder, tmp_path, {"seeds": 1}, model="tfidf"))
    tasks: list[TextTask] = tasks_of(comparison, [0])
    lock = tmp_path / "cache" / "text_classifiers" / f"{tasks[1].path.stem}.lock"
    lock.parent.mkdir(parents=True)
    with meter("test", 4, "steps") as shown:
        with FileLock(lock):
            assert train_unclaimed(tasks, shown) == [tasks[1]]
        assert train_unclaimed(tasks, shown) == [] and all(task.row() for task in tasks)


def test_what_is_lacking_is_said_before_anything_is_made(folder: Path, bert: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for error, message, own in (
        (ConfigError, "arm tmix needs a network", experiment(folder, run, model="tfidf", arms=["real", "tmix"])),
        (DataError, "class 'bad' has 12 training texts, and data.shots is 13", experiment(folder, run, {"shots": 13})),
        (EnvironmentFault, "cannot load the text classifier", experiment(folder, run, model=str(tmp_path / "none"))),
        (ConfigError, "chat.base_url", _chat(folder, run)),
    ):
        with pytest.raises(error, match=message):
            run_texts(run, own)
        assert not (run / "augmented").exists() and not (run / "results").exists()
    (run / "run.json").write_text("{}")
    with pytest.raises(ConfigError, match="is a run of images"):
        run_texts(run, experiment(folder, run))


def _chat(folder: Path, run: Path):  # type: ignore[no-untyped-def]
    own = experiment(folder, run).model_dump()
    own["augmentations"]["chat"] = {"method": "rewriting", "rewriting": {"rewriter": "chat"}}
    own["classify"]["arms"] = ["real", "chat"]
    return type(experiment(folder, run)).model_validate(own)


def test_the_command_from_a_file_and_from_its_run_folder(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "moods.yaml"
    path.write_text(to_yaml(experiment(folder, tmp_path / "run", {"seeds": 1}, model="tfidf", seeds=1)))
    done = CliRunner().invoke(app, ["texts", str(path)])
    assert done.exit_code == 0, done.output
    assert "verdict: not told" in done.stdout and "results: " in done.stdout
    again = CliRunner().invoke(app, ["texts", str(tmp_path / "run")])
    assert again.exit_code == 0 and "2 of 2 classifiers were trained before" in again.stderr
    shown = CliRunner().invoke(app, ["texts", str(path), "--jobs", "3", "--dry-run"])
    assert yaml.safe_load(shown.stdout)["classify"]["jobs"] == 3


@pytest.mark.slow
def test_a_stopped_and_a_killed_comparison_go_on_where_they_were(folder: Path, bert: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    settings = {"model": str(bert), "max_train_steps": 40, "evaluation_steps": 10}
    run_texts(whole, experiment(folder, whole, **settings))
    run = tmp_path / "run"
    path = tmp_path / "moods.yaml"
    path.write_text(to_yaml(experiment(folder, run, **settings)))
    for ending, code in ((signal.SIGTERM, 143), (signal.SIGKILL, -9)):
        before = len(rows_of(run)) if run.exists() else 0
        with subprocess.Popen([sys.executable, "-m", "mvc", "texts", str(path)], stderr=subprocess.PIPE) as process:
            end = time.monotonic() + 120
            while len(rows_of(run)) <= before and time.monotonic() < end:
                time.sleep(0.05)
            process.send_signal(ending)
            assert process.wait(60) == code
        assert before < len(rows_of(run)) < 8 and not (run / "results" / "verdict.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in files_like(run / "results", "*-seed*.json")}
    done = subprocess.run([sys.executable, "-m", "mvc", "texts", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert (run / "results" / "table.csv").read_bytes() == (whole / "results" / "table.csv").read_bytes()
    assert json.loads((run / "results" / "verdict.json").read_text()) == read_json(whole / "results" / "verdict.json")
