"""The command in several processes: same weights as one, and every way in which such a run can end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from mvc.storage import read_json, read_json_lines, verified_manifest
from tests.train.small_run import experiment_for, write_run
from tests.two_processes import free_port

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def write_experiment(folder: Path, **train: Any) -> Path:
    """Images, a toy base model and experiment.yaml; the run will be folder/work."""
    run = write_run(folder, images=5)
    experiment_for(run)
    short = {
        "max_train_steps": 6,
        "train_batch_size": 4,
        "checkpointing_steps": 2,
        "lr_warmup_steps": 2,
        # AdamW divides a gradient by its own size: where that is no larger than the rounding of a sum (one weight of
        # 52,292 here), the default of 1e-8 turns another order of the same sum into a step of the learning rate's size.
        "adam_epsilon": 1e-6,
    }
    content = {
        "run": {"device": "cpu", "dir": str(folder / "work")},
        "data": {"path": str(folder / "images")},
        "captions": {"captioner": "template"},
        "model": {"base": str(folder / "base")},
        "train": {**short, **train},
    }
    path = folder / "toy.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(launcher: str, experiment: Path, *changes: str) -> subprocess.Popen[str]:
    """`mvc train` in one process, or in two by our own launcher or by torchrun."""
    command = [sys.executable, "-m", "mvc", "train", str(experiment), *changes]
    if launcher == "own":
        command += ["--num-processes", "2"]
    if launcher == "torchrun":
        # `accelerate launch --cpu --num_processes 2` silently starts one process.
        torchrun = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
        command[1:2] = [*torchrun, "-m"]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=experiment.parent, env=ENVIRONMENT
    )


def finish(process: subprocess.Popen[str], seconds: float = 120) -> tuple[int, str]:
    """Exit code and what was said."""
    try:
        _, said = process.communicate(timeout=seconds)
    finally:
        process.kill()
    return process.returncode, said


def wait_for_steps(run: Path, process: subprocess.Popen[str], step: int = 0) -> None:
    """Until the log has rows behind this step."""
    log, end = run / "logs" / "train.jsonl", time.monotonic() + 120
    while not any(row["step"] > step for row in read_json_lines(log, torn_tail=True)):
        assert process.poll() is None, finish(process)
        assert time.monotonic() < end
        time.sleep(0.05)


def process_of(rank: int, experiment: Path) -> int:
    """Id of one of the processes that a launcher has started for an experiment."""
    for folder in Path("/proc").iterdir():
        try:
            place = (folder / "environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in place and str(experiment) in (folder / "cmdline").read_text():
                return int(folder.name)
        except (OSError, ValueError):
            continue
    raise AssertionError(f"no process {rank} of {experiment}")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(run / "model/unet/diffusion_pytorch_model.safetensors"))


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process that the others are compared with."""
    folder = tmp_path_factory.mktemp("alone")
    code, said = finish(start("one", write_experiment(folder)))
    assert code == 0, said
    return folder / "work"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_two_gloo_processes_equal_one(launcher: str, alone: Path, tmp_path: Path) -> None:
    code, said = finish(start(launcher, write_experiment(tmp_path)))
    assert code == 0, said
    for line in ("data: uses", "fine-tuning: 6/6 steps", "fine-tuned for 6 steps"):
        assert said.count(line) == 1, said
    run = tmp_path / "work"
    losses = [[row["loss"] for row in read_json_lines(place / "logs/train.jsonl")] for place in (alone, run)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    expected = weights(alone)
    for name, value in weights(run).items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-5, msg=name)
    stages = read_json(run / "run.json")["stages"]
    assert {name: entry["state"] for name, entry in stages.items()} == dict.fromkeys(
        ("data", "caption", "train"), "finished"
    )
    again = finish(start(launcher, tmp_path / "toy.yaml"))
    assert again[0] == 0 and "everything was done before" in again[1]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["own", "torchrun"])
def test_one_process_goes_on_with_what_two_had_saved_at_a_signal(launcher: str, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, max_train_steps=2000, checkpointing_steps=500)
    run = tmp_path / "work"
    process = start(launcher, experiment)
    wait_for_steps(run, process)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process, 60)
    assert code == 143 if launcher == "own" else code != 0
    assert said.count("error: stopped by a signal; the checkpoint of step") == 1, said
    (saved,) = (run / "checkpoints").iterdir()
    manifest = verified_manifest(saved)
    assert manifest is not None and manifest["step"] >= 1
    process = start("one", experiment)
    wait_for_steps(run, process, manifest["step"])
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 143 and f"goes on after step {manifest['step']} of 2000" in said
    rows = read_json_lines(run / "logs/train.jsonl")
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))


@pytest.mark.slow
@pytest.mark.parametrize(("launcher", "rank"), [("own", 0), ("own", 1), ("torchrun", 1)])
def test_a_killed_process_ends_the_other_within_a_minute(launcher: str, rank: int, tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, max_train_steps=5000, checkpointing_steps=500)
    process = start(launcher, experiment)
    wait_for_steps(tmp_path / "work", process)
    other = process_of(1 - rank, experiment)
    os.kill(process_of(rank, experiment), signal.SIGKILL)
    code, said = finish(process, 60)
    assert not Path(f"/proc/{other}").exists()
    if rank:
        assert "error: another of the 2 processes has ended" in said
    elif launcher == "own":
        assert "error: process 0 of 2 was ended by signal 9" in said
    assert code == (4 if launcher == "own" else 1)
    # The kernel has released the lock, and a later start goes on.
    code, said = finish(start("one", experiment, "train.max_train_steps=2", "--redo"))
    assert code == 0, said


@pytest.mark.slow
def test_the_processes_of_a_killed_launcher_save_and_stop(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, max_train_steps=5000, checkpointing_steps=500)
    process = start("own", experiment)
    wait_for_steps(tmp_path / "work", process)
    children = [process_of(rank, experiment) for rank in range(2)]
    process.kill()
    finish(process, 60)
    end = time.monotonic() + 10
    while any(Path(f"/proc/{child}").exists() for child in children):
        assert time.monotonic() < end
        time.sleep(0.1)
    (saved,) = (tmp_path / "work/checkpoints").iterdir()
    assert verified_manifest(saved) is not None


@pytest.mark.slow
def test_errors_are_said_once(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, train_batch_size=1)
    code, said = finish(start("own", experiment))
    assert code == 2, said
    assert said.count("error:") == 1 and "less than one sample for each of 2 processes" in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_of_four_starts_at_once_one_works(tmp_path: Path) -> None:
    experiment = write_experiment(tmp_path, max_train_steps=5000, checkpointing_steps=5000)
    for number in range(3):
        run = tmp_path / f"run{number}"
        starts = [start("own" if number == 0 else "one", experiment, f"run.dir={run}") for _ in range(4)]
        end = time.monotonic() + 120
        while sum(process.poll() is not None for process in starts) < 3 and time.monotonic() < end:
            time.sleep(0.1)
        (winner,) = (process for process in starts if process.poll() is None)
        wait_for_steps(run, winner)
        winner.send_signal(signal.SIGTERM)
        code, said = finish(winner)
        assert code == 143 and "the checkpoint of step" in said
        for process in starts:
            if process is not winner:
                code, said = finish(process)
                assert code == 4 and f"error: {run} is in use by process" in said, said
        assert read_json(run / "run.json")["stages"]["data"]["state"] == "finished"


def test_a_wrong_key_is_said_before_anything_starts(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mvc", "train", "digits", "train.learnign_rate=1", "--num-processes", "2"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=60)
    assert done.returncode == 2 and done.stderr.count("did you mean 'train.learning_rate'?") == 1
    assert list(tmp_path.iterdir()) == []
