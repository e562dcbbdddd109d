"""Which rows of a synthetic set an arm takes at a ratio, by hand and over many made sets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from mvc.classify.ratio import rows_of_ratio
from mvc.randomness import numpy_generator


def test_rows_by_hand() -> None:
    labels = [0, 0, 0, 0, 1, 1, 1, 0, 0, 1]
    sources = ["a", "b", "a", "a", "a", "b", "b", "a", "b", "a"]
    # Class 0 has two real images: four rows, of "a" 4 x 4/6 = 2.67 -> 3, of "b" 1.33 -> 1.
    # Class 1 has one: two rows, one of each source.
    assert rows_of_ratio(labels, sources, [0, 1, 0], 2.0) == [0, 1, 2, 3, 4, 5]
    # One row a class. The source "b" was owed 1/3 by class 0, so it has that of class 1.
    assert rows_of_ratio(labels, sources, [0, 1], 1.0) == [0, 5]


def test_classes_keep_the_proportion_of_the_real_images() -> None:
    labels = np.repeat([0, 1, 2], 40)
    rows = rows_of_ratio(labels, ["a"] * 120, np.repeat([0, 1, 2], [10, 5, 2]), 1.5)
    # 15, 7.5 and 3, rounded half up; the first ones of each class.
    assert rows == [*range(15), *range(40, 48), *range(80, 83)]


def test_a_class_with_too_few_gives_all_it_has_and_one_without_real_images_none() -> None:
    assert rows_of_ratio([0, 0, 1, 1, 2, 2], ["a", "b"] * 3, [0, 0, 0, 2], 2.0) == [0, 1, 4, 5]
    assert rows_of_ratio([], [], [0, 1], 2.0) == []


def test_a_small_ratio_leaves_one_image_a_class() -> None:
    assert rows_of_ratio([0, 0, 1, 1], ["a"] * 4, [0, 0, 0, 1, 1, 1], 0.1) == [0, 2]


def test_one_image_a_class_comes_from_each_source_by_its_share() -> None:
    # Of every class six images of "a", then four of "b": of ten classes six must show "a".
    labels, sources = np.repeat(np.arange(10), 10), (["a"] * 6 + ["b"] * 4) * 10
    rows = rows_of_ratio(labels, sources, np.arange(10), 1.0)
    assert labels[rows].tolist() == list(range(10))
    assert Counter(sources[row] for row in rows) == {"a": 6, "b": 4}


def test_properties_over_many_sets() -> None:
    drawn = numpy_generator(0, "sets of synthetic images")
    for _ in range(200):
        classes, size = int(drawn.integers(1, 6)), int(drawn.integers(1, 80))
        labels = drawn.integers(0, classes, size)
        sources = [("a", "b", "c")[kind] for kind in drawn.integers(0, int(drawn.integers(1, 4)), size)]
        real = drawn.integers(0, classes, int(drawn.integers(1, 20)))
        ratio = float(drawn.choice([0.25, 0.5, 1.0, 1.7, 4.0, 100.0]))
        rows = rows_of_ratio(labels, sources, real, ratio)
        assert rows == sorted(set(rows)) and rows == rows_of_ratio(labels, sources, real, ratio)
        for label in range(classes):
            _check_class(label, rows, labels.tolist(), sources, int((real == label).sum()), ratio)


def _check_class(label: int, rows: list[int], labels: list[int], sources: list[str], real: int, ratio: float) -> None:
    there = [row for row in range(len(labels)) if labels[row] == label]
    kept = [row for row in rows if labels[row] == label]
    if real == 0 or ratio == 100.0:
        assert kept == (there if real else [])
        return
    assert len(kept) == min(len(there), max(1, int(ratio * real + 0.5)))
    for source in set(sources):
        of_source = [row for row in there if sources[row] == source]
        kept_of_source = [row for row in kept if sources[row] == source]
        assert kept_of_source == of_source[: len(kept_of_source)]
        if there:
            assert abs(len(kept_of_source) - len(kept) * len(of_source) / len(there)) < 1


def test_shares_of_two_sources_hold_over_all_classes_together() -> None:
    drawn = numpy_generator(1, "sets of synthetic images")
    for _ in range(50):
        classes = int(drawn.integers(2, 30))
        counts = drawn.integers(1, 9, (classes, 2))
        labels = np.repeat(np.arange(classes), counts.sum(1))
        sources = [name for first, second in counts for name in "a" * int(first) + "b" * int(second)]
        rows = rows_of_ratio(labels, sources, np.arange(classes), 1.0)
        due = (counts[:, 0] / counts.sum(1)).sum()
        assert abs(sum(sources[row] == "a" for row in rows) - due) <= 1


def test_rows_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="2 labels and 1 sources"):
        rows_of_ratio([0, 1], ["a"], [0], 1.0)
    with pytest.raises(ValueError, match="ratio 0.0 is not above 0"):
        rows_of_ratio([0], ["a"], [0], 0.0)
