"""What is counted before a run has begun is what the data stage then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mvc.config import Experiment
from mvc.data_stage import run_data
from mvc.dataset import load_index
from mvc.errors import DataError
from mvc.expected import synthetic_count, training_counts
from tests.mvc.pictures import fill


def of_index(run: Path) -> dict[str, int]:
    labels = [record.class_name for record in load_index(run).split("train")]
    return {name: labels.count(name) for name in labels}


@pytest.mark.parametrize(
    ("folders", "data"),
    [
        ({"cat": 20, "dog": 11}, {}),
        ({"cat": 20, "dog": 11}, {"shots": 3, "test_share": 0.4}),
        ({"train/cat": 9, "train/dog": 8, "test/cat": 2, "test/dog": 1}, {"validation_share": 0.5}),
    ],
)
def test_counts_are_those_of_the_data_stage(folders: dict[str, int], data: dict[str, Any], tmp_path: Path) -> None:
    fill(tmp_path / "data", folders)
    experiment = Experiment.model_validate({"data": {"path": str(tmp_path / "data"), **data}})
    before = training_counts(tmp_path / "run", experiment)
    assert not (tmp_path / "run").exists()
    run_data(tmp_path / "run", experiment)
    assert before == of_index(tmp_path / "run") == training_counts(tmp_path / "run", experiment)


def test_the_embedded_digits_are_counted_without_a_run(tmp_path: Path) -> None:
    counts = training_counts(tmp_path / "run", Experiment.model_validate({"data": {"path": "digits", "shots": 5}}))
    assert len(counts) == 10 and set(counts.values()) == {5} and not (tmp_path / "run").exists()


def test_too_few_images_are_an_error_already_here(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"train/cat": 4, "train/dog": 1})
    experiment = {"data": {"path": str(tmp_path / "data"), "validation_share": 0.3}}
    with pytest.raises(DataError, match="fewer than 2 different training images: dog"):
        training_counts(tmp_path / "run", Experiment.model_validate(experiment))


REAL = {"ant": 3, "bee": 4, "cow": 1}


def test_synthetic_images_round_by_class_and_previews_count() -> None:
    content: dict[str, Any] = {"generate": {"per_real": 0.5, "preview": 3}}
    assert synthetic_count(REAL, Experiment.model_validate(content)) == (2 + 2 + 1) + 3 * 3
    content["generate"]["sources"] = {"finetuned": 0.5, "pretrained": 0.5}
    assert synthetic_count(REAL, Experiment.model_validate(content)) == 2 + 2 + 1
