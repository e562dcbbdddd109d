"""EDA: each operation by itself, how many words it changes, what it must not touch, and what cannot be changed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.modality.chain import Chain
from mvc.modality.eda import eda_step, edit
from mvc.modality.edit_distance import same_words
from mvc.modality.nodes import Level, Sample
from mvc.modality.steps import Output, Refused
from mvc.modality.store import Store

TEXT = "the quick brown fox swiftly jumps over a lazy dog near one large green river"
WORDS = TEXT.split()
SYNONYMS = {"quick": ["fast", "speedy"], "swiftly": ["quickly"], "large": ["big"], "lazy": ["idle"], "dog": ["hound"]}


def edited(operation: str, seed: int, share: float = 0.1, keep_nouns: bool = False, text: str = TEXT) -> str:
    made = edit(text, seed, [operation], share, SYNONYMS, keep_nouns)
    assert isinstance(made, Output) and made.facts == {"operation": operation}
    return str(made.value)


@pytest.mark.parametrize(("share", "amount"), [(0.01, 1), (0.1, 2), (0.2, 3)])
def test_so_many_words_are_replaced_by_their_synonyms(share: float, amount: int) -> None:
    for seed in range(30):
        pairs = [
            (old, new) for old, new in zip(WORDS, edited("synonym", seed, share).split(), strict=True) if old != new
        ]
        assert len(pairs) == amount
        assert all(new in SYNONYMS[old] for old, new in pairs)


@pytest.mark.parametrize(("share", "amount"), [(0.01, 1), (0.2, 3)])
def test_so_many_synonyms_are_inserted(share: float, amount: int) -> None:
    every = {synonym for own in SYNONYMS.values() for synonym in own}
    for seed in range(30):
        extra = Counter(edited("insertion", seed, share).split()) - Counter(WORDS)
        assert sum(extra.values()) == amount and set(extra) <= every


@pytest.mark.parametrize(("share", "moved"), [(0.01, {2}), (0.2, {2, 3, 4, 5, 6})])
def test_swaps_keep_all_words(share: float, moved: set[int]) -> None:
    for seed in range(30):
        words = edited("swap", seed, share).split()
        assert Counter(words) == Counter(WORDS)
        assert sum(old != new for old, new in zip(WORDS, words, strict=True)) in moved


@pytest.mark.parametrize(("share", "amount"), [(0.01, 1), (0.2, 3), (1.0, len(WORDS) - 1)])
def test_so_many_words_are_left_out_and_one_stays(share: float, amount: int) -> None:
    for seed in range(30):
        words = edited("deletion", seed, share).split()
        assert len(words) == len(WORDS) - amount
        places = [WORDS.index(word) for word in words if WORDS.count(word) == 1]
        assert places == sorted(places)  # in their order


@pytest.mark.parametrize("operation", ["synonym", "insertion", "swap", "deletion"])
def test_nouns_stay_intact_where_that_is_wished(operation: str) -> None:
    nouns = ["fox", "dog", "one", "river"]
    for seed in range(60):
        left = edited(operation, seed, 0.5, keep_nouns=True).split()
        assert [word for word in left if word in nouns] == nouns


@pytest.mark.parametrize("operation", ["synonym", "swap", "deletion"])
def test_nouns_are_changed_like_others_where_it_is_not(operation: str) -> None:
    assert any(edited(operation, seed, 0.5).split()[-6:-5] != ["dog"] for seed in range(60))


def test_operations_are_drawn_alike() -> None:
    made = [
        edit(TEXT, seed, ["synonym", "insertion", "swap", "deletion"], 0.1, SYNONYMS, False) for seed in range(2000)
    ]
    counts = Counter(one.facts["operation"] for one in made if isinstance(one, Output))
    assert sum(counts.values()) == 2000 and all(abs(count - 500) < 80 for count in counts.values())  # four deviations


def test_capitals_and_punctuation_stay_in_place() -> None:
    made = edited("synonym", 0, 1.0, text='"Quick," said the large (lazy) fox.')
    assert made in {f'"{word}," said the big (idle) fox.' for word in ("Fast", "Speedy")}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "has no words"),
        (" ... !", "has no words"),
        ("kiwi", "too few words that may be changed"),
        ("кот кот", "too few words"),
    ],
)
def test_what_cannot_be_changed_is_refused(text: str, why: str) -> None:
    made = edit(text, 0, ["synonym", "swap"], 0.1, SYNONYMS, False)
    assert isinstance(made, Refused) and why in made.why


def test_another_operation_stands_in_for_one_that_cannot_be_done() -> None:
    made = edit("один два три", 0, ["synonym", "insertion", "deletion"], 0.1, SYNONYMS, False)
    assert isinstance(made, Output) and made.facts == {"operation": "deletion"} and len(made.value.split()) == 2


@settings(max_examples=200)
@given(st.text(max_size=80), st.integers(0, 1000), st.floats(0.01, 1.0), st.booleans())
def test_any_text_is_changed_or_refused(text: str, seed: int, share: float, keep_nouns: bool) -> None:
    made = edit(text, seed, ["synonym", "insertion", "swap", "deletion"], share, SYNONYMS, keep_nouns)
    if isinstance(made, Output):
        assert made.value != " ".join(text.split()) and made.value.strip()
    assert edit(text, seed, ["synonym", "insertion", "swap", "deletion"], share, SYNONYMS, keep_nouns) == made


def test_the_step_gives_five_different_ones_of_a_review(tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text('{"charming": ["winsome"]}')
    review = "it 's a charming and often affecting journey , which the cast makes a pleasure to watch ."
    chain = Chain([Level(eda_step(), 10)], 5, same_words)
    (found,) = chain.augment([Sample(0, review)], 0, Store(None))
    assert len({leaf.value for leaf in found.leaves}) == 5 and review not in {leaf.value for leaf in found.leaves}
    chain = Chain([Level(eda_step(["synonym"], synonyms=own))], 1)
    (found,) = chain.augment([Sample(0, review)], 0, Store(None))
    assert found.leaves[0].value == review.replace("charming", "winsome")
    assert eda_step(["synonym"], synonyms=own).identity != eda_step(["synonym"]).identity
