"""Trackers get the numbers of the log; TensorBoard's files are read back with its own reader."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mvc.config import TrainSection
from mvc.errors import ConfigError
from mvc.train.tracking import Tracking, require_trackers

SETTINGS = {"run.seed": 3, "train.lora_targets": ["to_q"], "train.snr_gamma": None}


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    reader = EventAccumulator(str(run / "logs/tensorboard"))
    reader.Reload()
    return [(event.step, event.value) for event in reader.Scalars(name)]


def test_tensorboard_holds_what_was_tracked(tmp_path: Path) -> None:
    tracking = Tracking(["tensorboard", "tensorboard"], tmp_path, SETTINGS)
    assert not (tmp_path / "logs").exists()
    tracking.track({"validation_loss": 0.75}, 0)
    for step in range(1, 6):
        tracking.track({"loss": 0.5**step, "learning_rate": 0.125 * step}, step)
    tracking.close()
    tracking.close()
    assert curve(tmp_path, "loss") == [(step, 0.5**step) for step in range(1, 6)]
    assert curve(tmp_path, "learning_rate") == [(step, 0.125 * step) for step in range(1, 6)]
    assert curve(tmp_path, "validation_loss") == [(0, 0.75)]
    # One curve of one run: no folder of hyperparameters or of a second writer beside it.
    (only,) = (tmp_path / "logs/tensorboard").iterdir()
    assert only.is_file()


def test_resumed_training_shows_every_step_once(tmp_path: Path) -> None:
    """Steps 1 to 7, a kill, and on from the checkpoint of step 4 to step 10."""
    for steps, value in ((range(1, 8), 1.0), (range(5, 11), 2.0)):
        tracking = Tracking(["tensorboard"], tmp_path, SETTINGS)
        for step in steps:
            tracking.track({"loss": value}, step)
        tracking.close()
    assert curve(tmp_path, "loss") == [(step, 1.0) for step in range(1, 5)] + [(step, 2.0) for step in range(5, 11)]


def test_training_begun_afresh_voids_what_was_there(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        tracking = Tracking(["tensorboard"], tmp_path, SETTINGS)
        tracking.track({"loss": value}, 0)
        tracking.track({"loss": value}, 1)
        tracking.close()
    assert curve(tmp_path, "loss") == [(0, 2.0), (1, 2.0)]


def test_missing_packages_are_named_before_anything_starts(tmp_path: Path) -> None:
    there = {str(name) for name in get_available_trackers()}
    missing = [name for name in ("wandb", "mlflow", "comet_ml", "clearml", "aim", "swanlab") if name not in there]
    if not missing:
        pytest.skip("every tracker is installed")
    with pytest.raises(ConfigError, match=f"train.report_to names {missing[0]}, but its package is not there") as found:
        Tracking(["tensorboard", missing[0]], tmp_path, SETTINGS)
    assert f"pip install {missing[0].replace('_', '-')}," in found.value.do
    require_trackers([name for name in ("tensorboard",) if name in there])


def test_without_tensorboard_the_extra_is_named() -> None:
    """In a process of its own that cannot find the package, as on a machine without it."""
    code = (
        "import sys; sys.modules['tensorboard'] = sys.modules['tensorboardX'] = None\n"
        "import importlib.util as u; find = u.find_spec\n"
        "u.find_spec = lambda name, *more: None if name in ('tensorboard', 'tensorboardX') else find(name, *more)\n"
        "from mvc.train.tracking import require_trackers\n"
        "require_trackers(['tensorboard'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install 'mvc[tensorboard]', or leave it out" in done.stderr


def test_every_tracker_of_the_experiment_is_known() -> None:
    (names,) = get_args(TrainSection.model_fields["report_to"].annotation)
    assert set(get_args(names)) <= set(LOGGER_TYPE_TO_CLASS)


def test_a_tracker_that_fails_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "logs").mkdir()
    # Its folder cannot be made where a file of that name is.
    (tmp_path / "logs/tensorboard").write_text("in the way")
    tracking = Tracking(["tensorboard"], tmp_path, SETTINGS)
    tracking.track({"loss": 1.0}, 1)
    tracking.track({"loss": 1.0}, 2)
    tracking.close()
    lines = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert len(lines) == 1 and "the tracker tensorboard failed and is left out from here on" in lines[0]
    assert (tmp_path / "logs/tensorboard").read_text() == "in the way"


def test_a_tracker_that_fails_on_the_way_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracking = Tracking(["tensorboard"], tmp_path, SETTINGS)
    tracking.track({"loss": 0.5}, 1)
    for step in (2, 3):
        tracking.track({"loss": 10**400}, step)  # more than a float can hold
    tracking.track({"loss": 0.25}, 4)
    lines = [line for line in capsys.readouterr().err.splitlines() if "tracker" in line]
    assert len(lines) == 1 and "too large" in lines[0]
    assert curve(tmp_path, "loss") == [(1, 0.5)]
