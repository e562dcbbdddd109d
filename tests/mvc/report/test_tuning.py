"""The notes and the table of `mvc tune`, from made-up scores."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mvc.errors import DataError
from mvc.report.tuning import TABLE, TUNE, notes_of, print_tune, write_table
from mvc.storage import write_json


def point(number: int, agreement: float | None, ratio: float | None = 1.0, **changes: Any) -> dict[str, Any]:
    shares = {"class_agreement": agreement, "class_agreement_error": None if agreement is None else 0.05}
    shares |= {"coverage": 0.8, "coverage_error": 0.06, "density": 0.9, "copies": 0.0}
    shares |= {"distance": 2.0, "distance_ratio": ratio, "distance_ratio_error": None if ratio is None else 0.04}
    settings = {"generate.guidance_scale": [1.0, 2.0], "generate.sources": {"finetuned": 0.5, "pretrained": 0.5}}
    facts = {"number": number, "label": f"label {number}", "settings": settings, "folder": f"tune/points/{number}"}
    return {**facts, "drawn": 20, "images": 20, **shares, "front": False, "validation_accuracy": None, **changes}


def summary(*points: dict[str, Any], **changes: Any) -> dict[str, Any]:
    real = {
        "train": {"images": 30, "coverage": 0.9, "density": 1.0},
        "validation": {"images": 50, "class_agreement": 0.94, "distance": 2.0, "copies": 0.01},
    }
    found = {
        "keys": ["generate.guidance_scale", "generate.sources"],
        "points": list(points),
        "front": [one["number"] for one in points if one["front"]],
        "real": real,
        "extractor": "the tiny CLIP",
        "agreement_by": "cross-fitted classifiers",
        "classifiers": None,
        "neighbours": 5,
        "per_class": 2,
        "seed": 0,
        **changes,
    }
    return {**found, "notes": notes_of(found)}


def accuracy(mean: float, error: float = 0.05) -> dict[str, Any]:
    return {"values": [mean], "mean": mean, "standard_deviation": None, "error": error}


def test_figures_that_differ_by_chance_are_called_noisy() -> None:
    # Two points differ by chance up to 2 sqrt 2 standard errors: 14.1 points of agreement, 0.113 of the ratio.
    notes = summary(point(1, 0.80, 0.90), point(2, 0.95, 1.01))["notes"]
    assert notes == [
        "noisy: coverage (standard error 6.0 points), distance ratio (standard error 0.04): "
        "the points differ by no more than chance would explain",
        "differences larger than chance: class agreement (standard error 5.0 points); "
        "below 2.8 standard errors they are not",
    ]
    notes = summary(point(1, 0.81, 0.90), point(2, 0.95, 1.02))["notes"]
    assert notes[0].startswith("noisy: class agreement") and "chance: distance ratio" in notes[1]
    notes = summary(point(1, 0.8, validation_accuracy=accuracy(0.5)), point(2, 0.8, validation_accuracy=accuracy(0.7)))[
        "notes"
    ]
    assert "differences larger than chance: accuracy (standard error 5.0 points)" in notes[1]
    assert summary(point(1, 0.8))["notes"][0].startswith("with one point nothing is compared: class agreement (")


def test_the_front_is_named_and_nothing_is_chosen() -> None:
    notes = summary(point(1, 0.8, front=True), point(2, 0.8), point(3, 0.8, front=True))["notes"]
    assert notes[0].startswith("points 1, 3 are marked: no other is as good") and notes[0].endswith("nothing is chosen")
    assert summary(point(1, 0.8, front=True))["notes"][0].startswith("point 1 is marked")


def test_what_is_lacking_is_said() -> None:
    none = {"coverage": None, "coverage_error": None, "density": None}
    real = summary()["real"]
    lacking = {**real, "validation": {"images": 0, "class_agreement": None, "distance": None, "copies": None}}
    found = summary(point(1, None, None, images=18, **none), real=lacking, agreement_by=None)
    assert found["notes"] == [
        "there is no validation image, so there is neither coverage nor a distance ratio",
        "nothing could say which class an image shows; class agreement needs two classes, and two training images of "
        "each or filter.clip",
        "images that are not finite count as read wrongly: 2 of point 1",
    ]
    few = {**real, "train": {"images": 2, "coverage": None, "density": None}}
    notes = summary(point(1, 0.8, **none), real=few)["notes"]
    assert "coverage and density need two validation images of a class" in notes


def test_the_file_holds_every_figure(tmp_path: Path) -> None:
    write_table(tmp_path, summary(point(1, 0.8, front=True), point(2, None, None, validation_accuracy=accuracy(0.5))))
    rows = [line.split(",") for line in (tmp_path / TABLE).read_text().splitlines()]
    assert rows[0][:3] == ["point", "generate.guidance_scale", "generate.sources"]
    first, second = (dict(zip(rows[0], row, strict=True)) for row in rows[1:])
    assert first["generate.guidance_scale"] == "1-2" and first["front"] == "1" and second["front"] == "0"
    assert first["generate.sources"] == "finetuned 0.5 + pretrained 0.5" and first["class_agreement"] == "0.8"
    assert second["class_agreement"] == second["distance_ratio"] == first["validation_accuracy"] == ""
    assert second["validation_accuracy"] == "0.5" and second["folder"] == "tune/points/2"


def test_the_terminal_shows_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"tune\.json is missing"):
        print_tune(tmp_path)
    stream = io.StringIO()
    write_json(tmp_path / TUNE, summary(point(1, 0.8, front=True), point(2, 0.85)))
    print_tune(tmp_path, Console(file=stream, width=100))
    text = stream.getvalue()
    assert "1 *  " in text and "80%" in text and "finetuned 0.5" in text
    assert "accuracy" not in text and "duplicate" not in text
    short = {"arm": "rsp", "steps": 9, "seeds": [0], "backbone": "small", "validation_images": 50}
    baselines = {"real": accuracy(0.61), "duplicate": None}
    points = (point(1, 0.8, validation_accuracy=accuracy(0.625)), point(2, 0.85))
    write_json(tmp_path / TUNE, summary(*points, classifiers={**short, "baselines": baselines}))
    print_tune(tmp_path, Console(file=stream, width=100))
    text = stream.getvalue()
    assert "62.5±5.0" in text and "61.0±5.0" in text and "50 validation images, mean of 1 classifier (" in text
