"""The words that stand for a class in captions: the folder name, or what the user says."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from difflib import get_close_matches

from mvc.errors import ConfigError
from mvc.walk import listing, printable

_CODE = re.compile(r"n\d{8}|(class|label|cat|c)[_-]?\d+|\d+([._-].*)?", re.IGNORECASE)


def class_words(classes: Sequence[str], class_names: Mapping[str, str]) -> list[str]:
    """The words of each class: from `class_names`, else the folder name with "_" and "-" as spaces.

    Args:
        classes: folder names.
        class_names: words by folder name (data.class_names).

    Raises:
        ConfigError: a key is no folder (names the nearest one), a name is empty, or two classes have the same words.
    """
    for key, value in class_names.items():
        if key not in classes:
            nearest = get_close_matches(key, classes, n=1, cutoff=0.0)
            raise ConfigError(
                f"data.class_names has '{printable(key)}', which is no class folder",
                why=f"the nearest folder is '{printable(nearest[0])}'" if nearest else "",
                do="use the folder names as keys",
            )
        if not value.strip():
            raise ConfigError(f"data.class_names.{printable(key)} is empty", do="give the words for captions")
    words = [class_names.get(name, " ".join(re.split(r"[_\-\s]+", name)).strip() or name).strip() for name in classes]
    folders = defaultdict(list)
    for name, text in zip(classes, words, strict=True):
        folders[text].append(name)
    same = [f"{', '.join(names)} -> {text}" for text, names in folders.items() if len(names) > 1]
    if same:
        raise ConfigError(
            f"classes with the same words: {listing(same)}",
            why="captions could not tell them apart",
            do="give them different words in data.class_names",
        )
    return words


def codes(classes: Sequence[str], class_names: Mapping[str, str]) -> list[str]:
    """Class folders that look like a code ("n01443537", "class_7", "007") and have no words of their own."""
    return [name for name in classes if name not in class_names and _CODE.fullmatch(name)]
