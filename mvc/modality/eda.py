"""Easy data augmentation: words of a text are replaced by synonyms, inserted, swapped or left out.

Wei and Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks",
Sec. 2. Each augmentation is one operation, drawn uniformly, on n = max(1, share x words) of the text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mvc.config_augment import OPERATIONS
from mvc.randomness import numpy_generator
from mvc.storage import sha256_file, sha256_json

from .steps import Item, Output, Refused, Result, Run, Step, one_each
from .synonyms import TABLE, read_synonyms
from .words import Word, joined, split_words, without

Synonyms = Mapping[str, Sequence[str]]
_TRIES = 20
"""Pairs of words that are drawn for a swap until two differ."""


def eda_step(
    operations: Sequence[str] = OPERATIONS,
    share: float = 0.1,
    synonyms: Path | None = None,
    keep_nouns: bool = False,
    batch_size: int = 256,
) -> Step:
    """The step text -> text; randomness from (seed of the output, "eda").

    Args:
        operations: of "synonym", "insertion", "swap", "deletion"; one is drawn for each text. Where it cannot be done,
            as in a text without synonyms, another one is.
        share: of the words that are changed, in (0, 1]; alpha in the paper.
        synonyms: JSON file of the user's; the embedded table when None.
        keep_nouns: leave nouns, names, numbers and pronouns alone, as Back-Modality tells its rewriter (Sec. 3.2).
        batch_size: texts between two looks at the stop flag.
    """
    path = synonyms or TABLE

    def load() -> Run:
        table = read_synonyms(path)
        return one_each(partial(_edit_all, operations=operations, share=share, synonyms=table, keep_nouns=keep_nouns))

    settings = [sorted(operations), share, keep_nouns, sha256_file(path) if path.is_file() else str(path)]
    name = "EDA" + (" that keeps nouns" if keep_nouns else "")
    identity = sha256_json(["eda", 1, settings])
    return Step(name, "text", "text", load, identity, batch_size=batch_size, keep=False)


def _edit_all(items: Sequence[Item], seeds: Sequence[int], **settings: Any) -> list[Result]:
    return [edit(str(item), seed, **settings) for item, seed in zip(items, seeds, strict=True)]


def edit(text: str, seed: int, operations: Sequence[str], share: float, synonyms: Synonyms, keep_nouns: bool) -> Result:
    """One augmentation of a text; refused where no operation can change it.

    Args:
        text: any text.
        seed: of this augmentation.
        operations, share, keep_nouns: as `eda_step`.
        synonyms: by lower-case word.
    """
    words = split_words(text, keep_nouns)
    count = sum(bool(word.core) for word in words)
    if not count:
        return Refused("the text has no words")
    random = numpy_generator(seed, "eda")
    amount = max(1, round(share * count))
    for operation in random.permutation(sorted(operations)):
        changed = _OPERATIONS[str(operation)](words, amount, synonyms, random)
        if changed is not None and joined(changed) != joined(words):
            return Output(joined(changed), {"operation": str(operation)})
    return Refused("the text has too few words that may be changed")


def _free(words: Sequence[Word]) -> list[int]:
    """Places of words that may be changed."""
    return [place for place, word in enumerate(words) if not word.fixed]


def _with_synonyms(words: Sequence[Word], synonyms: Synonyms) -> list[int]:
    return [place for place in _free(words) if synonyms.get(words[place].core.casefold())]


def _synonym_of(core: str, synonyms: Synonyms, random: np.random.Generator) -> str:
    """A synonym, with a capital letter where the word has one."""
    found = synonyms[core.casefold()]
    chosen = str(found[int(random.integers(len(found)))])
    return chosen[:1].upper() + chosen[1:] if core[:1].isupper() else chosen


def _replaced(words: Sequence[Word], amount: int, synonyms: Synonyms, random: np.random.Generator) -> list[Word] | None:
    """Replace words by synonyms."""
    places = _with_synonyms(words, synonyms)
    if not places:
        return None
    changed = list(words)
    for place in random.permutation(places)[:amount]:
        changed[place] = replace(words[place], core=_synonym_of(words[place].core, synonyms, random))
    return changed


def _inserted(words: Sequence[Word], amount: int, synonyms: Synonyms, random: np.random.Generator) -> list[Word] | None:
    """Insert synonyms of words anywhere."""
    places = _with_synonyms(words, synonyms)
    if not places:
        return None
    changed = list(words)
    for _ in range(amount):
        source = words[int(random.choice(places))].core
        # Before a word and not at the end, where it would follow the full stop.
        changed.insert(int(random.integers(len(changed))), Word(_synonym_of(source.lower(), synonyms, random)))
    return changed


def _swapped(words: Sequence[Word], amount: int, synonyms: Synonyms, random: np.random.Generator) -> list[Word] | None:
    """Let pairs of words change places; punctuation stays where it is."""
    places = _free(words)
    if len({words[place].core for place in places}) < 2:
        return None
    changed = list(words)
    for _ in range(amount):
        for _ in range(_TRIES):
            one, other = (int(place) for place in random.choice(places, 2, replace=False))
            if changed[one].core != changed[other].core:
                break
        cores = changed[one].core, changed[other].core
        changed[one], changed[other] = replace(changed[one], core=cores[1]), replace(changed[other], core=cores[0])
    return changed


def _deleted(words: Sequence[Word], amount: int, synonyms: Synonyms, random: np.random.Generator) -> list[Word] | None:
    """Leave words out; one word stays at least."""
    places = _free(words)
    most = min(amount, sum(bool(word.core) for word in words) - 1, len(places))
    if most < 1:
        return None
    changed = list(words)
    for place in sorted(map(int, random.permutation(places)[:most]), reverse=True):
        changed = without(changed, place)
    return changed


_OPERATIONS: dict[str, Callable[[Sequence[Word], int, Synonyms, np.random.Generator], list[Word] | None]] = {
    "synonym": _replaced,
    "insertion": _inserted,
    "swap": _swapped,
    "deletion": _deleted,
}
