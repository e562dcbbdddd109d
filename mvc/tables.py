"""Tables of texts, read row by row from a file or a pipe: CSV, TSV and JSON Lines.

Memory does not grow with the table, and a row of a pipe is there as soon as its line is. They are written by
`mvc.table_writer`.

- csv: commas; quotes may hold commas, quotes and line breaks; a first row of column names; empty lines are passed over.
- tsv: tabs and no quoting at all, so that a double quote is a character like others (SST-2 and TNCC come so); a first
  row of column names; empty lines are passed over, unless there is one column only and an empty line is an empty text.
- jsonl: one JSON object a line, with values of any type; rows may have different keys; empty lines are passed over.

All are UTF-8, with or without byte order mark, with lines that end in LF or CRLF.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any, Literal, NoReturn, get_args

from mvc.errors import ConfigError, DataError
from mvc.text_lines import name_of, read_lines
from mvc.walk import counted, printable

Form = Literal["csv", "tsv", "jsonl"]
FORMS: tuple[Form, ...] = get_args(Form)
SUFFIXES: dict[str, Form] = {".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
FIELD_LIMIT = 10 * 2**20
"""Characters of one csv or tsv field; the csv module's own limit is 131,072."""

# The csv module's words speak to programmers; its message contains the key.
_CSV_WHY = {
    "unexpected end": "a field begins with a double quote that is never closed",
    "expected after": "text stands between a closing double quote and the next comma",
    "new-line character": "a carriage return stands inside a field",
    "field larger": f"a field has more than {FIELD_LIMIT:,} characters, perhaps after a quote that is never closed",
}


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        line: number of the line in the file where the row begins, from 1.
        values: value by column; of csv and tsv always text.
    """

    line: int
    values: dict[str, Any]


class Rows(Iterator[Row]):
    """The rows of a table, each read when it is asked for.

    Attributes:
        columns: of csv and tsv those of the first row of the file, known before any row is read; None of jsonl.
    """

    def __init__(self, columns: tuple[str, ...] | None, rows: Iterator[Row]) -> None:
        self.columns, self._rows = columns, rows

    def __next__(self) -> Row:
        return next(self._rows)


def form_of(path: Path | None, given: str | None) -> Form:
    """The form of a table: the given one, else that of the file's name.

    Args:
        path: the file; None of a pipe.
        given: "csv", "tsv" or "jsonl" of the options --from or --to.

    Raises:
        ConfigError: neither tells the form.
    """
    if given is not None:
        found = next((form for form in FORMS if form == given.lower()), None)
        if found is None:
            raise ConfigError(f"'{printable(given)}' is no form of a table", do=f"give one of {', '.join(FORMS)}")
        return found
    do = f"give --from (of the input) or --to (of the output): {', '.join(FORMS)}"
    if path is None:
        raise ConfigError("the form of the table is not known", why="a pipe has no file name", do=do)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        why = f"its name ends in none of {', '.join(SUFFIXES)}"
        raise ConfigError(f"{printable(str(path))}: the form of the table is not known", why=why, do=do)
    return SUFFIXES[suffix]


def read_rows(source: Path | IO[bytes], form: Form) -> Rows:
    """Read a table row by row; the column names of csv and tsv are read and checked at once.

    Args:
        source: a file, or a binary stream such as sys.stdin.buffer.
        form: what the table is written in.

    Raises:
        DataError: here or at a later row; names the line. The file is missing or empty, a line is not UTF-8 or holds a
            NUL byte, column names are empty or come twice, a row has too many or too few fields or is no JSON object.
    """
    name, lines = name_of(source), read_lines(source)
    if form == "jsonl":
        return Rows(None, _json_rows(lines, name))
    split = _split_rows(lines, form, name)
    columns = next((fields for _, fields in split if fields), None)
    if columns is None:
        raise DataError(f"{name} is empty", why=f"a {form} table begins with column names", do="add that first row")
    check_columns(columns, name)
    return Rows(tuple(columns), _named_rows(split, columns, form, name))


def check_columns(columns: Sequence[str], where: str) -> None:
    """Refuse columns without a name and names that come twice.

    Raises:
        DataError: names them.
    """
    if not columns or "" in columns:
        place = f"column {list(columns).index('') + 1}" if columns else "the table"
        raise DataError(
            f"{where}: {place} has no name",
            why="the first row must name every column",
            do="name it, or leave out the index column (pandas: to_csv(..., index=False))",
        )
    twice = [printable(column) for column, count in Counter(columns).items() if count > 1]
    if twice:
        raise DataError(f"{where}: column names come twice: {', '.join(twice)}", do="give every column its own name")


def require_columns(there: Sequence[str], wanted: Iterable[str], where: str = "the table") -> None:
    """Check that columns are there, before anything is done.

    Raises:
        DataError: one is not; lists those that are, and the nearest where one is alike.
    """
    for column in wanted:
        if column in there:
            continue
        missing = f"{where} has no column '{printable(column)}'"
        if not there:
            raise DataError(missing, why="it has no columns")
        nearest = get_close_matches(column, there, n=1)
        raise DataError(
            missing,
            why=f"its columns are: {', '.join(map(printable, there))}",
            do=f"the nearest is '{printable(nearest[0])}': give that one, or correct the table"
            if nearest
            else "give one of those, or correct the table",
        )


def text_of(row: Row, column: str) -> str:
    """The text of a column of a row.

    Raises:
        DataError: there is no such column, or its value is no text (a number, null, a list in jsonl); names the line.
    """
    require_columns(list(row.values), [column], f"line {row.line}")
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(
            f"line {row.line}: column '{printable(column)}' is no text",
            why=f"it is {_kind_of(value)}",
            do="put texts in double quotes, or remove the row",
        )
    return value


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    kinds = {int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}
    return kinds.get(type(value), type(value).__name__)


def _split_rows(lines: Iterator[str], form: Form, name: str) -> Iterator[tuple[int, list[str]]]:
    """The fields of csv and tsv rows with the line where each begins; an empty line has no fields."""
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_LIMIT))  # one for the whole process; never made smaller
    # strict: otherwise a quote that is never closed would make all that follows one field, without a word
    if form == "csv":
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, strict=True)
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(
                f"{name}, line {line} cannot be read as {form}",
                why=next((why for key, why in _CSV_WHY.items() if key in str(error)), str(error)),
                do="correct that row; a table without quoting, separated by tabs, is --from tsv"
                if form == "csv"
                else "correct that row; a table with quoted fields is csv or jsonl",
            ) from error
        yield line, fields


def _named_rows(split: Iterator[tuple[int, list[str]]], columns: Sequence[str], form: Form, name: str) -> Iterator[Row]:
    for line, found in split:
        if not found and (form == "csv" or len(columns) > 1):
            continue
        fields = found or [""]
        if len(fields) != len(columns):
            cause = "put a text with commas or quotes in quotes" if form == "csv" else "a tab inside a text parts it"
            raise DataError(
                f"{name}, line {line} has {counted(len(fields), 'field')}",
                why=f"the first row names {counted(len(columns), 'column')}",
                do=f"correct that row; {cause}",
            )
        yield Row(line, dict(zip(columns, fields, strict=True)))


def _json_rows(lines: Iterator[str], name: str) -> Iterator[Row]:
    do = 'write one JSON object a line, such as {"text": "a red cat"}'
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line, parse_constant=_no_number)
        except json.JSONDecodeError as error:
            why = f"{error.msg} at character {error.pos + 1}"
            raise DataError(f"{name}, line {number} is not JSON", why=why, do=do) from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}, line {number} is not JSON", why=str(error), do=do) from error
        if not isinstance(value, dict):
            raise DataError(f"{name}, line {number} is no JSON object", why=f"it is {_kind_of(value)}", do=do)
        yield Row(number, value)


def _no_number(constant: str) -> NoReturn:
    # Python's parser takes NaN and Infinity, which no other one has to; they could not be written again.
    raise ValueError(f"{constant} is no number in JSON")
