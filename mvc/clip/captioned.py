"""An image with its captions, as every form of data names them: what is a caption, and which paths are allowed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mvc.errors import DataError
from mvc.walk import printable

from .places import Place

KEYS = ("captions", "caption", "text")
"""Columns or keys of captions; the first one that has a value counts."""
_EXAMPLE = 'write "captions": ["a red cat", "a cat on a mat"] or "caption": "a red cat"'


@dataclass
class Captioned:
    """An image and what is said about it.

    Attributes:
        place: where its bytes lie.
        captions: at least one.
    """

    place: Place
    captions: list[str]


def captions_of(values: Mapping[str, Any], where: str) -> list[str]:
    """The captions of a row: a text, or a list of texts; each on one line with single spaces.

    Args:
        values: value by column or key; see `KEYS`.
        where: file and row, for errors.

    Raises:
        DataError: there are none, one is empty or no text; names `where`.
    """
    key = next((key for key in KEYS if values.get(key) is not None), None)
    if key is None:
        there = ", ".join(map(printable, values)) or "nothing"
        why = f"captions are looked for in {', '.join(KEYS)}, and there is {there}"
        raise DataError(f"{where} has no captions", why=why, do=_EXAMPLE)
    found = values[key]
    if key == "captions" and isinstance(found, str) and found.lstrip().startswith("["):
        # What pandas writes for a list in a CSV file; it would pass as one strange caption.
        raise DataError(f"{where}: captions is a list written as text", do="write one row a caption, or JSON Lines")
    texts = found if isinstance(found, list) else [found]
    if not texts:
        raise DataError(f"{where} has no captions", why=f"{key} is an empty list", do=_EXAMPLE)
    return [_caption(text, f"{where}: caption {number}") for number, text in enumerate(texts, 1)]


def _caption(text: Any, where: str) -> str:
    if not isinstance(text, str):
        raise DataError(f"{where} is no text", why=f"it is {text!r:.80}", do=_EXAMPLE)
    caption = " ".join(text.split())
    if not caption:
        raise DataError(f"{where} is empty", do="write it, or remove it")
    return require_unicode(caption, where)


def require_unicode(text: str, where: str) -> str:
    r"""Refuse halves of characters, which JSON can write ("\ud83d") and no tokenizer can read.

    Raises:
        DataError: there is one; names `where`.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{where} holds half a character", why=str(error), do="correct it") from error
    return text


def inner_path(name: Any, key: str, where: str) -> str:
    """A path that stays below its folder, in POSIX form and without needless parts.

    Args:
        name: what the row says; may be written with backslashes.
        key: the key it stands at, for errors.
        where: file and row, for errors.

    Raises:
        DataError: it is no text, absolute, or leads out of the folder; names `where` and the path.
    """
    if not isinstance(name, str) or not name.strip():
        said = "no" if name is None else f"no usable {name!r:.80} as"
        raise DataError(f"{where} has {said} {key}", do=f'write "{key}": "folder/1.jpg"')
    posix = require_unicode(name, f"{where}: {key}").replace("\\", "/")
    # Not by pathlib, which would take most of the time of reading a large table.
    parts = [part for part in posix.split("/") if part not in ("", ".")]
    if not parts or ".." in parts or posix.startswith("/") or "\0" in posix or re.match("[A-Za-z]:", parts[0]):
        raise DataError(
            f"{where}: {key} {printable(name)} leads out of the folder",
            why="paths are relative to one folder and stay below it",
            do="write it without a leading slash, a drive and ..",
        )
    return "/".join(parts)
