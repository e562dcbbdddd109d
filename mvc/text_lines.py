"""The lines of a user's text in UTF-8, decoded one by one: an error names the line, and memory stays small."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import IO

from mvc.errors import DataError
from mvc.walk import printable

LINE_LIMIT = 64 * 2**20
"""Bytes of one line: what is longer is no table of texts, and would fill the memory."""


def name_of(source: Path | IO[bytes]) -> str:
    """What errors call a file or stream."""
    name = source if isinstance(source, Path) else getattr(source, "name", None)
    if name == "<stdin>" or not isinstance(name, str | Path):
        return "the input"
    return printable(str(name))


def read_lines(source: Path | IO[bytes]) -> Iterator[str]:
    """The lines of a file or stream with their ends, each decoded when it is asked for.

    Args:
        source: a file, or a binary stream such as sys.stdin.buffer; lines end in LF, which a CR may precede.

    Raises:
        DataError: the file is missing or cannot be read, a line is not UTF-8, holds a NUL byte or is longer than
            `LINE_LIMIT`; names the line.
    """
    name = name_of(source)
    try:
        with open(source, "rb") if isinstance(source, Path) else nullcontext(source) as file:
            for number, line in enumerate(iter(partial(file.readline, LINE_LIMIT + 1), b""), 1):
                yield _decoded(line.removeprefix(codecs.BOM_UTF8) if number == 1 else line, f"{name}, line {number}")
    except FileNotFoundError as error:
        raise DataError(f"{name} is missing", do="check the path") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read", why=error.strerror or str(error), do="check the path") from error


def _decoded(line: bytes, where: str) -> str:
    if len(line) > LINE_LIMIT:
        why = f"a line may have {LINE_LIMIT:,} bytes"
        raise DataError(f"{where} is too long", why=why, do="check that it is a text with one row a line")
    if b"\0" in line:
        raise DataError(
            f"{where} holds a NUL byte",
            why="the file is UTF-16, or no text at all",
            do="convert it: iconv -f UTF-16 -t UTF-8 OLD > NEW",
        )
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where} is not UTF-8",
            why=f"{error.reason}: 0x{line[error.start]:02x} at byte {error.start + 1} of the line",
            do="convert the file, such as: iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from error
