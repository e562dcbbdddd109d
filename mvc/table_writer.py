"""Tables of texts, written row by row to a file, whole or absent, or into a pipe whose reader may leave early."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.storage import flush_folder, json_line
from mvc.tables import Form, check_columns
from mvc.walk import printable

# Characters that a form cannot hold, in words. csv could hold a NUL, and readers, ours too, would refuse the file.
_FORBIDDEN: dict[Form, dict[str, str]] = {
    "csv": {"\0": "a NUL character"},
    "tsv": {"\t": "a tab", "\n": "a line break", "\r": "a carriage return", "\0": "a NUL character"},
    "jsonl": {},
}


class _Echo:
    """A file for csv.writer that gives back what is written to it."""

    def write(self, text: str) -> str:
        return text


class RowWriter:
    """Write rows in batches; use it in a `with` statement.

    A file appears under its name when the block ends well; an old one stays as it was until then, whatever happens.
    A stream gets each batch at once. When whoever reads it has gone (`| head -n 2`), `reader_gone` becomes true and
    all further rows are dropped without an error: the command should then stop its work and exit with 0.

    In csv and tsv, columns are those given, else those of the first row, in its order. A row without one of them has
    an empty field there, as null has; one with another column is refused. Numbers, lists and objects are written as
    compact JSON. jsonl keeps every type and each row's own keys.

    Args:
        target: a file, whose missing parent folders are made, or a binary stream such as sys.stdout.buffer.
        form: what to write.
        columns: of csv and tsv; given, a table without rows has its row of column names, too. jsonl needs none.
        overwrite: whether an existing file may be replaced.

    Raises:
        ConfigError: the file exists and may not be replaced.
        DataError: a row cannot be written in this form; names row (counted from 1) and column, writes nothing of it.
        EnvironmentFault: the disk is full or the place cannot be written.
    """

    def __init__(
        self, target: Path | IO[bytes], form: Form, columns: Sequence[str] | None = None, overwrite: bool = False
    ) -> None:
        self.reader_gone = False
        self._form, self._path = form, target if isinstance(target, Path) else None
        self._name = printable(str(target)) if isinstance(target, Path) else "the output"
        self._columns = None if columns is None or form == "jsonl" else list(columns)
        self._rows = 0
        self._csv = csv.writer(_Echo(), lineterminator="\r\n")
        if isinstance(target, Path):
            _check_target(target, self._name, overwrite)
            # Of a link, what it points to is replaced, as a shell's > does it.
            self._final = Path(os.path.realpath(target))
            self._temporary = self._final.with_name(f".tmp-{os.getpid()}-{self._final.name}")
        else:
            self._file: IO[bytes] = target

    def __enter__(self) -> RowWriter:
        header = "" if self._columns is None else self._header(self._columns)
        if self._path is not None:
            try:
                self._temporary.parent.mkdir(parents=True, exist_ok=True)
                self._file = open(self._temporary, "wb")
            except OSError as error:
                raise self._fault(error) from error
        try:
            self._put(header.encode())
        except BaseException:
            self._discard()  # the block never begins, so that nothing else would
            raise
        return self

    def write(self, batch: Iterable[Mapping[str, Any]]) -> None:
        """Write some rows; a stream has them all when this returns."""
        for values in batch:
            if self.reader_gone:
                return
            self._rows += 1
            self._put(self._line(values).encode())
        self._flush()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            with suppress(EnvironmentFault):  # the first error is the one to tell
                self._flush()
            self._discard()
            return
        self._flush()
        if self._path is not None:
            self._publish()

    def _publish(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._temporary, self._final)
            flush_folder(self._final.parent)
        except OSError as error:
            self._discard()
            raise self._fault(error) from error

    def _discard(self) -> None:
        if self._path is not None:
            with suppress(OSError):  # closing writes what is buffered, to a disk that may be full
                self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _put(self, content: bytes) -> None:
        with self._told():
            left = memoryview(content)
            while left:  # an unbuffered stream may take a part
                left = left[self._file.write(left) :]

    def _flush(self) -> None:
        if self._path is None and not self.reader_gone:
            with self._told():
                self._file.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._leave()
        except OSError as error:
            raise self._fault(error) from error

    def _leave(self) -> None:
        self.reader_gone = True
        # What the stream still holds is flushed when Python ends, which would fail again, loudly: let it go nowhere.
        with suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)

    def _fault(self, error: OSError) -> EnvironmentFault:
        return EnvironmentFault(
            f"cannot write {self._name}",
            why=error.strerror or str(error),
            do="free some space, check permissions, or write elsewhere",
        )

    def _header(self, columns: Sequence[str]) -> str:
        check_columns(columns, self._name)
        return self._joined([self._cell(column, "the row of column names") for column in columns])

    def _line(self, values: Mapping[str, Any]) -> str:
        where = f"row {self._rows}"
        if self._form == "jsonl":
            return _json_text(values, where)
        columns = list(values) if self._columns is None else self._columns
        header = self._header(columns) if self._columns is None else ""
        extra = [column for column in values if column not in columns]
        if extra:
            raise DataError(
                f"{where} has another column: {', '.join(map(printable, extra))}",
                why=f"the columns of {self._form} are fixed before: {', '.join(map(printable, columns))}",
                do="write it with --to jsonl, where rows may differ",
            )
        line = self._joined([self._cell(values.get(name), f"{where}, column '{printable(name)}'") for name in columns])
        self._columns = columns  # no sooner: a first row that is refused fixes nothing
        return header + line

    def _joined(self, cells: Sequence[str]) -> str:
        if self._form == "tsv":
            return "\t".join(cells) + "\n"
        # The module puts quotes around the characters of its line end alone; so it is told both, and writes one.
        line: str = self._csv.writerow(cells)
        return line.removesuffix("\r\n") + "\n"

    def _cell(self, value: Any, where: str) -> str:
        if value is None:
            return ""
        text = value if isinstance(value, str) else _compact(value, where)
        held = next((words for letter, words in _FORBIDDEN[self._form].items() if letter in text), None)
        if held is None and _has_surrogates(text):
            held = "half of a surrogate pair"
        if held is not None:
            raise DataError(
                f"{where} holds {held}", why=f"{self._form} cannot hold it", do="write the table with --to jsonl"
            )
        return text


def _check_target(path: Path, name: str, overwrite: bool) -> None:
    if os.path.exists(path) and not os.path.isfile(path):
        # Replacing /dev/stdout by a file would be a surprise.
        raise ConfigError(f"{name} is no file", do="give the name of a file, or write into a pipe")
    if os.path.exists(path) and not overwrite:
        raise ConfigError(f"{name} exists", why="it would be replaced", do="give another name, or --overwrite")


def _has_surrogates(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _compact(value: Any, where: str) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError as error:
        raise DataError(
            f"{where} holds a number that is not finite", why="JSON has no such number", do="put null in its place"
        ) from error


def _json_text(values: Mapping[str, Any], where: str) -> str:
    try:
        line = json_line(dict(values))
    except ValueError:
        for column, value in values.items():
            _compact(value, f"{where}, column '{printable(column)}'")
        raise
    # Escapes can say what UTF-8 cannot, and read back as the same text.
    return json.dumps(dict(values)) + "\n" if _has_surrogates(line) else line
