"""Synonyms of common English words: a small table that ships with the package, or a file of the user's.

`python -m mvc.modality.synonyms DICT` makes the table again from WordNet 3.0's files (Debian: wordnet-base).
"""

from __future__ import annotations

import argparse
import json
import re
from collections import defaultdict
from functools import lru_cache
from pathlib import Path

from mvc.errors import DataError
from mvc.storage import read_json, write_text

TABLE = Path(__file__).parent / "wordnet" / "synonyms.json"
"""{word: [synonym, ...]}; from WordNet 3.0, whose licence lies beside it."""
_KINDS = {"noun": "1", "verb": "2", "adj": "35", "adv": "4"}
"""Files of WordNet and the kinds that its sense keys call them by."""
_PLAIN = re.compile(r"^[a-z]{2,}$")


@lru_cache(maxsize=4)
def read_synonyms(path: Path = TABLE) -> dict[str, list[str]]:
    """A table of synonyms, by lower-case word.

    Raises:
        DataError: the file is missing, or is no {word: [synonym, ...]}.
    """
    table = read_json(path)
    if not isinstance(table, dict) or not all(_is_list_of_words(value) for value in table.values()):
        raise DataError(
            f"{path} is no table of synonyms",
            why="a word has something else than a list of words",
            do='write {"large": ["big", "great"], ...}',
        )
    return {word.casefold(): list(dict.fromkeys(synonyms)) for word, synonyms in table.items()}


def _is_list_of_words(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(word, str) and word.strip() for word in value)


def make_table(folder: Path) -> dict[str, list[str]]:
    """Synonyms by word, from WordNet's files: the words that share a word's most frequent meaning.

    A word counts if some meaning of it was found in the texts that WordNet's authors tagged, and as the kind of word
    that it is most often. Other meanings, synonyms of several words and words such as "have" are left out: they would
    change what a sentence says more often than how it says it.

    Args:
        folder: with index.noun, data.noun and so on, and cntlist.rev.
    """
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS  # a second that reading a table does not need

    counts = _counts(folder / "cntlist.rev")
    usual: dict[str, str] = {}
    for word, kind in sorted(counts, key=lambda pair: counts[pair]):
        usual[word] = kind
    table: dict[str, list[str]] = {}
    for kind in _KINDS:
        synsets = _synsets(folder / f"data.{kind}")
        for word, offset in _first_senses(folder / f"index.{kind}"):
            others = [other for other in synsets[offset] if other != word and _PLAIN.match(other)]
            if usual.get(word) == kind and _PLAIN.match(word) and word not in ENGLISH_STOP_WORDS and others:
                table[word] = others
    return dict(sorted(table.items()))


def _counts(path: Path) -> dict[tuple[str, str], int]:
    """How often the most frequent meaning of each word of each kind was found."""
    kinds = {digit: kind for kind, digits in _KINDS.items() for digit in digits}
    counts: dict[tuple[str, str], int] = defaultdict(int)
    for line in path.read_text().splitlines():
        key, sense, count = line.split()
        word, _, rest = key.partition("%")
        if sense == "1" and rest[0] in kinds:
            counts[word, kinds[rest[0]]] = max(counts[word, kinds[rest[0]]], int(count))
    return counts


def _first_senses(path: Path) -> list[tuple[str, str]]:
    """Words and the place of their most frequent meaning; lines of the licence begin with a blank."""
    found = []
    for line in path.read_text().splitlines():
        if not line.startswith(" "):
            fields = line.split()
            found.append((fields[0], fields[-int(fields[2])]))
    return found


def _synsets(path: Path) -> dict[str, list[str]]:
    """Words of each meaning, by its place; adjectives carry marks such as "(a)", which are cut off."""
    found = {}
    for line in path.read_text().splitlines():
        if not line.startswith(" "):
            fields = line.split()
            words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
            found[fields[0]] = [word.partition("(")[0] for word in words]
    return found


def main(arguments: list[str] | None = None) -> None:
    """Make the table and write it, a word a line."""
    parser = argparse.ArgumentParser(prog="python -m mvc.modality.synonyms", description=__doc__)
    parser.add_argument("dict", type=Path, help="folder of WordNet 3.0's files, such as /usr/share/wordnet")
    parser.add_argument("--out", type=Path, default=TABLE)
    given = parser.parse_args(arguments)
    rows = [f" {json.dumps(word)}: {json.dumps(own)}" for word, own in make_table(given.dict).items()]
    write_text(given.out, "{\n" + ",\n".join(rows) + "\n}\n")
    print(f"{len(rows)} words: {given.out}")


if __name__ == "__main__":
    main()
