"""Amounts that an experiment asks for, against sums by hand."""

from __future__ import annotations

from typing import Any

import pytest

from mvc.amounts import needs_model, previewed, synthetic_per_class, with_steps
from mvc.config import Experiment

REAL = {"ant": 3, "bee": 4, "cow": 1}


@pytest.mark.parametrize(
    ("train", "images", "steps"),
    [
        ({}, 50, 400),  # 128 x 50 / 16
        ({"train_batch_size": 32}, 30, 120),
        ({"train_batch_size": 4, "gradient_accumulation_steps": 4}, 50, 400),
        ({"passes": 1, "train_batch_size": 32}, 48, 2),  # 1.5, halves up
        ({"passes": 0.1}, 2, 1),
        ({"max_train_steps": 7}, 5000, 7),
    ],
)
def test_steps_follow_from_the_number_of_images(train: dict[str, Any], images: int, steps: int) -> None:
    assert with_steps(Experiment.model_validate({"train": train}), images).train.steps == steps


def test_steps_that_are_not_settled_are_an_error() -> None:
    with pytest.raises(ValueError, match="the number of training images, and so of steps, is not known yet"):
        _ = Experiment().train.steps


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
