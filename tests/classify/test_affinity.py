"""Affinity: 0 where nothing changes, far below 0 out of the domain; judged by clean classifiers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mvc.arms import Arm
from mvc.classify.affinity import accuracy, affinities, augmented_accuracy, clean_tasks
from mvc.classify.comparison import Comparison, prepare
from mvc.classify.images import Images
from mvc.classify.training import Task, train
from mvc.config import Experiment
from mvc.progress import meter

from .runs import make_run


class Threshold(torch.nn.Module):
    """Class 1 where the mean is above a half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(10.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean(dim=(1, 2, 3)) - 0.5
        return torch.stack([-mean, mean], dim=1) * self.scale


def grey(levels: list[int], labels: list[int]) -> Images:
    pixels = torch.tensor(levels, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 3).contiguous()
    return Images(pixels, torch.tensor(labels))


def test_accuracies_by_hand() -> None:
    images = grey([40, 100, 160, 220], [0, 0, 1, 0])
    assert accuracy(Threshold(), images) == 0.75
    assert augmented_accuracy(Threshold(), images, lambda pixels, step: pixels.float() / 255) == 0.75
    # Inverted, the first two are taken for class 1 and the others for class 0.
    assert augmented_accuracy(Threshold(), images, lambda pixels, step: 1 - pixels.float() / 255) == 0.25


def trained(run: Path, arms: list[str], **classify: Any) -> tuple[Comparison, dict[Arm, list[Task]]]:
    settings = {"arms": arms, "seeds": 1, "max_train_steps": 30, "evaluation_steps": 10, **classify}
    comparison = prepare(run, Experiment.model_validate({"classify": settings}))[0]
    tasks = {arm: [Task(comparison, arm, None, 0)] for arm in comparison.arms}
    with meter("test", 1, "steps") as shown:
        for own in tasks.values():
            train(own[0], shown)
    return comparison, tasks


def test_of_arms_and_sources(tmp_path: Path) -> None:
    arms = ["real", "real+none", "real+mixup", "rsp@finetuned", "rsp@pretrained"]
    comparison, tasks = trained(make_run(tmp_path / "run"), arms)
    assert [task.arm.name for task in clean_tasks(comparison, tasks)] == ["real+none"]
    found = affinities(comparison, tasks)
    assert set(found) == {"real", "real+none", "rsp@finetuned", "rsp@pretrained"}
    assert found["real+none"] == 0.0
    network = tasks[Arm("real", augmentation="none")][0].network()
    assert comparison.synthetic is not None
    own = comparison.synthetic.rows(comparison.members(Arm("rsp", "finetuned"), None))
    expected = accuracy(network, own) - accuracy(network, comparison.validation)
    assert found["rsp@finetuned"] == pytest.approx(expected)


def test_images_of_the_wrong_class_are_far_from_the_domain(tmp_path: Path) -> None:
    from mvc.storage import read_json_lines, write_json_lines
    from mvc.synthetic import METADATA, synthetic_folder

    run = make_run(tmp_path / "run")
    comparison, tasks = trained(run, ["real+none", "combined"])
    assert accuracy(tasks[Arm("real", augmentation="none")][0].network(), comparison.validation) == 1.0
    assert affinities(comparison, tasks)["combined"] == pytest.approx(0.0, abs=0.1)
    path = synthetic_folder(run) / METADATA
    rows = read_json_lines(path)
    for row in rows:
        row["class_name"] = row["label"] = "light" if row["class_name"] == "dark" else "dark"
    write_json_lines(path, rows)
    comparison, tasks = trained(run, ["real+none", "combined"])
    assert affinities(comparison, tasks)["combined"] <= -0.9


def test_without_validation_or_weights_there_is_none(tmp_path: Path) -> None:
    comparison, tasks = trained(make_run(tmp_path / "run", {"train": 6, "test": 4}), ["real+none"], max_train_steps=2)
    assert affinities(comparison, tasks) == {}
