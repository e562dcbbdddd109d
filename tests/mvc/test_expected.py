"""What is counted before a run has begun is what the data stage then takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mvc.amounts import needs_model, previewed, synthetic_per_class
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


@pytest.mark.parametrize(
    ("per_real", "per_class", "balance", "expected"),
    [
        (0.5, None, False, (2, 2, 1)),
        (4.0, None, False, (12, 16, 4)),
        (1 / 3, None, False, (1, 1, 0)),
        (4.0, 7, False, (7, 7, 7)),
        # Real and synthetic images together are 4 + 2, 8 and 4 in each class.
        (0.5, None, True, (3, 2, 5)),
        (1.0, None, True, (5, 4, 7)),
        (0.0, None, True, (1, 0, 3)),
    ],
)
def test_amounts_by_ratio_by_class_and_to_balance(
    per_real: float, per_class: int | None, balance: bool, expected: tuple[int, ...]
) -> None:
    assert tuple(synthetic_per_class(REAL, per_real, per_class, balance).values()) == expected


@pytest.mark.parametrize(
    ("sources", "preview", "model", "shown"),
    [
        ({"finetuned": 1.0}, 8, True, ["pretrained"]),
        ({"pretrained": 1.0}, 8, True, ["finetuned"]),
        ({"pretrained": 1.0, "finetuned": 0.0}, 8, True, ["finetuned"]),
        ({"pretrained": 1.0}, 0, False, []),
        ({"finetuned": 0.5, "pretrained": 0.5}, 8, True, []),
        ({"finetuned": 0.5, "import": 0.5}, 0, True, []),
        ({"import": 1.0}, 8, False, []),
        ({"sdedit": 0.5, "instruct_pix2pix": 0.5}, 8, False, []),
    ],
)
def test_which_sets_need_the_fine_tuned_model(
    sources: dict[str, float], preview: int, model: bool, shown: list[str]
) -> None:
    content = {"generate": {"sources": sources, "preview": preview, "import_path": "somewhere"}}
    experiment = Experiment.model_validate(content)
    assert needs_model(experiment) is model and previewed(experiment) == shown
