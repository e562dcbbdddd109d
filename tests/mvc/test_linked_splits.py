"""Linked items stay together, and splits come as near to their sizes and labels as the groups allow."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from mvc.linked_splits import linked_groups, part_groups, whole_shares

PAPER = [3600, 1200, 1560]


def test_groups_are_connected_components_in_order_of_their_first_items() -> None:
    edges = [(1, 1), (2, 3), (7, 8), (3, 4), (5, 5), (9, 4), (1, 1), (8, 7)]
    assert linked_groups(edges) == [[0, 6], [1, 3, 5], [2, 7], [4]]
    assert linked_groups([]) == []


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=20))
def test_groups_agree_with_a_search_from_item_to_item(edges: list[tuple[int, int]]) -> None:
    def reached(start: int) -> set[int]:
        found, things = {start}, set(edges[start])
        while True:
            more = {place for place, edge in enumerate(edges) if things & set(edge)}
            if more == found:
                return found
            found, things = more, {thing for place in more for thing in edges[place]}

    groups = linked_groups(edges)
    assert sorted(place for group in groups for place in group) == list(range(len(edges)))
    assert all(set(group) == reached(group[0]) for group in groups)


def test_a_chain_of_many_links_is_one_group() -> None:
    edges = [(number, number + 1) for number in range(50_000)]
    random.Random(0).shuffle(edges)
    assert len(linked_groups(edges)) == 1


def test_whole_shares_are_the_nearest_whole_numbers() -> None:
    assert whole_shares(1118, PAPER) == [633, 211, 274]
    assert whole_shares(6360, PAPER) == PAPER
    assert whole_shares(4, [1, 1, 1]) == [2, 1, 1]
    assert whole_shares(2, [9, 1, 1]) == [2, 0, 0]


@given(st.integers(0, 5000), st.lists(st.integers(1, 100), min_size=1, max_size=5))
def test_whole_shares_sum_to_the_whole(total: int, parts: list[int]) -> None:
    shares = whole_shares(total, parts)
    assert sum(shares) == total
    assert all(abs(share - total * part / sum(parts)) < 1 for share, part in zip(shares, parts, strict=True))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=60), st.randoms(use_true_random=False))
def test_groups_are_whole_and_every_item_has_a_split(sizes: list[int], chance: random.Random) -> None:
    groups, first = [], 0
    for size in sizes:
        groups.append(list(range(first, first + size)))
        first += size
    labels = [chance.randrange(2) for _ in range(first)]
    wanted = [1 + share for share in whole_shares(first, [3, 1, 1])]
    wanted[0] -= 3
    assume(wanted[0] > 0)
    splits = part_groups(groups, labels, wanted)
    assert sorted(item for split in splits for item in split) == list(range(first))
    of_item = {item: number for number, split in enumerate(splits) for item in split}
    assert all(len({of_item[item] for item in group}) == 1 for group in groups)


def test_single_items_give_exact_sizes_and_equal_labels() -> None:
    labels = [number % 2 for number in range(1000)]
    random.Random(0).shuffle(labels)
    splits = part_groups([[item] for item in range(1000)], labels, [600, 160, 240])
    assert [Counter(labels[item] for item in split) for split in splits] == [
        {0: 300, 1: 300},
        {0: 80, 1: 80},
        {0: 120, 1: 120},
    ]
    # no split is filled before another is begun
    assert all(min(split) < 30 and max(split) > 970 for split in splits)


def test_a_large_group_of_one_label_is_made_up_for_by_the_others() -> None:
    labels = [0] * 50 + [1] * 50
    groups = [list(range(20)), *([item] for item in range(20, 100))]
    splits = part_groups(groups, labels, [60, 20, 20])
    assert splits[0][:20] == groups[0]
    assert [Counter(labels[item] for item in split) for split in splits] == [
        {0: 30, 1: 30},
        {0: 10, 1: 10},
        {0: 10, 1: 10},
    ]


def test_a_group_that_fits_nowhere_goes_where_the_largest_part_is_free() -> None:
    groups = [list(range(0, 6)), list(range(6, 9)), [9]]
    assert part_groups(groups, [0, 1] * 5, [5, 2, 3]) == [[0, 1, 2, 3, 4, 5], [9], [6, 7, 8]]
