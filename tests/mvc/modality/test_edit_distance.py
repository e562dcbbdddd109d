"""The edit distance: against a plain reference, the axioms of a distance, what counts as the same, the filter."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.errors import EnvironmentFault
from mvc.modality.edit_distance import (
    edit_distance,
    edit_distance_filter,
    letter_distance,
    normal_words,
    same_words,
)

SHORT = st.text("ab c", max_size=12)


def reference(one: str, other: str) -> int:
    """Wagner and Fischer's table (1974), row by row."""
    row = list(range(len(other) + 1))
    for place, letter in enumerate(one, 1):
        before, row = row, [place]
        for column, against in enumerate(other, 1):
            row.append(min(before[column] + 1, row[-1] + 1, before[column - 1] + (letter != against)))
    return row[-1]


@settings(max_examples=300, deadline=None)
@given(SHORT, SHORT)
def test_the_distance_equals_a_plain_table(one: str, other: str) -> None:
    assert letter_distance()(one, other) == reference(one, other) == letter_distance()(other, one)


@settings(max_examples=300, deadline=None)
@given(SHORT, SHORT, SHORT)
def test_no_detour_is_shorter(one: str, over: str, other: str) -> None:
    distance = letter_distance()
    assert distance(one, other) <= distance(one, over) + distance(over, other)
    assert (distance(one, other) == 0) == (one == other)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_any_text_is_at_no_distance_from_itself_however_it_is_written(text: str) -> None:
    words = normal_words(text)
    assert edit_distance(text, text) == edit_distance(text, words) == 0.0
    assert normal_words(words) == words and same_words(text, words)
    assert words == " ".join(words.split()) and words == normal_words(f"  {text}\n")


@settings(max_examples=200, deadline=None)
@given(SHORT, SHORT)
def test_the_share_is_of_the_original(one: str, other: str) -> None:
    spoken, heard = normal_words(one), normal_words(other)
    assert edit_distance(one, other) == reference(spoken, heard) / max(1, len(spoken))
    assert (edit_distance(one, other) == 0.0) == same_words(one, other)


@pytest.mark.parametrize(
    ("one", "other", "share"),
    [
        ("A dog.", "a log", 1 / 5),
        ("kitten", "sitting", 3 / 6),
        ("Don't stop -- now!", "don t stop now", 0.0),
        ("Moore 's film does n't", "moore's film doesn't", 0.0),
        ("a", "a dog", 4.0),
        ("", "", 0.0),
        ("?!", "", 0.0),
        ("", "dog", 3.0),
        ("dog", "", 1.0),
        ("caf\u00e9", "cafe\u0301", 0.0),  # composed and decomposed
        ("STRASSE", "straße", 0.0),
        ("snake_case", "snake case", 0.0),
    ],
)
def test_known_shares(one: str, other: str, share: float) -> None:
    assert edit_distance(one, other) == pytest.approx(share, abs=1e-12)


def test_the_filter_drops_what_exceeds_the_limit_and_notes_the_distance() -> None:
    """20 % of 5 letters is one: two are too many (Sec. 3.2: texts that exceed 20 % are dropped)."""
    one = edit_distance_filter(0.2)
    assert one.name == "edit distance over 20 %"
    assert edit_distance_filter(0.125).name == "edit distance over 12.5 %"
    assert one.judge("a dog", "A log!") == (True, {"edit_distance": 0.2})
    assert one.judge("a dog", "a lot") == (False, {"edit_distance": 0.4})
    assert one.judge("a dog on a mat", "a dog on the mat") == (False, {"edit_distance": 0.2143})
    assert edit_distance_filter(0.0).judge("a dog", "A DOG?") == (True, {"edit_distance": 0.0})


def test_without_rapidfuzz_only_the_distance_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("rapidfuzz")] or ["rapidfuzz"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        EnvironmentFault, match=r"needs the package rapidfuzz\nwhy: .*\ndo: pip install 'mvc\[speech\]'"
    ):
        edit_distance_filter(0.2)
    assert same_words("A dog!", "a dog") and not same_words("a dog", "a log")
