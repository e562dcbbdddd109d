"""Rounds that workers share: same bytes whoever draws what, and what process 0 does about them."""

from __future__ import annotations

import json
import queue
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mvc.candidates import CANDIDATES, Pool, journals, pool_of, read_candidates
from mvc.errors import ConfigError, EnvironmentFault, Stopped
from mvc.generate import drawing as drawing_module
from mvc.generate import worker, workers
from mvc.generate.drawing import Work, batches_of, draw_missing
from mvc.generate.filter_stage import run_filter
from mvc.generate.inputs import Inputs, jobs_for, read_inputs, wanted_slots
from mvc.generate.jobs import Job
from mvc.generate.rounds import _Growth, drawing
from mvc.generate.stage import fill_pool, run_generate
from mvc.stopping import flag, watching
from mvc.storage import read_json_lines, write_json_lines
from mvc.synthetic import Candidate
from tests.generate.toy_run import BOTH, contents, experiment

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

STRICT = {"copy_bits": 64, "copy_similarity": 0.75}
"""So strict a filter for likeness that random pictures repeat each other, and are drawn up to three times."""


@pytest.fixture(scope="module")
def redrawn(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set that one process made, some images of it in the third attempt."""
    run = tmp_path_factory.mktemp("redrawn")
    shutil.copytree(prepared, run, dirs_exist_ok=True)
    run_generate(run, experiment(run, STRICT, sources=BOTH, preview=0))
    run_filter(run, experiment(run, STRICT, sources=BOTH))
    assert {row["attempt"] for row in read_json_lines(run / "synthetic" / CANDIDATES)} == {1, 2, 3}
    return run


@pytest.mark.parametrize("count", [2, 3])
def test_batches_shared_by_number_come_to_the_same_bytes(
    prepared: Path, redrawn: Path, copy_of: Callable[..., Path], count: int
) -> None:
    run, shares = copy_of(prepared), set[int]()
    inputs = read_inputs(run, experiment(run, STRICT, sources=BOTH))

    def draw_round(pool: Pool, rows: dict[str, Candidate], jobs: Sequence[Job]) -> None:
        for number in reversed(range(count)):
            # As a worker does it, by what the journals say.
            work = Work(inputs, pool, read_candidates(pool), number, count)
            before = len(work.rows)
            draw_missing(work, jobs)
            shares.update([number] if len(work.rows) > before else [])
            rows.update(work.rows)
        assert len(batches_of(jobs, 3)) < count or len(journals(pool)) == count

    slots = wanted_slots(inputs)
    fill_pool(inputs, pool_of(run), slots, 3, draw_round)
    assert shares == set(range(count))
    pool = contents(redrawn)["synthetic/candidates.jsonl"]
    assert contents(run)["synthetic/candidates.jsonl"] == pool
    (run / "synthetic/wanted.json").write_bytes((redrawn / "synthetic/wanted.json").read_bytes())
    run_filter(run, experiment(run, STRICT, sources=BOTH))
    assert contents(run) == contents(redrawn)


def test_a_worker_draws_its_share_of_each_round_and_loads_its_models_once(
    prepared: Path, copy_of: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, said, loaded = copy_of(prepared), list[Any](), list[str]()
    own = experiment(run, sources={"finetuned": 1.0})
    load_source = drawing_module.load_source

    def load(inputs: Inputs, source: str) -> Any:
        loaded.append(source)
        return load_source(inputs, source)

    monkeypatch.setattr(drawing_module, "load_source", load)
    inputs = read_inputs(run, own)
    slots, lines = wanted_slots(inputs), queue.Queue[str]()
    rounds = [jobs_for(inputs, slots, attempt) for attempt in (1, 2)]
    for number, jobs in enumerate(rounds):
        write_json_lines(run / f"{number}.jsonl", (vars(job) for job in jobs))
        told = {"jobs": f"{number}.jsonl", "pool": ["synthetic", "synthetic/train", "synthetic/rejected"], "due": [1]}
        lines.put(json.dumps(told))

    def speak(message: Any) -> None:
        said.append(message)
        if lines.empty():
            monkeypatch.setattr(flag, "signal", 15)

    order = {"run": str(run), "experiment": own.model_dump(mode="json"), "worker": 1, "workers": 2, "local": 1}
    worker._work(order, lines, speak)
    assert said == [{"done": len(jobs)} for jobs in rounds] and loaded == ["finetuned"]
    expected = [
        f"{job.class_name}/{job.id}.png" for jobs in rounds for batch in batches_of(jobs, 3)[1::2] for job in batch
    ]
    rows = read_json_lines(run / "synthetic/candidates.partial-1.jsonl")
    assert [row["file_name"] for row in rows] == expected
    assert not (run / "synthetic/candidates.partial.jsonl").exists()


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Puts a script in place of the workers, given what it does in a round."""

    def put(code: str) -> None:
        script = tmp_path / "stand_in.py"
        script.write_text(
            "import json, os, sys, time\norder = json.loads(sys.stdin.readline())\nfor line in sys.stdin:\n"
            f"    {code}\n    print(json.dumps({{'done': 1}}), flush=True)\n"
        )
        monkeypatch.setattr(workers, "COMMAND", (str(script),))

    return put


def test_a_row_that_nobody_has_written_is_missed(
    prepared: Path, copy_of: Callable[..., Path], stand_in: Callable[[str], None]
) -> None:
    stand_in("assert len(open(order['run'] + '/' + json.loads(line)['jobs']).readlines()) == 14")
    run = copy_of(prepared)
    with pytest.raises(
        EnvironmentFault, match=r"14 of 14 images were drawn, but .*synthetic has no row of cat/"
    ) as caught:
        run_generate(run, experiment(run, sources=BOTH, num_processes=2))
    assert "why: somebody removed it" in str(caught.value)
    assert not list(run.rglob(".tmp-*"))


def test_a_finished_pool_starts_no_worker(
    finished: Path, copy_of: Callable[..., Path], stand_in: Callable[[str], None]
) -> None:
    stand_in("raise SystemExit")
    run = copy_of(finished)
    run_generate(run, experiment(run, sources=BOTH, num_processes=2))
    assert contents(run) == contents(finished)


def test_a_stop_reaches_the_workers(
    prepared: Path, copy_of: Callable[..., Path], stand_in: Callable[[str], None]
) -> None:
    stand_in("order['worker'] or os.kill(os.getppid(), 15); time.sleep(60)")
    run = copy_of(prepared)
    with pytest.raises(Stopped, match=r"stopped by signal 15; 0 of 14 images are kept"), watching():
        run_generate(run, experiment(run, sources=BOTH, num_processes=2))
    assert not list(run.rglob(".tmp-*")) and not (run / "synthetic" / CANDIDATES).exists()


def test_processes_cannot_share_an_mps_device(prepared: Path, copy_of: Callable[..., Path]) -> None:
    run = copy_of(prepared)
    inputs = replace(read_inputs(run, experiment(run, num_processes=2)), device=torch.device("mps"))
    with pytest.raises(ConfigError, match="several processes cannot share an mps device"), drawing(inputs):
        pytest.fail("it began")


def test_progress_counts_the_rows_that_all_journals_gain(tmp_path: Path) -> None:
    pool = Pool(tmp_path, tmp_path / "train", tmp_path / "rejected")
    first, second = tmp_path / "candidates.partial.jsonl", tmp_path / "candidates.partial-1.jsonl"
    first.write_text("{}\n{}\n")
    growth = _Growth(pool)
    assert growth.rows() == 0
    second.write_text('{"a": 1}\n{"b"')
    first.write_text("{}\n{}\n{}\n{}\n")
    assert growth.rows() == 3
    # A worker that is started again removes the torn tail first.
    second.write_text('{"a": 1}\n{"b": 2}\n{"c": 3}\n')
    assert (growth.rows(), growth.rows()) == (2, 0)
