"""The figures of `mvc tune` against closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from mvc.features import Seen
from mvc.generate.cross_fitted import fit_classifiers, own_probability
from mvc.generate.tune_figures import (
    Made,
    cover,
    on_front,
    read_classes,
    real_images,
    score,
    score_real,
    share_error,
)
from mvc.randomness import numpy_generator


def points(*places: float) -> np.ndarray[Any, Any]:
    """Features on a line."""
    return np.array([[place, 0.0] for place in places])


def labels(*numbers: int) -> np.ndarray[Any, Any]:
    return np.array(numbers, dtype=np.int64)


def seen_of(features: np.ndarray[Any, Any]) -> Seen:
    blank = np.zeros(len(features), dtype=np.float32)
    return Seen(features.astype(np.float32), np.zeros(len(features), dtype=np.uint64), blank, blank)


REAL = real_images(points(0, 100), labels(0, 1), points(2, 4, 102, 96), labels(0, 0, 1, 1), neighbours=5)


def test_the_distance_ratio_is_that_of_the_means() -> None:
    # Validation images lie 2, 4, 2 and 4 from the nearest training image, the point's images 1, 1, 2 and 2.
    made = Made(points(1, -1, 102, 98), labels(0, 0, 1, 1), np.array([True, True, True, False]), copies=1, drawn=5)
    found = score(made, REAL)
    assert (found["drawn"], found["images"]) == (5, 4)
    assert found["distance"] == 1.5 and found["distance_ratio"] == 0.5
    ours, theirs = np.std([1, 1, 2, 2], ddof=1) / 2, np.std([2, 4, 2, 4], ddof=1) / 2
    expected = 0.5 * math.sqrt((ours / 1.5) ** 2 + (theirs / 3) ** 2)
    assert found["distance_ratio_error"] == pytest.approx(expected, rel=1e-5)
    # Shares are of all that were drawn: an image that is not finite is not read as its class.
    assert found["class_agreement"] == 0.6 and found["copies"] == 0.2
    assert found["class_agreement_error"] == pytest.approx(share_error(0.6, 5), rel=1e-5)


def test_coverage_is_within_the_class() -> None:
    # k is 1, half of two validation images a class: spheres of radius 2 around 2 and 4, of 6 around 102 and 96.
    assert cover(points(1, 5, 107, 130), labels(0, 0, 1, 1), REAL) == (0.75, 0.75)
    # The same places, but of the other class: nothing is covered.
    assert cover(points(1, 5, 107, 130), labels(1, 1, 0, 0), REAL) == (0.0, 0.0)
    # One image of a class is too few; the other class still counts, for its own images.
    assert cover(points(1, 3, 101), labels(0, 0, 1), REAL) == (1.0, 1.5)
    assert cover(points(1, 101), labels(0, 1), REAL) == (None, None)


def test_real_images_say_what_can_be_reached() -> None:
    found = score_real(REAL, np.array([True, True, False, True]), 0.25)
    assert found["validation"] == {"images": 4, "class_agreement": 0.75, "distance": 3.0, "copies": 0.25}
    assert found["train"] == {"images": 2, "coverage": None, "density": None}


def test_what_is_undefined_is_none() -> None:
    none = np.empty((0, 0))
    nothing = Made(none, labels(), np.empty(0, dtype=bool), copies=0, drawn=3)
    found = score(nothing, REAL)
    assert found["class_agreement"] == 0.0 and found["images"] == 0
    assert found["distance"] is found["distance_ratio"] is found["coverage"] is found["density"] is None
    unseen = real_images(points(0, 100), labels(0, 1), none, labels(), 5)
    some = score(Made(points(1), labels(0), None, copies=0, drawn=1), unseen)
    assert some["distance"] == 1.0 and some["distance_ratio"] is some["class_agreement"] is some["coverage"] is None
    told = score_real(unseen, None, None)["validation"]
    assert told == {"images": 0, "class_agreement": None, "distance": None, "copies": None}


def test_the_error_of_a_share_is_never_zero_for_few_images() -> None:
    assert share_error(0.5, 96) == pytest.approx(0.05)
    # 8 of 8 count as 10 of 12.
    assert share_error(1.0, 8) == pytest.approx(math.sqrt(10 / 12 * 2 / 12 / 12))


def test_classes_are_read_by_classifiers_that_do_not_know_the_parents() -> None:
    drawn = numpy_generator(0, "test features")
    numbers = np.repeat(np.arange(3), 4)
    train = seen_of(drawn.normal(size=(12, 5)) + 1.5 * np.eye(3, 5)[numbers])
    ids = [f"image {row}" for row in range(12)]
    fitted = fit_classifiers(train, ids, numbers, ["a", "b", "c"], 0)
    made = seen_of(drawn.normal(size=(30, 5)))
    parents = [frozenset({ids[row % 12], ids[(5 * row) % 12]}) for row in range(30)]
    # own_probability of each class in turn is the distribution whose largest value counts.
    by_class = [own_probability(fitted, made, np.full(30, label), parents) for label in range(3)]
    found = read_classes(fitted, made, parents)
    assert found.tolist() == np.argmax(by_class, axis=0).tolist()
    assert found.tolist() != read_classes(fitted, made, [frozenset()] * 30).tolist()
    assert read_classes(fitted, seen_of(np.empty((0, 5))), []).shape == (0,)


def scores(*rows: tuple[float | None, float | None, float | None]) -> list[dict[str, Any]]:
    names = ("class_agreement", "coverage", "distance_ratio")
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_the_front_holds_what_nothing_beats() -> None:
    found = on_front(scores((0.9, 0.5, 0.8), (0.9, 0.5, 0.7), (0.5, 0.6, 0.9), (0.8, 0.6, 0.8), (0.9, 0.5, 0.8)))
    assert found == [True, False, True, True, True]


def test_farther_than_unseen_real_images_is_no_gain() -> None:
    assert on_front(scores((0.9, 0.5, 1.0), (0.8, 0.5, 2.0))) == [True, False]
    assert on_front(scores((0.9, 0.5, 0.99), (0.8, 0.5, 2.0))) == [True, True]


def test_an_objective_that_a_point_lacks_is_left_out() -> None:
    assert on_front(scores((0.9, None, 0.5), (0.8, 0.9, 0.5))) == [True, False]
    assert on_front(scores((None, None, None))) == [False]
