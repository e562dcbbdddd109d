from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mvc.errors import EnvironmentFault, NumericError
from mvc.train.checkpoints import TrainingState, checkpoints, load_newest
from mvc.train.writer import CheckpointWriter
from tests.folders import sha256_folder
from tests.train.toy import normal

SETTINGS = {"run.seed": 0}


def state(step: int) -> TrainingState:
    return TrainingState(step, {"w": normal(3, seed=step)}, {"w": normal(3)}, step, {"w/step": torch.tensor(2.0)}, {})


@pytest.mark.parametrize("background", [False, True])
def test_what_is_saved_is_what_was_there_at_the_call(tmp_path: Path, background: bool) -> None:
    writer, given = CheckpointWriter(tmp_path, SETTINGS, 2, background), state(1)
    writer.save(given, needed=False)
    with torch.no_grad():
        given.unet["w"].add_(1.0)
    writer.close()
    found = load_newest(tmp_path, SETTINGS)
    assert found is not None and torch.equal(found.unet["w"], state(1).unet["w"])


def test_both_ways_write_the_same_bytes_and_keep_as_many(tmp_path: Path) -> None:
    for name, background in (("at once", False), ("behind", True)):
        writer = CheckpointWriter(tmp_path / name, SETTINGS, 2, background)
        for step in (1, 2, 3):
            writer.save(state(step), needed=step == 3)
        # A needed one is on disk at once.
        assert [path.name for path in checkpoints(tmp_path / name)] == ["step-000003", "step-000002"]
        writer.close()
    assert sha256_folder(tmp_path / "at once") == sha256_folder(tmp_path / "behind")


@pytest.mark.parametrize("background", [False, True])
def test_one_that_cannot_be_written_is_said_and_only_a_needed_one_ends_it(
    tmp_path: Path, background: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "checkpoints"
    folder.write_text("a file")  # in place of the folder
    writer = CheckpointWriter(folder, SETTINGS, 2, background)
    writer.save(state(1), needed=False)
    writer.wait()
    assert "cannot write" in capsys.readouterr().err
    with pytest.raises(EnvironmentFault, match="cannot write"):
        writer.save(state(2), needed=True)
    folder.unlink()
    writer.save(state(3), needed=True)
    writer.close()
    assert [path.name for path in checkpoints(folder)] == ["step-000003"]


def test_weights_that_are_not_finite_end_it_at_the_next_call(tmp_path: Path) -> None:
    writer = CheckpointWriter(tmp_path, SETTINGS, 2, background=True)
    writer.save(replace(state(1), unet={"w": torch.tensor([float("nan")])}), needed=False)
    with pytest.raises(NumericError, match="not finite after step 1"):
        writer.save(state(2), needed=False)
    writer.close()
    assert checkpoints(tmp_path) == []
