"""The crew with stand-in workers: starting again, giving up, errors, stops; and how a real worker begins and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mvc import processes
from mvc.config import Experiment
from mvc.errors import DataError, EnvironmentFault, NumericError
from mvc.generate import workers
from mvc.generate.workers import RESTARTS, Crew, Round

STAND_IN = """
import json, os, signal, sys, time

order = json.loads(sys.stdin.readline())
for line in sys.stdin:
    here, number = "{here}", order["worker"]
    note = lambda text: print(text, file=open(f"{here}/{number}.txt", "a"), flush=True)
    noted = lambda: len(open(f"{here}/{number}.txt").readlines())
    exec(json.loads(line)["jobs"])
    print(json.dumps({"done": 1}), flush=True)
"""
"""A worker that does what the test writes in place of the name of a file of jobs."""


@pytest.fixture
def crew_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Crew]:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.replace("{here}", str(tmp_path)))
    monkeypatch.setattr(workers, "COMMAND", (str(script),))

    def make(count: int, rank: int = 0, size: int = 1) -> Crew:
        experiment = Experiment.model_validate({"generate": {"num_processes": count}})
        return Crew(tmp_path / "run", experiment, rank, size)

    return make


def do(crew: Crew, code: str, *due: int) -> None:
    """Let some workers do something and wait until they have."""
    crew.begin(Round(code, ("a", "b", "c"), list(due or range(crew.total))))
    wait(crew.is_done)


def wait(done: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it takes too long"
        time.sleep(0.01)


def noted(folder: Path) -> dict[str, list[str]]:
    return {path.stem: path.read_text().split() for path in sorted(folder.glob("*.txt"))}


def lives(process: int) -> bool:
    return Path(f"/proc/{process}").exists()


def test_workers_stay_alive_over_rounds_and_end_with_the_crew(crew_of: Callable[..., Crew], tmp_path: Path) -> None:
    with crew_of(3) as crew:
        do(crew, "note(os.getpid())", 0, 2)
        assert sorted(noted(tmp_path)) == ["0", "2"]  # who has nothing to do is not started
        do(crew, "note(os.getpid())")
        first, second, third = noted(tmp_path).values()
        assert first[0] == first[1] and third[0] == third[1] and len(second) == 1
        assert all(lives(int(process)) for process in (first[0], second[0], third[0]))
    assert not any(lives(int(process)) for process in (first[0], second[0], third[0]))


def test_each_worker_gets_its_place_and_its_share_of_the_cores(
    crew_of: Callable[..., Crew], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two workers in each of three processes of a launcher, two of which run on this machine; this is the second."""
    place = {"RANK": 2, "LOCAL_RANK": 1, "WORLD_SIZE": 3, "LOCAL_WORLD_SIZE": 2, "MASTER_ADDR": "a", "MASTER_PORT": 1}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("mvc.launch.share_of_cores", lambda number: 100 // number)
    code = (
        "note(order['workers']), note(order['local']), note(os.environ['OMP_NUM_THREADS']), note('RANK' in os.environ)"
    )
    with crew_of(2, 2, 3) as crew:
        assert crew.total == 6
        do(crew, code)
    assert noted(tmp_path) == {"4": ["6", "2", "25", "False"], "5": ["6", "3", "25", "False"]}
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with crew_of(1) as crew:
        do(crew, code)
    assert noted(tmp_path)["0"] == ["1", "1", "7", "False"]
    assert processes.several()


def test_a_worker_that_dies_is_started_again_and_the_others_go_on(
    crew_of: Callable[..., Crew], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "note(os.getpid()); number == 1 and noted() <= 3 and os.kill(os.getpid(), (9, 15, 11)[noted() - 1])"
    with crew_of(2) as crew:
        do(crew, code)
        first, second = noted(tmp_path).values()
        assert len(first) == 1 and len(set(second)) == 4
        do(crew, code)
        assert noted(tmp_path)["1"] == [*second, second[-1]]
    said = capfd.readouterr().err.splitlines()
    assert said == [
        "generate: worker 2 of 2 was ended by signal 9 (SIGKILL); it is started again (1 of 3)",
        "generate: worker 2 of 2 was ended by signal 15 (SIGTERM); it is started again (2 of 3)",
        "generate: worker 2 of 2 was ended by signal 11 (SIGSEGV); it is started again (3 of 3)",
    ]


def test_a_worker_that_died_while_it_waited_is_started_for_the_next_round(
    crew_of: Callable[..., Crew], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with crew_of(1) as crew:
        do(crew, "note(os.getpid())")
        process = int(noted(tmp_path)["0"][0])
        os.kill(process, signal.SIGKILL)
        wait(lambda: Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
        do(crew, "note(os.getpid())")
    assert len(set(noted(tmp_path)["0"])) == 2 and capfd.readouterr().err == ""


def test_a_worker_that_dies_too_often_fails_the_stage_once_the_others_have_done_their_part(
    crew_of: Callable[..., Crew], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = "note('x'); number == 0 and {}['seven']; time.sleep(1.5 if number else 0); note('done')"
    message = r"worker 1 of 2 died 4 times; the last time it ended with code 1(.|\n)*smaller generate.num_processes"
    with pytest.raises(EnvironmentFault, match=message), crew_of(2) as crew:
        do(crew, code)
    assert noted(tmp_path) == {"0": ["x"] * (RESTARTS + 1), "1": ["x", "done"]}
    # The same words four times say no more than once.
    assert capfd.readouterr().err.count("KeyError: 'seven'") == 1


def test_the_error_of_a_worker_ends_the_stage_with_its_words(
    crew_of: Callable[..., Crew], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    error = {"kind": "NumericError", "what": "cat/7.png is not finite", "why": "the VAE", "do": "take another"}
    code = (
        f"if number: note('begun'); time.sleep(0.5); print(json.dumps({{'error': {error}}}), flush=True); os._exit(5)\n"
        "signal.signal(15, lambda *_: (note('asked to stop'), os._exit(143))); note(os.getpid()); time.sleep(60)"
    )
    with pytest.raises(NumericError) as caught, crew_of(2) as crew:
        do(crew, code)
    assert str(caught.value) == "cat/7.png is not finite\nwhy: the VAE\ndo: take another"
    # The other one could finish its batch.
    assert noted(tmp_path)["0"][1:] == ["asked", "to", "stop"] and not lives(int(noted(tmp_path)["0"][0]))
    assert capfd.readouterr().err == ""


def test_a_stop_waits_for_the_batch_of_every_worker(crew_of: Callable[..., Crew], tmp_path: Path) -> None:
    code = "signal.signal(15, lambda *_: (time.sleep(1), note('saved'), os._exit(143))); note('begun'); time.sleep(60)"
    with crew_of(2) as crew:
        crew.begin(Round(code, ("a", "b", "c"), [0, 1]))
        wait(lambda: len(noted(tmp_path)) == 2)
        crew.stop()
        assert noted(tmp_path) == {"0": ["begun", "saved"], "1": ["begun", "saved"]}


def test_leaving_without_an_error_of_ours_waits_for_nobody(
    crew_of: Callable[..., Crew], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second Ctrl-C, for one: workers that don't hear that nobody is left to speak to are ended."""
    monkeypatch.setattr(workers, "_KILL", 0.5)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt), crew_of(1) as crew:
        crew.begin(Round("note(os.getpid()); time.sleep(60)", ("a", "b", "c"), [0]))
        wait(lambda: bool(noted(tmp_path)))
        raise KeyboardInterrupt
    assert not lives(int(noted(tmp_path)["0"][0])) and time.monotonic() - start < 30


def test_a_worker_that_cannot_read_its_round_says_so(crew_of: Callable[..., Crew]) -> None:
    error = {"kind": "DataError", "what": "captions.jsonl is missing", "why": "", "do": ""}
    with pytest.raises(DataError, match=r"^captions.jsonl is missing$"), crew_of(1) as crew:
        do(crew, f"print(json.dumps({{'error': {error}}}), flush=True); os._exit(3)")


def real_worker(said: bytes, close: bool) -> tuple[int | None, bytes, bytes]:
    """Exit code, output and errors of a worker that is told something."""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, *workers.COMMAND], stdin=pipe, stdout=pipe, stderr=pipe) as process:
        assert process.stdin is not None and process.stdout is not None and process.stderr is not None
        process.stdin.write(said)
        process.stdin.flush()
        if close:
            process.stdin.close()
        code = process.wait(60)
        return code, process.stdout.read(), process.stderr.read()


def test_a_worker_to_which_nobody_speaks_any_more_ends() -> None:
    assert real_worker(b"", close=True) == (0, b"", b"")


def test_a_fault_of_a_worker_is_shown_and_ends_it() -> None:
    code, output, errors = real_worker(b"no order\n", close=False)
    assert (code, output) == (1, b"") and b"JSONDecodeError" in errors
