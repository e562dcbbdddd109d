"""Direction words: what is exchanged, what stays, and that exchanging twice gives any text back."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mvc.multimodal.directions import (
    HORIZONTAL,
    PHRASES,
    VERTICAL,
    direction_words,
    exchange_left_right,
    exchange_top_bottom,
)

WORDS = [word for pair in (*HORIZONTAL, *VERTICAL) for word in pair]
FORMS = [form for word in WORDS for form in (word, word.capitalize(), word.upper(), word[0] + word[1:].upper())]
PIECES = [
    *FORMS,
    *(word for phrase in PHRASES for word in phrase.split()),
    *("a", "A", "an", "An", "AN", "the", "The", "cat", "leftover", "rights"),
]
GAPS = [" ", "  ", "-", "_", ", ", ".", "\n", "", "'", "\u0301", "9"]
TEXTS = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(GAPS)), max_size=12).map(
    lambda parts: "".join(piece + gap for piece, gap in parts)
)


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("a red 3 left of a blue 7", "a red 3 right of a blue 7"),
        ("Left, then RIGHT; left-hand (right)", "Right, then LEFT; right-hand (left)"),
        ("the leftmost cat looks rightwards", "the rightmost cat looks leftwards"),
        ("left_eye and right_eye's lid", "right_eye and left_eye's lid"),
        ("on the left next to the right angle", "on the right next to the left angle"),
        ("a left shoe", "a right shoe"),
        ("he left the room", "he right the room"),  # grammar is not read, as the docstring says
    ],
)
def test_left_and_right_change_places(text: str, mirrored: str) -> None:
    assert exchange_left_right(text) == mirrored and exchange_left_right(mirrored) == text


@pytest.mark.parametrize(
    ("text", "mirrored"),
    [
        ("a cloud above a tree, the top of it", "a cloud below a tree, the bottom of it"),
        ("An upper window and a lower one", "A lower window and an upper one"),
        ("AN UPPER FLOOR", "A LOWER FLOOR"),
        ("A LOWER FLOOR", "AN UPPER FLOOR"),
        ("A lower floor", "An upper floor"),
        ("an above-ground pool", "a below-ground pool"),
        ("a bottom shelf", "a top shelf"),
        ("left of the uppermost box", "left of the lowermost box"),
    ],
)
def test_top_and_bottom_change_places_with_their_article(text: str, mirrored: str) -> None:
    assert exchange_top_bottom(text) == mirrored and exchange_top_bottom(mirrored) == text


@pytest.mark.parametrize(
    "text",
    [
        "leftover bright rights aright lefts LeFt copyright left2",
        "a cat right next to a dog, all right, right-now and Right  Away",
        "two slices left over",
        "",
    ],
)
def test_what_is_no_direction_to_the_side_stays(text: str) -> None:
    assert exchange_left_right(text) == text and direction_words(text) == []


def test_what_is_no_direction_up_or_down_stays() -> None:
    text = "A man in a top hat and a woman in a tank top, upper case, stop, laptop, over and under, Above all"
    assert exchange_top_bottom(text) == text and exchange_left_right(text) == text


@pytest.mark.parametrize("phrase", PHRASES)
def test_phrases_stay_in_any_case(phrase: str) -> None:
    for text in (phrase, phrase.capitalize(), phrase.upper(), f"so {phrase}."):
        assert exchange_left_right(text) == text and exchange_top_bottom(text) == text


def test_direction_words_are_those_that_would_change() -> None:
    assert direction_words("Top LEFT of all right, below") == ["left", "top", "below"]


@pytest.mark.parametrize("exchange", [exchange_left_right, exchange_top_bottom])
@settings(deadline=None, max_examples=300)
@given(text=TEXTS | st.text())
@example(text="A UPPER")
@example(text="a an upper An lower AN Upper a  UPPER")
@example(text="all left right now")
@example(text="an upper case")
def test_twice_is_the_text_again(exchange: Callable[[str], str], text: str) -> None:
    once = exchange(text)
    assert exchange(once) == text
    # All but letters is as it was: nothing is inserted or lost between the words.
    assert re.sub(r"\w+", "w", once) == re.sub(r"\w+", "w", text)


@settings(deadline=None, max_examples=200)
@given(text=TEXTS)
def test_the_two_exchanges_do_not_disturb_each_other(text: str) -> None:
    assert exchange_top_bottom(exchange_left_right(text)) == exchange_left_right(exchange_top_bottom(text))
