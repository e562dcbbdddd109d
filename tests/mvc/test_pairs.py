from __future__ import annotations

from collections import Counter

import pytest

from mvc.errors import DataError
from mvc.pairs import draw_pairs, draw_partner, epoch_order, locate, require_partners

LABELS = [0, 1, 0, 1, 1, 0, 2, 2, 0, 1, 1]


def test_every_epoch_is_a_permutation_and_batches_run_over_its_end() -> None:
    pairs = draw_pairs(3, range(5 * len(LABELS)), LABELS, "same_class")
    orders = [[pair.image for pair in pairs[start : start + len(LABELS)]] for start in range(0, 5 * 11, len(LABELS))]
    assert all(sorted(order) == list(range(len(LABELS))) for order in orders)
    assert len({tuple(order) for order in orders}) == 5
    assert [locate(sample, 11) for sample in (0, 10, 11, 34)] == [(0, 0), (0, 10), (1, 0), (3, 1)]


def test_the_partner_is_another_image_of_the_class() -> None:
    for pair in draw_pairs(3, range(200 * len(LABELS)), LABELS, "same_class"):
        assert pair.partner != pair.image
        assert LABELS[pair.partner] == LABELS[pair.image]


def test_partners_are_uniform_among_the_others() -> None:
    members = (0, 2, 5, 8, 9)
    drawn = Counter(draw_partner(1, epoch, 5, members) for epoch in range(8000))
    assert set(drawn) == {0, 2, 8, 9}
    # Expected 2000 each; five standard deviations of a binomial are 194.
    assert all(abs(count - 2000) < 194 for count in drawn.values())


def test_a_pair_depends_on_its_number_alone() -> None:
    every = draw_pairs(7, range(60), LABELS, "same_class")
    assert draw_pairs(7, [41, 3, 17], LABELS, "same_class") == [every[41], every[3], every[17]]
    assert draw_pairs(8, range(60), LABELS, "same_class") != every


def test_pairs_change_from_epoch_to_epoch() -> None:
    partners = {draw_partner(0, epoch, 0, (0, 1, 2, 3)) for epoch in range(20)}
    assert partners == {1, 2, 3}
    assert epoch_order(0, 0, 50) != epoch_order(0, 1, 50)


def test_self_pairing_takes_the_image_itself() -> None:
    same = draw_pairs(3, range(33), LABELS, "self")
    assert all(pair.partner == pair.image for pair in same)
    assert [pair.image for pair in same] == [pair.image for pair in draw_pairs(3, range(33), LABELS, "same_class")]


def test_classes_without_a_second_image_are_listed() -> None:
    require_partners(LABELS, ["cat", "dog", "eel"])
    with pytest.raises(DataError, match="fewer than two training images: dog, eel"):
        require_partners([0, 0, 1], ["cat", "dog", "eel"])
