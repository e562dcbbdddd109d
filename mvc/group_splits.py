"""Splits and folds that never part images of one group, though groups may span classes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from mvc.randomness import derived_seed


@dataclass(frozen=True)
class Unit:
    """Images that stay together: a group, with the other groups that share an equal file with it.

    Attributes:
        place: in the seeded order, in [0, 2**63).
        paths: of all its images, sorted.
        images: how many, by class.
        different: how many different ones, by class.
    """

    place: int
    paths: tuple[str, ...]
    images: Counter[str]
    different: Counter[str]


def seeded_units(
    paths: Iterable[str],
    groups: Mapping[str, str],
    sha256: Mapping[str, str],
    class_of: Mapping[str, str],
    seed: int,
) -> list[Unit]:
    """The units of some images in seeded order; a new group takes its own place and moves no other one.

    Args:
        paths: of the images.
        groups, sha256, class_of: group, digest and class by path.
        seed: data.seed.

    Returns:
        Units; randomness: (seed, "split group <name>"), one draw a group; a unit takes the least of its groups.
    """
    joined: dict[str, str] = {}

    def first_of(name: str) -> str:
        while joined.setdefault(name, name) != name:
            joined[name] = joined[joined[name]]
            name = joined[name]
        return name

    owner: dict[str, str] = {}
    ordered = sorted(paths)
    for path in ordered:
        one, other = first_of(groups[path]), first_of(owner.setdefault(sha256[path], groups[path]))
        joined[max(one, other)] = min(one, other)
    members = defaultdict(list)
    for path in ordered:
        members[first_of(groups[path])].append(path)
    place = {name: derived_seed(seed, f"split group {name}") for name in joined}
    units = []
    for together in members.values():
        images = Counter(class_of[path] for path in together)
        different = Counter(class_name for class_name, _ in {(class_of[path], sha256[path]) for path in together})
        units.append(Unit(min(place[groups[path]] for path in together), tuple(together), images, different))
    return sorted(units, key=lambda unit: unit.place)


def hold_out_units(units: Sequence[Unit], share: float, fewest: int) -> set[str]:
    """Choose whole units with about `share` of each class's images.

    Unit after unit, in order, is taken if that brings its classes nearer to their shares, all of them together and
    each measured by its share. A class that got none then takes the unit that fits best, if it can spare one.
    Units are not cut, so a class with few large ones gets more or less than its share.

    Args:
        units: in seeded order.
        share: of each class's images, in (0, 1).
        fewest: how many different images of each class have to stay behind.

    Returns:
        The chosen paths.
    """
    wanted, left, held = Counter[str](), Counter[str](), Counter[str]()
    for unit in units:
        wanted.update(unit.images)
        left.update(unit.different)
    for name in wanted:
        wanted[name] = max(1, round(share * wanted[name]))
    chosen: set[str] = set()

    def gain(unit: Unit) -> float:
        return sum(
            (abs(wanted[name] - held[name]) - abs(wanted[name] - held[name] - count)) / wanted[name]
            for name, count in unit.images.items()
        )

    def spared(unit: Unit) -> bool:
        return all(left[name] - count >= fewest for name, count in unit.different.items())

    def take(unit: Unit) -> None:
        chosen.update(unit.paths)
        held.update(unit.images)
        left.subtract(unit.different)

    for unit in units:
        if spared(unit) and gain(unit) > 0:
            take(unit)
    for name in sorted(wanted):
        # A class that got nothing has no unit among the chosen ones.
        able = [] if held[name] else [unit for unit in units if name in unit.images and spared(unit)]
        if able:
            take(max(able, key=gain))
    return chosen


def unit_folds(units: Sequence[Unit], folds: int) -> dict[str, int]:
    """Deal whole units into folds: each goes, in order, where its classes have the smallest part of their images yet.

    The folds' images of a class that shares no group with another differ by at most its largest unit.

    Args:
        units: in seeded order.
        folds: how many, at least 2.

    Returns:
        fold by path.
    """
    total = Counter[str]()
    for unit in units:
        total.update(unit.images)
    load = {name: [0] * folds for name in total}
    fold_of: dict[str, int] = {}
    for unit in units:
        # Among equally good folds the unit's own hash decides, so that those left over don't all go to the first ones.
        order = [(unit.place + step) % folds for step in range(folds)]
        best = min(order, key=lambda fold: _crowding(unit, load, total, fold))
        fold_of.update(dict.fromkeys(unit.paths, best))
        for name, count in unit.images.items():
            load[name][best] += count
    return fold_of


def _crowding(unit: Unit, load: Mapping[str, Sequence[int]], total: Mapping[str, int], fold: int) -> float:
    """How much of the unit's classes a fold holds, each by its share; half the slope of the sum of squares."""
    return sum(count * load[name][fold] / total[name] ** 2 for name, count in unit.images.items())
