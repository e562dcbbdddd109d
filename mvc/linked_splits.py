"""Labelled items that are linked with each other, parted into splits of wanted sizes without cutting a link."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence


def linked_groups(edges: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Group items that share something, directly or through others: connected components.

    Args:
        edges: of each item the two things that it links, such as the images of two captions; may be one thing twice.

    Returns:
        The places of the items of each group in `edges`, ascending; groups in the order of their first items.
    """
    joined: dict[int, int] = {}

    def first_of(thing: int) -> int:
        while joined.setdefault(thing, thing) != thing:
            joined[thing] = joined[joined[thing]]
            thing = joined[thing]
        return thing

    for one, other in edges:
        joined[first_of(one)] = first_of(other)
    groups = defaultdict(list)
    for place, (one, _) in enumerate(edges):
        groups[first_of(one)].append(place)
    return list(groups.values())


def whole_shares(total: int, parts: Sequence[int]) -> list[int]:
    """Part a whole number in given proportions, by largest remainders: 1118 by 3600 : 1200 : 1560 is 633, 211, 274."""
    whole = sum(parts)
    shares = [total * part // whole for part in parts]
    # Of equal remainders the earlier part's is taken: sorting keeps their order.
    largest = sorted(range(len(parts)), key=lambda place: -(total * parts[place] % whole))
    for place in largest[: total - sum(shares)]:
        shares[place] += 1
    return shares


def part_groups(groups: Sequence[Sequence[int]], labels: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Give each group to a split, so that splits get near their sizes and have labels in the same proportions.

    The largest group comes first, equal ones in the order given, which a caller may shuffle. Each goes to the split
    that lacks the most of the group's labels, as a part of what it shall have of them, among the splits that it fits
    into; one that fits nowhere, where the largest part is free. With many small groups, sizes come out exactly.

    Args:
        groups: places of items in `labels`; together all of them, each once.
        labels: of the items.
        sizes: wanted items of each split, at least 1; their sum is the number of items.

    Returns:
        The places of the items of each split, ascending.
    """
    splits: list[list[int]] = [[] for _ in sizes]
    counts = Counter(labels)
    weights = [{label: len(labels) / (size * count) for label, count in counts.items()} for size in sizes]
    lacking = [dict.fromkeys(counts, 1.0) for _ in sizes]
    for group in sorted(groups, key=len, reverse=True):
        needs = [sum(part[labels[item]] for item in group) for part in lacking]
        room = [size - len(items) for size, items in zip(sizes, splits, strict=True)]
        fitting = [split for split in range(len(sizes)) if room[split] >= len(group)]
        if fitting:
            chosen = max(fitting, key=needs.__getitem__)
        else:
            chosen = max(
                range(len(sizes)), key=[left / size for left, size in zip(room, sizes, strict=True)].__getitem__
            )
        splits[chosen].extend(group)
        for item in group:
            lacking[chosen][labels[item]] -= weights[chosen][labels[item]]
    return [sorted(items) for items in splits]
