"""Errors that would come after hours come first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mvc.config import Experiment
from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.preflight import check_experiment, check_splits
from mvc.storage import write_json


def test_an_arm_without_its_source_is_refused_if_classifiers_are_asked_for() -> None:
    experiment = Experiment.model_validate({"classify": {"arms": ["real", "rsp@pretrained"]}})
    check_experiment(experiment, "generate")
    with pytest.raises(ConfigError, match="'rsp@pretrained' needs images of the source pretrained[^$]*only finetuned"):
        check_experiment(experiment, "classify")
    both = {"sources": {"finetuned": 0.5, "pretrained": 0.5}}
    check_experiment(Experiment.model_validate({**experiment.model_dump(), "generate": both}), "report")


def test_missing_classifier_weights_are_named(tmp_path: Path) -> None:
    experiment = Experiment.model_validate({"classify": {"weights": str(tmp_path / "r50.safetensors")}})
    with pytest.raises(ConfigError, match="classify.weights: .*r50.safetensors is missing"):
        check_experiment(experiment, "report")


def test_a_clip_that_is_missing_is_named(tmp_path: Path) -> None:
    classify: dict[str, Any] = {"backbone": "clip", "clip": str(tmp_path / "none")}
    check_experiment(Experiment.model_validate({"classify": classify}), "generate")  # which needs no classifier
    with pytest.raises(ConfigError, match="no CLIP .*none"):
        check_experiment(Experiment.model_validate({"classify": classify}), "report")


def test_a_model_to_draw_back_captions_with_is_looked_for(tmp_path: Path) -> None:
    content: dict[str, Any] = {"back_captioning": {"model": str(tmp_path / "none")}}
    check_experiment(Experiment.model_validate(content), "generate")  # nothing is drawn with it
    content["generate"] = {"sources": {"back_captioning": 1.0}}
    check_experiment(Experiment.model_validate(content), "train")
    with pytest.raises(EnvironmentFault, match="back_captioning.model .*none is not there"):
        check_experiment(Experiment.model_validate(content), "generate")


def test_a_run_without_test_images_stops_before_training(tmp_path: Path) -> None:
    write_json(tmp_path / "data" / "summary.json", {"root": "pictures", "used": {"train": 4, "test": 0}})
    check_splits(tmp_path, "generate")
    with pytest.raises(DataError, match="pictures gives no test image"):
        check_splits(tmp_path, "report")
