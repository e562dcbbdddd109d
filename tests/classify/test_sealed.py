"""The test split stays closed until classifiers are trained, and each opening is written down."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from torch import Tensor

from mvc.classify.comparison import prepare
from mvc.classify.images import Images
from mvc.classify.sealed import OPENINGS, SealedTest, open_test, openings
from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.errors import DataError

from .runs import COUNTS, make_run


def sealed(run: Path) -> SealedTest:
    return SealedTest.of(run, load_index(run), 16, "white")


def test_it_opens_for_trained_classifiers_only(tmp_path: Path) -> None:
    test = sealed(make_run(tmp_path / "run"))
    assert len(test) == COUNTS["test"]
    for keys, name in (({}, "no arm"), ({"real": ["k"], "rsp": []}, "rsp")):
        with pytest.raises(DataError, match=f"the test split stays closed: {name} has no trained classifier"):
            open_test(test, keys)
    assert openings(test.run) == 0
    images = open_test(test, {"real": ["k"]})
    assert len(images) == COUNTS["test"] and tuple(images.labels.tolist()) == test.labels


def test_openings_for_other_classifiers_count_and_equal_ones_do_not(tmp_path: Path) -> None:
    test = sealed(make_run(tmp_path / "run"))
    for keys in ({"real": ["a"]}, {"real": ["a"]}, {"real": ["b"]}, {"real": ["a"]}):
        open_test(test, keys)
    assert openings(test.run) == 2
    assert (test.run / OPENINGS).read_text().count("\n") == 2


def test_a_comparison_holds_no_pixel_of_the_test_split(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    comparison = prepare(run, Experiment.model_validate({"classify": {"arms": ["real"]}}))[0]
    values = {field.name: getattr(comparison, field.name) for field in fields(comparison)}
    holding = {name for name, value in values.items() if isinstance(value, Images)}
    assert holding == {"train", "validation", "synthetic"}
    assert not any(isinstance(value, Tensor | Images) for value in vars(comparison.test).values())
    assert len(comparison.train) == COUNTS["train"] and len(comparison.validation) == COUNTS["validation"]


def test_a_changed_test_image_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    test = sealed(run)
    test.paths[3].write_bytes(test.paths[4].read_bytes())
    with pytest.raises(DataError, match="has changed since the run was made"):
        open_test(test, {"real": ["k"]})
