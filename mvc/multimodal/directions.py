"""Words for directions in the picture: what a caption says after its image was mirrored."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

HORIZONTAL = (
    ("left", "right"),
    ("leftmost", "rightmost"),
    ("leftward", "rightward"),
    ("leftwards", "rightwards"),
)
"""Pairs that a horizontal flip exchanges."""
VERTICAL = (
    ("above", "below"),
    ("top", "bottom"),
    ("upper", "lower"),
    ("topmost", "bottommost"),
    ("uppermost", "lowermost"),
    ("upward", "downward"),
    ("upwards", "downwards"),
)
"""Pairs that a vertical flip exchanges. Words without one clear opposite stay, such as over, under, up, on."""
PHRASES = (
    "all right",
    "right now",
    "right away",
    "right here",
    "right there",
    "right next to",
    "right in front",
    "right behind",
    "right angle",
    "right angles",
    "right side up",
    "left over",
    "left behind",
    "tank top",
    "top hat",
    "upper case",
    "above all",
)
"""Phrases whose word is no direction. Those with the opposite word ("all left", "lower case") are kept as well."""

Table = tuple[re.Pattern[str], Mapping[str, str]]

_START, _END = r"(?<![^\W_])", r"(?![^\W_])"  # no letter or digit beside it; "left_eye" is two words
_ARTICLES = {"a": "an", "an": "a"}


def _forms(word: str) -> tuple[str, str, str]:
    return word, word.capitalize(), word.upper()


def _table(pairs: Sequence[tuple[str, str]]) -> Table:
    """The pattern of a direction word, and the word to put there."""
    words = {
        form: other
        for pair in pairs
        for one, two in (pair, pair[::-1])
        for form, other in zip(_forms(one), _forms(two), strict=True)
    }
    pair_of = {word: f"(?:{'|'.join(sum((_forms(one) for one in pair), ()))})" for pair in pairs for word in pair}
    phrases = [
        r"(?:\s+|-)".join(pair_of.get(word, f"(?i:{word})") for word in phrase.split())
        for phrase in PHRASES
        if not pair_of.keys().isdisjoint(phrase.split())
    ]
    # After "the" it is a direction: "on the left next to a tree".
    kept = rf"(?<!\b[Tt][Hh][Ee] ){_START}(?:{'|'.join(phrases)}){_END}"
    word = rf"{_START}(?:(?P<article>a|A|an|An|AN)(?P<gap>\s+))?(?!{kept})(?P<word>{'|'.join(words)}){_END}"
    return re.compile(f"{kept}|{word}"), words


_LEFT_RIGHT, _UP_DOWN = _table(HORIZONTAL), _table(VERTICAL)


def _exchanged(text: str, table: Table) -> str:
    pattern, words = table

    def other(match: re.Match[str]) -> str:
        word = match["word"]
        if word is None:  # a fixed phrase
            return match[0]
        article = match["article"]
        if article is None:
            return words[word]
        if (word[0] in "aeiouAEIOU") != (words[word][0] in "aeiouAEIOU"):
            article = _other_article(article, word)
        return f"{article}{match['gap']}{words[word]}"

    return pattern.sub(other, text)


def _other_article(article: str, word: str) -> str:
    # "A" is the capital of both "An" and "AN": the word's own form decides, which the exchange does not change.
    capital = word.isupper()
    if article.islower():
        return _ARTICLES[article]
    if article == "A":
        return "AN" if capital else "An"
    return "A" if article.isupper() == capital else article


def exchange_left_right(text: str) -> str:
    """What a text says of the image after a horizontal flip: the pairs of `HORIZONTAL` are exchanged.

    Whole words only, in lower case, Capitalised or UPPER CASE: "left," and "left-hand" change, "leftover", "bright",
    "rights" and "lEFT" do not. Applied twice it gives the text back, whatever the text is.

    It reads no grammar. Of words that are no directions only `PHRASES` are left alone, unless "the" comes before them.
    So verbs and other meanings change too: "he left the room" becomes "he right the room", "the right answer" becomes
    "the left answer". Where captions say such things, leave flips out. "Clockwise" stays, which a flip makes untrue.

    Args:
        text: any text, in English.
    """
    return _exchanged(text, _LEFT_RIGHT)


def exchange_top_bottom(text: str) -> str:
    """What a text says of the image after a vertical flip: the pairs of `VERTICAL` are exchanged.

    As `exchange_left_right`; an article goes with its word ("an upper window", "a lower window"). "A red top", which is
    worn, changes too.

    Args:
        text: any text, in English.
    """
    return _exchanged(text, _UP_DOWN)


def direction_words(text: str) -> list[str]:
    """The words of a text that either exchange would change, in lower case, left and right ones first."""
    return [
        match["word"].lower()
        for pattern, _ in (_LEFT_RIGHT, _UP_DOWN)
        for match in pattern.finditer(text)
        if match["word"]
    ]
