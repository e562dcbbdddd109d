"""Texts as words: cut and joined again, nouns found, words left out with their punctuation kept in order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvc.modality.words import attached, joined, split_words, without


@given(st.text(max_size=60))
def test_cutting_and_joining_changes_blanks_alone(text: str) -> None:
    assert joined(split_words(text)) == " ".join(text.split())


def test_punctuation_is_told_from_words() -> None:
    words = split_words('The "small" dog (a puppy), barked !')
    assert [(word.before, word.core, word.after) for word in words] == [
        ("", "The", ""),
        ('"', "small", '"'),
        ("", "dog", ""),
        ("(", "a", ""),
        ("", "puppy", "),"),
        ("", "barked", ""),
        ("!", "", ""),
    ]
    assert [word.fixed for word in words] == [False] * 6 + [True]


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("you 've seen moore 's film , it 's all", "you've seen moore's film , it's all"),
        ("It DOES N'T and they ca n’t", "It DOESN'T and they can’t"),
        ("rock ' n ' roll , the 'seventies 'stars'", "rock ' n ' roll , the 'seventies 'stars'"),
    ],
)
def test_clitics_that_stand_apart_are_attached(text: str, spoken: str) -> None:
    assert attached(text) == spoken == attached(spoken)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a large white bold three tilted left on a black background", {"three", "background"}),
        ("the small dog quickly chased Sarah near 12 trees", {"dog", "Sarah", "12", "trees"}),
        ("it 's a charming and often affecting journey .", {"it", "s", "", "journey"}),
    ],
)
def test_nouns_names_numbers_and_clitics_are_fixed(text: str, kept: set[str]) -> None:
    words = split_words(text, keep_nouns=True)
    assert {word.core for word in words if word.fixed} == kept
    free = {word.core for word in split_words(text) if word.fixed}
    assert free < kept  # without the wish only clitics and lone punctuation are


def test_what_the_tagger_cannot_read_stays_as_it_is() -> None:
    assert all(word.fixed for word in split_words("и кот спит", keep_nouns=True) if word.core != "и")
    assert split_words("", keep_nouns=True) == [] and split_words(" ... ", keep_nouns=True)[0].fixed


@pytest.mark.parametrize(
    ("place", "left"),
    [
        (0, '"small" dog (a puppy), barked!'),
        (2, 'The "small" (a puppy), barked!'),
        (3, 'The "small" dog (puppy), barked!'),
        (4, 'The "small" dog (a), barked!'),
        (5, 'The "small" dog (a puppy),!'),
    ],
)
def test_a_word_left_out_leaves_its_punctuation_to_its_neighbour(place: int, left: str) -> None:
    assert joined(without(split_words('The "small" dog (a puppy), barked!'), place)) == left
