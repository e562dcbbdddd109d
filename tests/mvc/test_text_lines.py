"""Lines of a user's text: decoded one by one, with errors that say which line and how to convert it."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from mvc.errors import DataError
from mvc.text_lines import LINE_LIMIT, name_of, read_lines


def test_lines_keep_their_ends_and_lose_one_byte_order_mark() -> None:
    content = "\ufeff\ufeffa\r\n\n\ufeffb\rc"
    assert list(read_lines(io.BytesIO(content.encode()))) == ["\ufeffa\r\n", "\n", "\ufeffb\rc"]
    assert list(read_lines(io.BytesIO(b""))) == []


def test_bytes_that_are_no_text_name_line_place_and_cure() -> None:
    good = "caf\u00e9\n".encode()
    bad = "un caf\u00e9 noir\n".encode("latin-1")
    lines = read_lines(io.BytesIO(good + bad))
    assert next(lines) == "caf\u00e9\n"
    with pytest.raises(
        DataError,
        match="line 2 is not UTF-8\nwhy: .*: 0xe9 at byte 7 of the line\ndo: .*iconv -f WINDOWS-1252 -t UTF-8",
    ):
        next(lines)
    assert bad.decode("windows-1252") == "un caf\u00e9 noir\n"


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_another_unicode_encoding_is_recognised(encoding: str) -> None:
    content = "text,label\nfine,1\n".encode(encoding)
    with pytest.raises(
        DataError, match="line 1 holds a NUL byte\nwhy: the file is UTF-16.*\ndo: convert it: iconv -f UTF-16"
    ):
        list(read_lines(io.BytesIO(content)))


def test_a_line_without_end_does_not_fill_the_memory() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
            self.given += len(buffer)
            buffer[:] = b"x" * len(buffer)
            return len(buffer)

    endless = Endless()
    with pytest.raises(DataError, match="line 1 is too long\nwhy: a line may have 67,108,864 bytes\ndo: check"):
        next(read_lines(io.BufferedReader(endless, 2**20)))
    assert LINE_LIMIT < endless.given < LINE_LIMIT + 2**22


def test_names_are_safe_to_print(tmp_path: Path) -> None:
    assert name_of(Path("a\x1b[31m.csv")) == "a\\x1b[31m.csv"
    assert name_of(io.BytesIO()) == "the input"
    with open(tmp_path / "a.csv", "wb") as file:
        assert name_of(file) == str(tmp_path / "a.csv")
    with pytest.raises(DataError, match="absent is missing\ndo: check the path"):
        list(read_lines(tmp_path / "absent"))
    with pytest.raises(DataError, match="cannot be read\nwhy: Is a directory"):
        list(read_lines(tmp_path))
