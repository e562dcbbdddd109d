"""Killed at chosen moments, a training comes to the bytes of an uninterrupted one; see crash.py and drill.py."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from mvc.randomness import generator
from tests.train.crash import TRAINED_ON, Point
from tests.train.drill import LORA, Drill, Ground, finished, frozen, require_equal, verified, waited_for_stop

SAVE, APPEND, RENAME = "mvc.train.checkpoints.save_file", "mvc.train.log.append_json_lines", "os.replace"
POINTS = {
    "before the embeddings are there": Point(RENAME, "*/embeddings.safetensors"),
    "the embeddings are there": Point(RENAME, "*/embeddings.safetensors", "after"),
    "before the latents are there": Point(RENAME, "*/cache/latents/*"),
    "the latents are there": Point(RENAME, "*/cache/latents/*", "after"),
    "the first look is written": Point(APPEND, "*/validation.jsonl", "after"),
    "half a validation row": Point(APPEND, "*/validation.jsonl", "half", 2),
    "half of the log's rows": Point(APPEND, "*/train.jsonl", "half"),
    "in the weights": Point(SAVE, "*/unet.safetensors", "half", 2),
    "after the weights": Point(SAVE, "*/unet.safetensors", "after"),
    "after the average": Point(SAVE, "*/ema.safetensors", "after"),
    "after the optimizer": Point(SAVE, "*/optimizer.safetensors", "after"),
    "before the manifest": Point(RENAME, "*/checkpoints/.tmp-*/manifest.json"),
    "before the rename": Point(RENAME, "*/checkpoints/step-*"),
    "after the rename": Point(RENAME, "*/checkpoints/step-*", "after"),
    "while the log is cut": Point(RENAME, "*/logs/train.jsonl"),
    "half of the old one removed": Point("shutil.rmtree", "*/.tmp-old-step-*", "half", 2),
    "in the model's folder": Point("shutil.copyfile", "*/vae/*"),
    "before the model is there": Point(RENAME, "*/model"),
    "the model is there": Point(RENAME, "*/model", "after"),
}
"""In the order in which one training meets them, each when it goes on after the one before."""


def test_one_training_survives_a_kill_at_every_named_moment(ground: Ground) -> None:
    drill, seen = ground.drill(), False
    for name, point in POINTS.items():
        assert drill.train(point) == -signal.SIGKILL, f"{name}\n{drill.said}"
        whole = verified(drill.run)
        seen = seen or bool(whole)
        assert bool(whole) == seen, f"no checkpoint is whole after: {name}"
    assert seen and drill.train() == 0, drill.said
    require_equal(drill, ground.whole())


def test_a_kill_between_micro_steps_takes_no_sample_twice(ground: Ground) -> None:
    settings = ("train.gradient_accumulation_steps=3",)
    drill = ground.drill(*settings)
    # Three calls a step: this is the second one of the third step.
    assert drill.train(Point(TRAINED_ON, number=8)) == -signal.SIGKILL
    assert verified(drill.run) == ["step-000002"]
    assert drill.train() == 0
    require_equal(drill, ground.whole(*settings))


def test_the_second_of_two_starts_is_refused_by_name_until_the_first_is_gone(ground: Ground) -> None:
    drill = ground.drill()
    first = drill.start(Point(TRAINED_ON, number=5, signals=[signal.SIGSTOP]), until_training=True)
    try:
        waited_for_stop(first)
        assert first.exitcode is None, drill.said
        start = time.monotonic()
        command = [sys.executable, "-m", "mvc", "train", "drill.yaml", f"run.dir={drill.run.name}"]
        second = subprocess.run(command, cwd=ground.folder, capture_output=True, text=True, check=False)
        assert second.returncode == 4
        assert f"{drill.run.name} is in use by process {first.pid} on {os.uname().nodename}" in second.stderr
        assert time.monotonic() - start < 20.0  # it doesn't wait
    finally:
        first.kill()  # a stopped process would keep these tests from ending
    assert finished(first) == -signal.SIGKILL
    assert drill.train() == 0
    require_equal(drill, ground.whole())


@pytest.mark.slow
@pytest.mark.parametrize("name", POINTS)
def test_every_named_moment_of_a_lora_by_itself(ground: Ground, name: str) -> None:
    drill, point = ground.drill(*LORA), POINTS[name]
    if name == "while the log is cut":  # which is done when a training goes on
        assert drill.train(POINTS["after the average"]) == -signal.SIGKILL
    assert drill.train(point) == -signal.SIGKILL, drill.said
    assert drill.train() == 0, drill.said
    require_equal(drill, ground.whole(*LORA))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_kill_before_and_after_every_single_rename(ground: Ground) -> None:
    """Whatever a run writes appears by a rename, so these are all the states that a reader can meet."""
    settings, number, seen = ("train.publish=best",), 0, False
    while True:
        number += 1
        drill = ground.drill(*settings)
        point = Point(RENAME, "*", "before" if number % 2 else "after", (number + 1) // 2)
        code = drill.train(point)
        if code == 0:
            break
        assert code == -signal.SIGKILL, drill.said
        seen = seen or bool(verified(drill.run))
        assert bool(verified(drill.run)) == seen, f"rename {number}\n{drill.said}"
        assert drill.train() == 0, drill.said
        require_equal(drill, ground.whole(*settings))
    assert seen and number > 50


def kill_at_random(drill: Drill, seconds: float) -> bool:
    """Kill a training so long after it began, looking at its checkpoints all the while; False if it was done before."""
    process = drill.start(until_training=True)
    end, seen = time.monotonic() + seconds, bool(verified(drill.run))
    while time.monotonic() < end and process.exitcode is None:
        with frozen(process):
            whole = bool(verified(drill.run))
        assert whole >= seen, f"no checkpoint was whole for a moment\n{drill.said}"
        seen = whole
        time.sleep(0.002)
    process.kill()
    code = finished(process)
    assert code in (0, -signal.SIGKILL), drill.said
    return code != 0


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("method", [(), LORA], ids=["full", "lora"])
def test_kills_at_any_moment_lose_nothing(ground: Ground, method: tuple[str, ...]) -> None:
    settings = (*method, "train.max_train_steps=30", "train.checkpointing_steps=3")
    whole = ground.whole(*settings)
    first = ground.drill(*settings)
    process = first.start(until_training=True)
    begun = time.monotonic()
    assert finished(process) == 0
    seconds = time.monotonic() - begun
    random, kills = generator(0, "kills", len(settings)), 0
    for _ in range(2):
        drill = ground.drill(*settings)
        for _ in range(5):
            kills += kill_at_random(drill, 0.35 * seconds * float(torch.rand((), generator=random)))
        assert drill.train() == 0, drill.said
        require_equal(drill, whole)
    assert kills >= 8
