"""`mvc clip` as users start it: from a file, from its run folder, and with mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from mvc.cli import app
from mvc.config_file import to_yaml
from mvc.errors import ConfigError, DataError
from mvc.storage import read_json
from tests.train.clip_runs import experiment, write_model, write_pairs

SHORT = {"seeds": 1, "max_train_steps": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with pairs and a model."""
    folder = tmp_path_factory.mktemp("place")
    write_model(folder)
    write_pairs(folder / "pairs")
    return folder


def write_experiment(place: Path, folder: Path, **train: Any) -> Path:
    """toy.yaml, whose run is folder/run."""
    path = folder / "toy.yaml"
    path.write_text(to_yaml(experiment(place / "pairs", folder / "run", place / "toy.json", train=train)))
    return path


def test_from_a_file_and_from_its_run_folder(place: Path, tmp_path: Path) -> None:
    path = write_experiment(place, tmp_path, **SHORT)
    done = CliRunner().invoke(app, ["clip", str(path)])
    assert done.exit_code == 0, done.output
    assert "retrieval among the test pairs, per cent" in done.stdout
    assert "verdict: not told: one seed cannot tell whether mixgen helps" in done.stdout
    assert "warning: only 6 test images" in done.stdout
    assert f"results: {tmp_path / 'run' / 'results' / 'table.csv'}" in done.stdout
    again = CliRunner().invoke(app, ["clip", str(tmp_path / "run")])
    assert again.exit_code == 0 and "2 of 2 models were trained before and are kept" in again.stderr
    assert again.stdout == done.stdout


def test_what_went_wrong_is_an_error_of_ours(place: Path, tmp_path: Path) -> None:
    path = write_experiment(place, tmp_path, train_batch_size=13)
    done = CliRunner().invoke(app, ["clip", str(path)])
    assert isinstance(done.exception, ConfigError) and "more than the 12 training images" in str(done.exception)
    done = CliRunner().invoke(app, ["clip", str(path), "--data", str(tmp_path / "nowhere")])
    assert isinstance(done.exception, DataError) and "nowhere" in str(done.exception)
    assert not (tmp_path / "run" / "results").exists()


@pytest.mark.slow
def test_two_processes_train_the_models_of_one(place: Path, tmp_path: Path) -> None:
    arms = ["mixgen_a+synchronised", "hard_negatives+consistency"]
    found = []
    for number in (1, 2):
        (tmp_path / str(number)).mkdir()
        # An odd batch, so that the parts are not of one size.
        path = write_experiment(
            place, tmp_path / str(number), arms=arms, seeds=1, train_batch_size=7, learning_rate=3e-4
        )
        command = [sys.executable, "-m", "mvc", "clip", str(path), "--num-processes", str(number)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("12 images to train with") == 1 and done.stdout.count("verdict: ") == 1
        found.append(tmp_path / str(number) / "run")
    names = [f"{arm.replace('+', '-and-')}-seed0" for arm in arms]
    for name in names:
        one, other = (load_file(run / "models" / name / "open_clip_model.safetensors") for run in found)
        for key, value in one.items():
            torch.testing.assert_close(other[key], value, rtol=0, atol=1e-5, msg=key)
        losses = [read_json(run / "results" / f"{name}.json")["training_loss"] for run in found]
        assert losses[1] == pytest.approx(losses[0], rel=1e-5)
