"""Units of images that stay together, held out and dealt into folds as a whole."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.group_splits import Unit, hold_out_units, seeded_units, unit_folds
from mvc.randomness import derived_seed
from mvc.storage import sha256_bytes

Shape = list[dict[str, int]]
SHAPES = st.lists(st.dictionaries(st.sampled_from("abc"), st.integers(1, 9), min_size=1), min_size=4, max_size=25)


def units_of(shape: Shape, seed: int = 0) -> list[Unit]:
    """Units with so many different images of each class."""
    groups = {
        f"{name}/{number}-{k}.png": f"p{number}"
        for number, counts in enumerate(shape)
        for name, count in counts.items()
        for k in range(count)
    }
    sha256 = {path: sha256_bytes(path.encode()) for path in groups}
    return seeded_units(groups, groups, sha256, {path: path[0] for path in groups}, seed)


def images(units: list[Unit]) -> Counter[str]:
    return sum((unit.images for unit in units), Counter[str]())


def test_units_are_groups_in_the_order_of_their_hashes() -> None:
    units = units_of([{"a": 2, "b": 1}, {"a": 3}, {"b": 4}, {"c": 1}], seed=7)
    assert [unit.place for unit in units] == sorted(derived_seed(7, f"split group p{n}") for n in range(4))
    of_place = {unit.place: unit for unit in units}
    mixed = of_place[derived_seed(7, "split group p0")]
    assert mixed.paths == ("a/0-0.png", "a/0-1.png", "b/0-0.png")
    assert mixed.images == mixed.different == {"a": 2, "b": 1}


def test_groups_that_share_an_equal_file_are_one_unit_also_in_a_chain() -> None:
    groups = {"a/1.png": "p", "a/2.png": "q", "b/3.png": "q", "b/4.png": "r", "a/5.png": "s", "a/6.png": "s"}
    sha256 = {"a/1.png": "x", "a/2.png": "x", "b/3.png": "y", "b/4.png": "y", "a/5.png": "z", "a/6.png": "z"}
    units = seeded_units(groups, groups, sha256, {path: path[0] for path in groups}, 0)
    assert sorted(unit.paths for unit in units) == [
        ("a/1.png", "a/2.png", "b/3.png", "b/4.png"),
        ("a/5.png", "a/6.png"),
    ]
    joined = next(unit for unit in units if len(unit.paths) == 4)
    assert joined.images == {"a": 2, "b": 2} and joined.different == {"a": 1, "b": 1}
    assert joined.place == min(derived_seed(0, f"split group {name}") for name in "pqr")


def test_a_new_group_moves_no_other() -> None:
    shape = [{"a": 1 + n % 3} for n in range(12)]
    before, after = units_of(shape), units_of([*shape, {"a": 2}])
    assert [unit.paths for unit in after if "/12-" not in unit.paths[0]] == [unit.paths for unit in before]


def test_another_class_moves_nothing_where_groups_do_not_span() -> None:
    shape: Shape = [{"a": 1 + n % 4} for n in range(20)]
    before = hold_out_units(units_of(shape), 0.3, 2)
    after = hold_out_units(units_of([*shape, {"b": 9}, {"b": 3}, {"b": 1}]), 0.3, 2)
    assert {path for path in after if path[0] == "a"} == before
    dealt = unit_folds(units_of(shape), 4)
    more = unit_folds(units_of([*shape, {"b": 9}, {"b": 3}]), 4)
    assert {path: fold for path, fold in more.items() if path[0] == "a"} == dealt


@settings(max_examples=150, deadline=None)
@given(SHAPES, st.sampled_from([0.1, 0.2, 0.5]), st.integers(1, 3), st.integers(0, 5))
def test_what_is_held_out_is_whole_and_leaves_enough(shape: Shape, share: float, fewest: int, seed: int) -> None:
    units = units_of(shape, seed)
    chosen = hold_out_units(units, share, fewest)
    inside = [unit for unit in units if unit.paths[0] in chosen]
    assert {path for unit in inside for path in unit.paths} == chosen
    total, held = images(units), images(inside)
    assert all(total[name] - held[name] >= fewest for name in held)
    # A class with nothing held out has no unit that could still be spared.
    for unit in units:
        if any(not held[name] for name in unit.images):
            assert any(total[name] - held[name] - count < fewest for name, count in unit.images.items())


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 6), min_size=8, max_size=30), st.integers(0, 5))
def test_the_share_is_met_to_half_a_unit_where_groups_do_not_span(sizes: list[int], seed: int) -> None:
    units = units_of([{"a": size} for size in sizes], seed)
    wanted = round(0.3 * sum(sizes))
    held = len(hold_out_units(units, 0.3, 1))
    # A unit is refused only if more than half of it would be too much, and taken only if less than half of it is.
    assert abs(held - wanted) <= max(sizes) / 2


def test_a_rare_class_is_served_though_its_groups_are_large() -> None:
    shape: Shape = [{"a": 10}] * 20 + [{"a": 60, "b": 5}, {"a": 60, "b": 5}]
    units = units_of(shape)
    chosen = hold_out_units(units, 0.1, 2)
    held = Counter(path[0] for path in chosen)
    assert held["b"] == 5


@settings(max_examples=100, deadline=None)
@given(SHAPES, st.integers(2, 6), st.integers(0, 5))
def test_folds_deal_every_unit_once(shape: Shape, folds: int, seed: int) -> None:
    units = units_of(shape, seed)
    fold_of = unit_folds(units, folds)
    assert set(fold_of) == {path for unit in units for path in unit.paths}
    assert set(fold_of.values()) <= set(range(folds))
    assert all(len({fold_of[path] for path in unit.paths}) == 1 for unit in units)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=4, max_size=30), st.integers(2, 6), st.integers(0, 5))
def test_folds_of_a_class_differ_by_at_most_its_largest_group(sizes: list[int], folds: int, seed: int) -> None:
    units = units_of([{"a": size} for size in sizes] + [{"b": 1}] * 7, seed)
    fold_of = unit_folds(units, folds)
    for name, largest in (("a", max(sizes)), ("b", 1)):
        loads = [sum(path[0] == name and fold == number for path, fold in fold_of.items()) for number in range(folds)]
        assert max(loads) - min(loads) <= largest


def test_folds_of_groups_that_span_classes_are_about_even() -> None:
    shape: Shape = [{"a": 1 + n % 3, "b": 1 + n % 2} for n in range(60)]
    fold_of = unit_folds(units_of(shape), 5)
    for name, total in (("a", 120), ("b", 90)):
        loads = [sum(path[0] == name and fold == number for path, fold in fold_of.items()) for number in range(5)]
        assert sum(loads) == total and max(loads) - min(loads) <= 4
