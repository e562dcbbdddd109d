"""What a process does when another one has nothing for it, fails, or dies; and which launchers are refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvc import processes
from mvc.error_facts import error_facts, error_of
from mvc.errors import ConfigError, MvcError
from mvc.launch import _environment
from tests.two_processes import free_port

SCRIPT = """
import sys, time
import torch
from mvc import others, processes
from mvc.errors import DataError, MvcError

mode = sys.argv[1]

def work(rank):
    print("working", rank)
    torch.distributed.init_process_group("gloo")
    if rank == 1 and mode == "error":
        raise DataError("images/7.png is missing here")
    if rank == 1 and mode == "bug":
        raise KeyError("seven")
    if mode == "both":
        raise DataError("no image at all")
    if rank == 0 and mode == "first":
        raise DataError("the disk is full")
    torch.distributed.barrier()

def share(number):
    # A stage without collective calls, as generation is one.
    if mode == "silent":
        others.SILENCE, others._BEAT = 1.0, 1000.0
    with others.beating():
        if mode == "share error":
            raise DataError("images/7.png is missing here", do="find it")
        if mode == "share bug":
            raise KeyError("seven")
        while processes.published(f"go on/{number}") is None:
            others.require_first()
            time.sleep(0.05)
        processes.publish(f"done/{number}", number)

def watch(number):
    print("watching", number)
    if mode == "silent":
        others.SILENCE = 1.0
    known = others.Others()
    if mode in ("two stages", "released"):
        processes.publish(f"go on/{number}", True)
    if mode == "share first":
        raise DataError("the disk is full")
    while processes.published(f"done/{number}") is None:
        known.check()
        time.sleep(0.05)

def join(word):
    (share if "share" in word else work)(word["number"])

if processes.rank():
    raise SystemExit(processes.follow(join))
processes.gather()
code = 0
try:
    if mode == "leave":
        raise DataError("nothing to do here")
    if mode in ("join", "error", "bug", "both", "first", "two stages"):
        with processes.together({"number": 1}):
            work(0)
        assert not torch.distributed.is_initialized()
    if mode not in ("join", "error", "bug", "both", "first"):
        for number in (1, 2):
            with processes.together({"number": number, "share": True}):
                watch(number)
    if mode == "released":
        processes.release(0)
        raise DataError("too late for the others")
except MvcError as error:
    print(f"error: {error}", file=sys.stderr)
    code = error.exit_code
processes.release(code)
raise SystemExit(code)
"""


def run_two(tmp_path: Path, mode: str) -> list[tuple[int, str, str]]:
    """Exit code, output and errors of two processes of SCRIPT."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    port = str(free_port())
    started = []
    for rank in range(2):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **place, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), mode]
        started.append(subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True))
    said = [process.communicate(timeout=60) for process in started]
    return [(process.returncode, *texts) for process, texts in zip(started, said, strict=True)]


@pytest.mark.slow
def test_the_others_join_and_print_nothing(tmp_path: Path) -> None:
    first, second = run_two(tmp_path, "join")
    assert first == (0, "working 0\n", "")
    assert second == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(("mode", "text"), [("leave", "nothing to do here"), ("both", "no image at all")])
def test_the_others_leave_with_the_code_of_process_0_which_alone_says_why(tmp_path: Path, mode: str, text: str) -> None:
    first, second = run_two(tmp_path, mode)
    assert first[0] == second[0] == 3
    assert text in first[2] and second[1:] == ("", "")


@pytest.mark.slow
def test_an_error_of_one_process_is_shown_by_it_and_ends_process_0(tmp_path: Path) -> None:
    first, second = run_two(tmp_path, "error")
    assert second == (3, "", "error: images/7.png is missing here\n(process 1 of 2)\n")
    assert first[0] == 4 and "error: another of the 2 processes has ended" in first[2]
    assert "Traceback" not in first[2]


@pytest.mark.slow
def test_a_bug_in_one_process_shows_its_traceback(tmp_path: Path) -> None:
    first, second = run_two(tmp_path, "bug")
    assert second[0] == 1 and "KeyError: 'seven'" in second[2]
    assert first[0] == 4


@pytest.mark.slow
def test_an_error_of_process_0_ends_the_others(tmp_path: Path) -> None:
    first, second = run_two(tmp_path, "first")
    assert first[0] == 3 and "the disk is full" in first[2]
    assert second[0] != 0 and second[1] == "" and "Traceback" not in second[2]


@pytest.mark.slow
def test_several_stages_are_joined_one_after_the_other(tmp_path: Path) -> None:
    first, second = run_two(tmp_path, "two stages")
    assert first == (0, "working 0\nwatching 1\nwatching 2\n", "")
    assert second == (0, "", "")


@pytest.mark.slow
def test_the_others_leave_when_nothing_is_left_to_join(tmp_path: Path) -> None:
    first, second = run_two(tmp_path, "released")
    assert first[0] == 3 and "too late for the others" in first[2]
    assert second == (0, "", "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "code", "texts"),
    [
        ("share error", 3, ["images/7.png is missing here (process 1 of 2)", "find it"]),
        ("share bug", 4, ["error: process 1 of 2 failed", "why: KeyError: 'seven'", "Traceback", "in share"]),
        ("silent", 4, ["error: process 1 of 2 has given no sign of life for 1 s", "finished images are kept"]),
        ("share first", 3, ["error: the disk is full"]),
    ],
)
def test_what_ends_a_stage_without_collective_calls_is_said_by_process_0(
    tmp_path: Path, mode: str, code: int, texts: list[str]
) -> None:
    first, second = run_two(tmp_path, mode)
    assert first[0] == second[0] == code
    assert all(text in first[2] for text in texts), first[2]
    assert second[1:] == ("", "")


def test_alone_everything_is_as_without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    # Batch systems set some of the names for a single process.
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert (processes.several(), processes.rank(), processes.size()) == (False, 0, 1)
    processes.gather()
    with processes.together({"stage": "train"}):
        pass
    processes.release(0)


@pytest.mark.parametrize("kind", MvcError.__subclasses__())
def test_an_error_is_the_same_in_another_process(kind: type[MvcError]) -> None:
    error = error_of(json.loads(json.dumps(error_facts(kind("the disk is full", why="it is small", do="free it")))))
    assert type(error) is kind and str(error) == "the disk is full\nwhy: it is small\ndo: free it"
    named = error_of(error_facts(kind("the disk is full")), "process 1 of 2")
    assert named is not None and named.what == "the disk is full (process 1 of 2)"
    assert error_of(error_facts(KeyError("seven"))) is None


def test_each_process_gets_its_place_and_its_share_of_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = _environment(1, cores, 1234)
    assert environment["RANK"] == environment["LOCAL_RANK"] == "1"
    assert environment["WORLD_SIZE"] == environment["LOCAL_WORLD_SIZE"] == str(cores)
    assert environment["MASTER_PORT"] == "1234" and environment["OMP_NUM_THREADS"] == "1"
    assert _environment(0, 1, 1234)["OMP_NUM_THREADS"] == str(cores)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert _environment(1, cores, 1234)["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize(
    ("variables", "device", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, "cuda", "asks for DeepSpeed"),
        ({"ACCELERATE_USE_MEGATRON_LM": "true"}, "cuda", "asks for Megatron-LM"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, "cpu", "FSDP, and the device is cpu"),
        ({"ACCELERATE_USE_FSDP": "1"}, "cuda", "FSDP version 1"),
        ({"WORLD_SIZE": "2"}, "mps", "cannot share an mps device"),
        ({"WORLD_SIZE": "99", "LOCAL_WORLD_SIZE": "99"}, "cuda", "99 processes on this machine"),
    ],
)
def test_what_would_not_be_done_is_refused(
    variables: dict[str, str], device: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1", **variables}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        processes.require_supported(device)


def test_plain_processes_and_fsdp_2_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    processes.require_supported("cpu")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    processes.require_supported("cuda")
