"""A text as words that can be moved, replaced and left out, with its punctuation in place; which of them are nouns."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

_CHUNK = re.compile(r"^(\W*)(.*?)(\W*)$", re.DOTALL)
_DETACHED = re.compile(r"(?<=\w) (?=(?:n['’]t|['’](?:s|m|d|re|ve|ll))\b)", re.IGNORECASE)
_KEPT_TAGS = ("NN", "CD", "FW", "PRP")
"""Beginnings of Penn tags: nouns and names, numbers, foreign words, and the pronouns that stand for nouns."""


@dataclass(frozen=True)
class Word:
    """A word and the punctuation that touches it.

    Attributes:
        core: the word; empty for punctuation that stands alone.
        before: punctuation in front, such as an opening quote.
        after: punctuation behind.
        fixed: must stay as it is.
    """

    core: str
    before: str = ""
    after: str = ""
    fixed: bool = False


def attached(text: str) -> str:
    """A text with clitics where speech has them: "does n't" and "moore 's", as tokenized corpora write, are one word.

    A voice would spell them, "moore" and the letter S.
    """
    return _DETACHED.sub("", text)


def split_words(text: str, keep_nouns: bool = False) -> list[Word]:
    """Cut a text at its blanks; `joined` puts it together again.

    Args:
        text: any text; runs of blanks count as one.
        keep_nouns: mark nouns, names, numbers, foreign words and pronouns as fixed. Clitics such as "'s" and
            punctuation that stands alone always are.
    """
    words = []
    for chunk in text.split():
        match = _CHUNK.match(chunk)
        assert match is not None  # the pattern takes everything
        before, core, after = match.groups()
        words.append(Word(core, before, after, fixed=not core or before.endswith(("'", "’"))))
    if not keep_nouns or not any(word.core for word in words):
        return words
    nouns = iter(_are_kept([word.core for word in words if word.core]))
    return [replace(word, fixed=next(nouns) or word.fixed) if word.core else word for word in words]


def _are_kept(cores: Sequence[str]) -> list[bool]:
    """Which words are nouns and the like, in their sentence, by TextBlob's tagger (English; brings its lexicon)."""
    from textblob.en import tag  # half a second

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # it reads its lexicon without closing the file
        tags = tag(" ".join(cores), tokenize=False)
    if len(tags) != len(cores):  # a word with a sign that the tagger cuts at: better all kept than the wrong ones
        return [True] * len(cores)
    return [str(kind).startswith(_KEPT_TAGS) for _, kind in tags]


def joined(words: Sequence[Word]) -> str:
    """The text of words, single blanks between them."""
    return " ".join(word.before + word.core + word.after for word in words)


def without(words: Sequence[Word], place: int) -> list[Word]:
    """The words but for one, whose punctuation goes to its neighbours: "the big (red) dog" -> "the big () dog" never.

    Args:
        words: two or more.
        place: which one is left out. Closing punctuation goes to the word before, opening one to the word behind,
            and both are dropped if they would meet there.
    """
    gone, left = words[place], [*words[:place], *words[place + 1 :]]
    if gone.after and not gone.before and place > 0:
        left[place - 1] = replace(left[place - 1], after=left[place - 1].after + gone.after)
    elif gone.before and not gone.after and place < len(left):
        left[place] = replace(left[place], before=gone.before + left[place].before)
    return left
