"""Whoever trains an architecture without weights is told so in one line, and nobody else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from mvc.clip.models import WEIGHTS, save_clip
from mvc.config_clip import ClipExperiment
from mvc.train.clip_stage import run_clip
from mvc.train.clip_task import has_weights

from .clip_runs import experiment, toy_clip, write_model, write_pairs

SHORT = {"arms": ["none"], "seeds": 1, "max_train_steps": 1}


def told(folder: Path, capsys: pytest.CaptureFixture[str], **model: str) -> list[str]:
    """The lines about random weights that a training prints, and where they stand among all."""
    given = experiment(write_pairs(folder / "pairs"), folder / "run", Path("unused"), train=SHORT, model=model)
    run_clip(folder / "run", given)
    printed = capsys.readouterr()
    lines = printed.err.splitlines()
    found = [line for line in lines if "random" in line]
    assert "random" not in printed.out
    if found:  # before the first step
        assert lines.index(found[0]) < next(row for row, line in enumerate(lines) if "training" in line.split(":")[0])
    return found


def test_an_architecture_alone_begins_with_random_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = str(write_model(tmp_path))
    assert told(tmp_path, capsys, name=name) == [
        f"clip: {name} has no weights, so training begins with random ones (see model.weights)"
    ]


def test_weights_of_a_folder_or_a_file_need_no_word(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_clip(toy_clip(tmp_path), tmp_path / "model")
    assert told(tmp_path / "a", capsys, name=str(tmp_path / "model")) == []
    weights = str(tmp_path / "model" / WEIGHTS)
    assert told(tmp_path / "b", capsys, name=str(write_model(tmp_path)), weights=weights) == []


@pytest.mark.parametrize("name", ["tiny", "ViT-B-32"])
def test_names_alone_have_no_weights(name: str) -> None:
    assert not has_weights(ClipExperiment.model_validate({"model": {"name": name}}))
