"""Chains: what fits, what is chosen, what filters draw again, and that no draw depends on its company."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvc.errors import ConfigError
from mvc.modality.chain import REPEAT, UNCHANGED, Augmented, Chain, leaf_order
from mvc.modality.nodes import Filter, Level, Sample
from mvc.modality.steps import Item, Modality, Output, Refused, Result, Step, one_each, within
from mvc.modality.store import ROWS, Store
from mvc.randomness import numpy_generator


def step(
    name: str = "step",
    takes: Modality = "text",
    gives: Modality = "text",
    calls: list[list[Item]] | None = None,
    **settings: Any,
) -> Step:
    """A step that writes its name and a number drawn from the seed behind a text."""

    def flat(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
        if calls is not None:
            calls.append(list(items))
        drawn = [int(numpy_generator(seed, "number").integers(1000)) for seed in seeds]
        return [Output(f"{item} {name}{number}", {"number": number}) for item, number in zip(items, drawn, strict=True)]

    return Step(name, takes, gives, lambda: one_each(flat), identity=name, **settings)


def texts(found: Sequence[Augmented]) -> list[list[str]]:
    return [[leaf.value for leaf in one.leaves] for one in found]


SAMPLES = [Sample(index, f"text {index}") for index in range(5)]


@pytest.mark.parametrize(
    ("levels", "message"),
    [
        ([], "a chain of no steps"),
        (
            [Level(step("painter", "text", "image")), Level(step("eda")), Level(step("captioner", "image", "text"))],
            "eda takes text, and painter before it gives image",
        ),
        ([Level(step("captioner", "image", "text"))], "begins with image .captioner. and ends with text"),
        ([Level(step("flite", random=False), 2)], "flite makes the same of an item every time, and 2 outputs"),
    ],
)
def test_chains_that_do_not_fit_are_refused_before_anything_loads(levels: list[Level], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Chain(levels)


def test_nothing_is_loaded_before_the_first_batch() -> None:
    loaded: list[str] = []

    def load() -> Any:
        loaded.append("now")
        return one_each(lambda items, seeds: [Output(item) for item in items])

    chain = Chain([Level(Step("lazy", "text", "text", load, "lazy"))])
    assert loaded == []
    chain.augment(SAMPLES, 0, Store(None))
    chain.augment(SAMPLES, 0, Store(None))
    assert loaded == ["now"]


def test_the_choice_is_uniform_among_all_leaves() -> None:
    """2 x 2 x 2 = 8 leaves, 5 chosen: each is in 5 of 8 samples, and pairs in 5 x 4 of 8 x 7."""
    chosen = [set(leaf_order(0, Sample(index, ""), [2, 2, 2])[:5]) for index in range(4000)]
    counts = Counter(path for paths in chosen for path in paths)
    assert set(counts) == {(i, j, k) for i in range(2) for j in range(2) for k in range(2)}
    for count in counts.values():
        assert abs(count / 4000 - 5 / 8) < 0.03  # four standard errors
    both = sum((0, 0, 0) in paths and (1, 1, 1) in paths for paths in chosen)
    assert abs(both / 4000 - 20 / 56) < 0.03


def test_fan_out_gives_every_leaf_once_and_the_choice_takes_its_first_ones() -> None:
    levels = [Level(step("f"), 2), Level(step("h"), 3), Level(step("g"), 2)]
    every = Chain(levels, 12).augment(SAMPLES, 7, Store(None))
    assert all(len({leaf.path for leaf in one.leaves}) == 12 == len(one.leaves) for one in every)
    few = Chain(levels, 5).augment(SAMPLES, 7, Store(None))
    for one, all_of_it in zip(few, every, strict=True):
        assert [leaf.path for leaf in one.leaves] == leaf_order(7, one.sample, [2, 3, 2])[:5]
        assert texts([one])[0] == texts([all_of_it])[0][:5]
        for leaf in one.leaves:  # F's output is a part of H's, and that of G's
            assert [node.value for node in leaf.trail[:-1]] == [
                " ".join(leaf.value.split()[: 2 + count]) for count in (1, 2)
            ]


def test_only_what_is_chosen_is_made() -> None:
    f_calls: list[list[Item]] = []
    g_calls: list[list[Item]] = []
    levels = [Level(step("f", calls=f_calls), 10), Level(step("g", calls=g_calls), 10)]
    Chain(levels, 5).augment(SAMPLES[:1], 0, Store(None))
    assert sum(map(len, g_calls)) == 5
    assert sum(map(len, f_calls)) == len({path[0] for path in leaf_order(0, SAMPLES[0], [10, 10])[:5]})


def test_draws_depend_on_seed_sample_and_branch_alone() -> None:
    levels = [Level(step("f", batch_size=3), 2), Level(step("g", batch_size=2), 4)]
    together = texts(Chain(levels).augment(SAMPLES, 3, Store(None)))
    alone = [texts(Chain(levels).augment([sample], 3, Store(None)))[0] for sample in SAMPLES]
    backwards = texts(Chain(levels).augment(SAMPLES[::-1], 3, Store(None)))[::-1]
    assert together == alone == backwards
    assert texts(Chain(levels).augment(SAMPLES, 4, Store(None))) != together
    other_part = [Sample(sample.index, sample.item, "sentence2") for sample in SAMPLES]
    assert texts(Chain(levels).augment(other_part, 3, Store(None))) != together


def test_a_filter_draws_again_a_bounded_number_of_times() -> None:
    """Numbers under 700 are refused: after four draws 0.7 ^ 4 of the leaves are lacking, and others stand in."""
    judge = Filter("small", lambda item, value: (int(value.rsplit("f", 1)[1]) >= 700, {"seen": True}))
    samples = [Sample(index, f"text {index}") for index in range(300)]
    calls: list[list[Item]] = []
    level = Level(step("f", calls=calls), 8, (judge,), attempts=4)
    found = Chain([level], 3).augment(samples, 0, Store(None))
    assert all(int(text.rsplit("f", 1)[1]) >= 700 for own in texts(found) for text in own)
    assert all(leaf.trail[0].facts["seen"] for one in found for leaf in one.leaves)
    looked_at = sum(one.looked_at for one in found)
    dropped = sum((one.dropped for one in found), Counter())
    assert set(dropped) == {"small"}
    assert abs(dropped["small"] / looked_at - 0.7**4) < 0.04
    assert abs(sum(map(len, calls)) / looked_at - (1 - 0.7**4) / 0.3) < 0.15  # a geometric law cut at four
    once = Chain([Level(step("f"), 8, (judge,))], 3).augment(samples, 0, Store(None))
    share = sum(one.dropped["small"] for one in once) / sum(one.looked_at for one in once)
    assert abs(share - 0.7) < 0.04


def test_a_step_that_is_not_random_is_not_drawn_again() -> None:
    calls: list[list[Item]] = []
    level = Level(step("f", calls=calls, random=False), 1, (Filter("no", lambda item, value: (False, {})),), 9)
    found = Chain([level]).augment(SAMPLES, 0, Store(None))
    assert sum(map(len, calls)) == len(SAMPLES) and all(one.dropped == {"no": 1} for one in found)
    assert all(one.refusal is None and not one.leaves for one in found)


def test_what_a_step_cannot_do_costs_its_sample_alone() -> None:
    def flat(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
        return within(
            list(items), lambda item: "it is empty" if not item else None, lambda batch: [f"{x}!" for x in batch]
        )

    chain = Chain([Level(Step("f", "text", "text", lambda: one_each(flat), "f"), 3), Level(step("g"))], 2)
    found = chain.augment([Sample(0, "a"), Sample(1, ""), Sample(2, "c")], 0, Store(None))
    assert [len(one.leaves) for one in found] == [2, 0, 2]
    assert [one.refusal for one in found] == [None, "it is empty", None]
    assert found[1].dropped == {"it is empty": 3} and found[1].not_begun == 3


def test_a_first_step_that_gives_too_few_costs_those_alone() -> None:
    def run(items: Sequence[Item], seeds: Sequence[Sequence[int]]) -> list[list[Result]]:
        return [[Output(f"{item} 0"), *[Refused("it gave 1 of 4")] * 3] for item in items]

    chain = Chain([Level(Step("chat", "text", "text", lambda: run, "chat", together=True), 4)], 2)
    for one in chain.augment(SAMPLES, 0, Store(None)):
        assert [leaf.value for leaf in one.leaves] == [f"{one.sample.item} 0"]
        assert one.refusal is None and one.dropped == {"it gave 1 of 4": 3}


def test_a_later_step_that_refuses_drops_the_leaf() -> None:
    def flat(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
        return [
            Refused("nothing was heard") if seed % 2 else Output(f"{item} g")
            for item, seed in zip(items, seeds, strict=True)
        ]

    chain = Chain([Level(step("f"), 8), Level(Step("g", "text", "text", lambda: one_each(flat), "g"))], 3)
    found = chain.augment(SAMPLES, 0, Store(None))
    assert all(one.refusal is None and len(one.leaves) == 3 for one in found)
    assert sum(one.dropped["nothing was heard"] for one in found) == sum(one.looked_at for one in found) - 15 > 0


def test_augmentations_that_say_the_same_are_dropped() -> None:
    def flat(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
        return [Output(f"{item}{'' if seed % 3 == 0 else seed % 3}") for item, seed in zip(items, seeds, strict=True)]

    def same(one: Item, other: Item) -> bool:
        return bool(one == other)

    chain = Chain([Level(Step("f", "text", "text", lambda: one_each(flat), "f"), 30)], 5, same)
    for one in chain.augment(SAMPLES, 0, Store(None)):
        assert sorted(leaf.value for leaf in one.leaves) == [f"{one.sample.item}1", f"{one.sample.item}2"]
        assert one.looked_at == 30 and one.dropped[UNCHANGED] + one.dropped[REPEAT] == 28
        assert one.dropped[UNCHANGED] > 0 and one.dropped[REPEAT] > 0


def test_a_step_that_answers_together_gets_all_seeds_at_once() -> None:
    groups: list[int] = []

    def run(items: Sequence[Item], seeds: Sequence[Sequence[int]]) -> list[list[Result]]:
        groups.extend(len(own) for own in seeds)
        return [
            [Output(f"{item} {place}") for place in range(len(own))] for item, own in zip(items, seeds, strict=True)
        ]

    chain = Chain([Level(Step("chat", "text", "text", lambda: run, "chat", together=True), 4)], 2)
    found = chain.augment(SAMPLES, 0, Store(None))
    assert groups == [4] * len(SAMPLES)
    for one in found:
        assert [leaf.value for leaf in one.leaves] == [f"{one.sample.item} {leaf.path[0]}" for leaf in one.leaves]


def painter(calls: list[list[Item]]) -> Step:
    def flat(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
        calls.append(list(items))
        levels = [numpy_generator(seed, "pixels").integers(0, 256, (4, 5, 3), dtype=np.uint8) for seed in seeds]
        return [Output(Image.fromarray(own), {"level": int(own[0, 0, 0])}) for own in levels]

    return Step("painter", "text", "image", lambda: one_each(flat), "painter")


def reader() -> Step:
    def flat(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
        return [Output(f"{item.getpixel((0, 0))}") for item in items]

    return Step("reader", "image", "text", lambda: one_each(flat), "reader", random=False)


def test_the_store_gives_back_what_was_made_and_nothing_is_made_twice(tmp_path: Path) -> None:
    calls: list[list[Item]] = []
    chain = Chain([Level(painter(calls), 4), Level(reader())], 3)
    first = chain.augment(SAMPLES, 0, Store(tmp_path))
    made = sum(map(len, calls))
    again = chain.augment(SAMPLES, 0, Store(tmp_path))
    assert sum(map(len, calls)) == made and texts(again) == texts(first)
    for one, other in zip(first, again, strict=True):
        for leaf, copy in zip(one.leaves, other.leaves, strict=True):
            assert leaf.trail[0].facts == copy.trail[0].facts
            assert np.array_equal(np.asarray(leaf.trail[0].value), np.asarray(copy.trail[0].value))
            assert (tmp_path / leaf.trail[0].facts["file"]).is_file()
    without = Chain([Level(painter([]), 4), Level(reader())], 3).augment(SAMPLES, 0, Store(None))
    assert texts(without) == texts(first)


def test_after_a_kill_only_what_is_missing_is_made(tmp_path: Path) -> None:
    calls: list[list[Item]] = []
    chain = Chain([Level(painter(calls), 4), Level(reader())], 4)
    whole = texts(chain.augment(SAMPLES, 0, Store(tmp_path)))
    rows = (tmp_path / ROWS).read_bytes().splitlines(keepends=True)
    (tmp_path / ROWS).write_bytes(b"".join(rows[:7]) + rows[7][:20])  # a kill cut the eighth row short
    next(tmp_path.glob(f"{json.loads(rows[2])['key']}*.png")).unlink()
    calls.clear()
    assert texts(chain.augment(SAMPLES, 0, Store(tmp_path))) == whole
    painted = sum(b"painter" in row for row in rows)
    assert sum(map(len, calls)) == painted - sum(b"painter" in row for row in rows[:7]) + 1
    calls.clear()
    chain.augment(SAMPLES, 0, Store(tmp_path))
    assert calls == []


def test_other_settings_are_not_mixed_up_in_the_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    one = Chain([Level(step("f"), 2)], 2).augment(SAMPLES, 0, store)
    other = Chain([Level(Step("f", "text", "text", step("other").load, "other"), 2)], 2).augment(SAMPLES, 0, store)
    assert texts(one) != texts(other)
