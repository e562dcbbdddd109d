"""Texts with their labels, and few-shot subsets: balanced, nested, and the same for the same seed."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from mvc.classify.text_data import Texts, few_shot
from mvc.errors import DataError

ALL = Texts(
    [(f"text {row}",) for row in range(60)], [(2, 0, 1, 0, 1, 1)[row % 6] for row in range(60)], list(range(60))
)


def test_rows_keep_text_label_and_id_together() -> None:
    texts = Texts([("a", "b"), ("c", "d"), ("e", "f")], [0, 1, 1], [10, 20, 30])
    assert len(texts) == 3
    assert texts.rows([2, 0]) == Texts([("e", "f"), ("a", "b")], [1, 0], [30, 10])
    assert texts.rows([]) == Texts([], [], [])


def test_texts_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="2 texts, 1 labels and 2 ids"):
        Texts([("a",), ("b",)], [0], [1, 2])
    for rows in ([("a",), ("b", "c")], [(), ()], [("a", "b", "c"), ("d", "e", "f")]):
        with pytest.raises(ValueError, match="one text each, or two texts each"):
            Texts(list(rows), [0, 1], [0, 1])


@pytest.mark.parametrize("shots", [1, 4, 10])
def test_each_class_has_as_many_texts_and_classes_ascend(shots: int) -> None:
    few = few_shot(ALL, shots, 0)
    assert few.labels == [0] * shots + [1] * shots + [2] * shots
    assert len(set(few.ids)) == 3 * shots
    assert few == ALL.rows(few.ids)


def test_smaller_subsets_are_contained_in_larger_ones_of_the_same_seed() -> None:
    for seed in range(5):
        sizes = [set(few_shot(ALL, shots, seed).ids) for shots in (1, 2, 5, 10)]
        assert sizes[0] < sizes[1] < sizes[2] < sizes[3]


def test_subsets_follow_the_seed_and_each_text_is_as_likely() -> None:
    assert few_shot(ALL, 3, 7) == few_shot(ALL, 3, 7)
    drawn = Counter(number for seed in range(400) for number in few_shot(ALL, 3, seed).ids)
    # 400 seeds, 3 of the 10, 20 and 30 texts of a class: 120, 60 and 40 are expected, within 5 standard deviations.
    for row, label in enumerate(ALL.labels):
        share = 3 / (20, 30, 10)[label]
        assert abs(drawn[row] - 400 * share) < 5 * (400 * share * (1 - share)) ** 0.5


def test_a_class_does_not_depend_on_the_others() -> None:
    without = ALL.rows([row for row, label in enumerate(ALL.labels) if label != 1])
    assert few_shot(without, 4, 3).ids == [row for row in few_shot(ALL, 4, 3).ids if ALL.labels[row] != 1]


def test_classes_of_equal_size_are_drawn_independently() -> None:
    even = Texts([("a",)] * 40, [row % 2 for row in range(40)], list(range(40)))
    for seed in range(5):
        few = few_shot(even, 10, seed)
        assert few.ids[:10] != [number - 1 for number in few.ids[10:]]


def test_a_class_with_too_few_texts_is_named() -> None:
    with pytest.raises(DataError, match="class 2 has 10 training texts, and data.shots is 11"):
        few_shot(ALL, 11, 0)
    with pytest.raises(
        DataError, match=re.escape("class 'not sure' has 10 training texts") + r"[\s\S]*lower data.shots"
    ):
        few_shot(ALL, 11, 0, ["no", "yes", "not sure"])
