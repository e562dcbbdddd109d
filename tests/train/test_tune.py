"""Checkpoints as models: the model of a checkpoint is the one that fine-tuning would have published there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mvc.config import Experiment
from mvc.errors import DataError, EnvironmentFault
from mvc.models import model_identity
from mvc.storage import read_json
from mvc.train.stage import run_train
from mvc.train.tune import checkpoint_manifest, checkpoint_steps, publish_checkpoint
from tests.train.small_run import experiment_for, write_run

LORA = {"method": "lora", "lora_rank": 2, "lora_targets": ["to_q", "to_v"]}


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the manifest, whose order of keys is that of writing."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("changes", [{}, {"use_ema": False}, LORA], ids=["average", "last", "lora"])
def test_the_model_of_a_checkpoint_is_that_of_a_training_which_ends_there(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    run = write_run(tmp_path / "long")
    experiment = experiment_for(run, checkpoints_total_limit=3, **changes)
    run_train(run, experiment)
    assert checkpoint_steps(run, experiment) == [2, 4, 6]
    publish_checkpoint(run, experiment, 6, tmp_path / "six")
    assert contents(tmp_path / "six") == contents(run / "model")
    publish_checkpoint(run, experiment, 2, tmp_path / "two")
    assert read_json(tmp_path / "two" / "mvc.json")["steps"] == 2
    short = write_run(tmp_path / "short")
    train = experiment.train.model_copy(update={"max_train_steps": 2})
    run_train(short, experiment.model_copy(update={"train": train}))
    assert contents(tmp_path / "two") == contents(short / "model")
    assert model_identity(tmp_path / "two") != model_identity(tmp_path / "six")


def test_what_would_be_kept_is_known_before_fine_tuning(tmp_path: Path) -> None:
    def steps(**train: Any) -> list[int]:
        return checkpoint_steps(tmp_path, Experiment.model_validate({"train": train}))

    assert steps(max_train_steps=500, checkpointing_steps=100, checkpoints_total_limit=3) == [300, 400, 500]
    assert steps(max_train_steps=250, checkpointing_steps=100, checkpoints_total_limit=9) == [100, 200, 250]
    assert steps(max_train_steps=50, checkpointing_steps=100) == [50]
    # 6 images 10 times, in batches of 4.
    run = write_run(tmp_path)
    experiment = experiment_for(run, max_train_steps=None, passes=10, checkpointing_steps=6)
    assert checkpoint_steps(run, experiment) == [12, 15]


def test_a_run_without_model_or_with_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path / "a")
    experiment = experiment_for(run, max_train_steps=2)
    with pytest.raises(DataError, match="holds no fine-tuned model"):
        publish_checkpoint(run, experiment, 2, tmp_path / "model")
    run_train(run, experiment)
    assert checkpoint_manifest(run, 2).is_file()
    (checkpoint_manifest(run, 2).parent / "ema.safetensors").write_bytes(b"")
    with pytest.raises(EnvironmentFault, match="step-000002 is damaged"):
        publish_checkpoint(run, experiment, 2, tmp_path / "model")
    assert not (tmp_path / "model").exists()
