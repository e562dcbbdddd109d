"""What is written reads back equal; files are whole or absent; a reader of a pipe may leave early."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvc.errors import ConfigError, DataError, EnvironmentFault
from mvc.table_writer import RowWriter
from mvc.tables import FORMS, Form, read_rows
from tests.real_data import real_data

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {"csv": "\0", "tsv": "\0\t\n\r"}
ROWS = [{"text": 'a "red", cat', "label": "1"}, {"text": "\u732b \U0001f408 \u0642\u0637", "label": "0"}]
# A table through the module, as a command in a pipe uses it: input, output and forms are its arguments.
COPY = """
import sys
from mvc.table_writer import RowWriter
from mvc.tables import read_rows
source, form, to, log = sys.argv[1:]
rows = read_rows(sys.stdin.buffer, form)
with RowWriter(sys.stdout.buffer, to, rows.columns) as writer:
    for row in rows:
        writer.write([row.values])
        if writer.reader_gone:
            break
with open(log, "w") as file:
    file.write(f"{row.line} {writer.reader_gone}")
"""


def written(rows: list[dict[str, Any]], form: Form, columns: list[str] | None = None) -> bytes:
    stream = io.BytesIO()
    with RowWriter(stream, form, columns) as writer:
        writer.write(rows)
    return stream.getvalue()


def read(content: bytes, form: Form) -> list[dict[str, Any]]:
    return [row.values for row in read_rows(io.BytesIO(content), form)]


def texts(form: Form, min_size: int = 0) -> st.SearchStrategy[str]:
    letters = st.characters(exclude_categories=("Cs",), exclude_characters=FORBIDDEN[form])
    # Texts of any script, and, often, those that quoting and line ends are made of.
    hard = st.sampled_from([letter for letter in '",;\n\r\t\\ \u2028\u0085a\x1c' if letter not in FORBIDDEN[form]])
    return st.text(st.one_of(letters, hard), min_size=min_size, max_size=12)


@st.composite
def tables(draw: st.DrawFn, form: Form) -> list[dict[str, Any]]:
    names = texts(form, 1).filter(lambda name: not name.startswith("\ufeff"))
    columns = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    rows = draw(st.lists(st.lists(texts(form), min_size=len(columns), max_size=len(columns)), min_size=1, max_size=5))
    return [dict(zip(columns, row, strict=True)) for row in rows]


@given(tables("csv"))
def test_csv_reads_back_equal(rows: list[dict[str, Any]]) -> None:
    assert read(written(rows, "csv"), "csv") == rows


@given(tables("tsv"))
def test_tsv_reads_back_equal(rows: list[dict[str, Any]]) -> None:
    assert read(written(rows, "tsv"), "tsv") == rows


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.text(), JSON, max_size=4), max_size=4))
def test_jsonl_reads_back_equal(rows: list[dict[str, Any]]) -> None:
    content = written(rows, "jsonl")
    assert content.count(b"\n") == len(rows)
    back = read(content, "jsonl")
    # repr tells 1 from 1.0 and from True, which are equal
    assert repr(back) == repr(rows)


@given(tables("tsv"))
def test_forms_can_be_changed_and_back(rows: list[dict[str, Any]]) -> None:
    as_csv = read(written(rows, "csv"), "csv")
    as_json = read(written(as_csv, "jsonl"), "jsonl")
    assert read(written(as_json, "tsv"), "tsv") == rows


def test_how_each_form_looks() -> None:
    assert written(ROWS[:1], "csv") == b'text,label\n"a ""red"", cat",1\n'
    assert written(ROWS[:1], "tsv") == b'text\tlabel\na "red", cat\t1\n'
    assert written(ROWS[1:], "jsonl") == '{"text": "\u732b \U0001f408 \u0642\u0637", "label": "0"}\n'.encode()
    assert written([{"a": "1\r2"}, {"a": ""}], "csv") == b'a\n"1\r2"\n""\n'


def test_values_that_are_no_text_are_compact_json_in_csv_and_tsv() -> None:
    row = {"d": {"b": [1, "\u00e9"]}, "n": 1.5, "t": True, "none": None, "list": ["a\tb"]}
    assert read(written([row], "csv"), "csv") == [
        {"d": '{"b":[1,"\u00e9"]}', "n": "1.5", "t": "true", "none": "", "list": '["a\\tb"]'}
    ]
    assert read(written([row], "tsv"), "tsv") == read(written([row], "csv"), "csv")
    assert read(written([row], "jsonl"), "jsonl") == [row]


def test_columns_are_fixed_by_the_first_row_or_given() -> None:
    assert written([{"b": "1", "a": "2"}, {"a": "3"}], "csv") == b"b,a\n1,2\n,3\n"
    assert written([{"b": "1", "a": "2"}], "csv", ["a", "b", "c"]) == b"a,b,c\n2,1,\n"
    assert written([], "tsv", ["a", "b"]) == b"a\tb\n"
    assert written([], "tsv") == b"" == written([], "jsonl", ["a"])
    with pytest.raises(
        DataError, match="row 2 has another column: c\nwhy: the columns of csv are fixed before: a, b\ndo:"
    ):
        written([{"a": "1", "b": "2"}, {"a": "1", "c": "2"}], "csv")
    assert written([{"a": 1}, {"b": 2}], "jsonl") == b'{"a": 1}\n{"b": 2}\n'


@pytest.mark.parametrize(
    ("form", "value", "message"),
    [
        (
            "tsv",
            "a\tb",
            "row 2, column 'text' holds a tab\nwhy: tsv cannot hold it\ndo: write the table with --to jsonl",
        ),
        ("tsv", "a\nb", "row 2, column 'text' holds a line break\nwhy: tsv"),
        ("tsv", "a\rb", "row 2, column 'text' holds a carriage return\nwhy: tsv"),
        ("tsv", "a\0b", "row 2, column 'text' holds a NUL character\nwhy: tsv"),
        ("csv", "a\0b", "row 2, column 'text' holds a NUL character\nwhy: csv"),
        ("csv", "a\ud800", "row 2, column 'text' holds half of a surrogate pair\nwhy: csv"),
        (
            "csv",
            [1, float("inf")],
            "row 2, column 'text' holds a number that is not finite\nwhy: JSON has no such number",
        ),
        ("jsonl", {"a": float("nan")}, "row 2, column 'text' holds a number that is not finite"),
    ],
)
def test_what_a_form_cannot_hold_names_row_and_column(form: Form, value: Any, message: str) -> None:
    stream = io.BytesIO()
    with RowWriter(stream, form) as writer:
        writer.write([{"label": "1", "text": "fine"}])
        with pytest.raises(DataError, match=message):
            writer.write([{"label": "2", "text": value}])
        writer.write([{"label": "3", "text": "fine"}])
    assert [row["label"] for row in read(stream.getvalue(), form)] == ["1", "3"]


def test_jsonl_holds_what_others_cannot() -> None:
    row = {"text": "a\tb\nc\r\0\ud800", "é": "é"}
    assert read(written([row], "jsonl"), "jsonl") == [row]


def test_a_first_row_that_is_refused_fixes_no_columns() -> None:
    stream = io.BytesIO()
    with RowWriter(stream, "tsv") as writer:
        with pytest.raises(DataError, match="row 1, column 'a' holds a tab"):
            writer.write([{"a": "\t"}])
        writer.write([{"b": "1"}])
    assert stream.getvalue() == b"b\n1\n"


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (["a", ""], "the output: column 2 has no name"),
        ([], "the output: the table has no name"),
        (["a", "b", "a"], "the output: column names come twice: a"),
        (["a\tb"], "the row of column names holds a tab"),
    ],
)
def test_columns_that_could_not_be_read_again_are_refused(columns: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message), RowWriter(io.BytesIO(), "tsv", columns):
        pass
    with pytest.raises(DataError, match=message):
        written([dict.fromkeys(columns, "x")], "tsv", columns)


def test_a_file_appears_whole_and_is_not_replaced_unasked(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.csv"
    with RowWriter(path, "csv") as writer:
        writer.write(ROWS)
        assert not path.exists()
    assert path.read_bytes() == written(ROWS, "csv")
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask()
    with pytest.raises(
        ConfigError, match=r"a\.csv exists\nwhy: it would be replaced\ndo: give another name, or --overwrite"
    ):
        RowWriter(path, "csv")
    with RowWriter(path, "tsv", overwrite=True) as writer:
        writer.write(ROWS)
    assert path.read_bytes() == written(ROWS, "tsv")
    assert os.listdir(path.parent) == ["a.csv"]


def umask() -> int:
    now = os.umask(0o22)
    os.umask(now)
    return now


@pytest.mark.parametrize("old", [None, b"old"])
def test_an_error_leaves_the_old_state(tmp_path: Path, old: bytes | None) -> None:
    path = tmp_path / "a.tsv"
    if old is not None:
        path.write_bytes(old)
    with (
        pytest.raises(DataError, match="row 2, column 'text' holds a tab"),
        RowWriter(path, "tsv", None, True) as writer,
    ):
        writer.write(ROWS[:1])
        writer.write([{"text": "\t"}])
    with pytest.raises(KeyboardInterrupt), RowWriter(path, "tsv", None, True) as writer:
        writer.write(ROWS)
        raise KeyboardInterrupt
    with pytest.raises(DataError, match="holds a tab"), RowWriter(path, "tsv", ["\t"], True):
        pass
    assert os.listdir(tmp_path) == ([] if old is None else ["a.tsv"])
    assert old is None or path.read_bytes() == old


@contextmanager
def file_limit(size: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("count", [200, 20_000])  # found when the file is closed, and in the middle
def test_a_full_disk_leaves_the_old_state(tmp_path: Path, count: int) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    with (
        file_limit(1000),
        pytest.raises(EnvironmentFault, match=r"cannot write .*a\.csv\nwhy: File too large\ndo: free some space"),
        RowWriter(path, "csv", overwrite=True) as writer,
    ):
        writer.write({"text": f"text {number}"} for number in range(count))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["a.csv"]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(EnvironmentFault, match=r"cannot write .*file/a\.csv\nwhy: "),
        RowWriter(tmp_path / "file/a.csv", "csv"),
    ):
        pass
    for place in (tmp_path, Path(os.devnull)):
        with pytest.raises(ConfigError, match=f"{place} is no file\ndo: give the name of a file"):
            RowWriter(place, "csv", overwrite=True)


def test_of_a_link_the_target_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "a.csv").write_text("old")
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "real" / "a.csv")
    with RowWriter(link, "csv", overwrite=True) as writer:
        writer.write(ROWS)
    assert link.is_symlink() and (tmp_path / "real" / "a.csv").read_bytes() == written(ROWS, "csv")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_kill_in_the_middle_leaves_the_old_state(tmp_path: Path, how: signal.Signals) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"old")
    code = f"""
import sys, time
from pathlib import Path
from mvc.table_writer import RowWriter
with RowWriter(Path({str(path)!r}), "csv", overwrite=True) as writer:
    for number in range(10**9):
        writer.write([{{"text": f"text {{number}}"}}])
        if number == 50_000:
            print("busy", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "busy\n"
        assert any(file.name.startswith(".tmp-") and file.stat().st_size > 500_000 for file in tmp_path.iterdir())
        process.send_signal(how)
        assert process.wait(60) == -how
    assert path.read_bytes() == b"old"
    with RowWriter(path, "csv", overwrite=True) as writer:
        writer.write(ROWS)
    assert read(path.read_bytes(), "csv") == ROWS


def test_a_stream_has_every_batch_at_once() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as source, open(writing, "wb") as target:
        with RowWriter(target, "jsonl") as writer:
            for number in range(3):
                writer.write([{"n": number}, {"n": -number}])
                assert source.read(1000) == f'{{"n": {number}}}\n{{"n": {-number}}}\n'.encode()
        assert not target.closed and not writer.reader_gone


def pipe(tmp_path: Path, source: str, form: Form, to: Form, *options: str) -> tuple[bytes, str]:
    """Copy a table in a real pipe, `cat | copy | head -n 2`; what head printed, and what the copy logged."""
    (tmp_path / "in").write_text(source, encoding="utf-8")
    log = tmp_path / "log"
    command = [sys.executable, *options, "-c", COPY, "in", form, to, str(log)]
    with (
        open(tmp_path / "in", "rb") as start,
        subprocess.Popen(command, cwd=ROOT, stdin=start, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as copy,
        subprocess.Popen(["head", "-n", "2"], stdin=copy.stdout, stdout=subprocess.PIPE) as head,
    ):
        assert copy.stdout is not None and copy.stderr is not None and head.stdout is not None
        copy.stdout.close()  # head alone holds it now
        shown, errors = head.stdout.read(), copy.stderr.read()
        assert (copy.wait(60), errors) == (0, b"")
    return shown, log.read_text()


@pytest.mark.parametrize("options", [(), ("-u",)])
def test_a_reader_that_leaves_early_ends_the_work_quietly(tmp_path: Path, options: tuple[str, ...]) -> None:
    count = 300_000
    source = "text\tlabel\n" + "".join(f"text {number}\t1\n" for number in range(count))
    shown, log = pipe(tmp_path, source, "tsv", "csv", *options)
    assert shown == b"text,label\ntext 0,1\n"
    line, gone = log.split()
    assert gone == "True" and int(line) < count // 2


def test_a_pipe_that_is_read_to_its_end(tmp_path: Path) -> None:
    assert pipe(tmp_path, '\ufeff{"text": "\u732b"}\n\n', "jsonl", "tsv") == ("text\n\u732b\n".encode(), "1 False")


def test_a_big_batch_is_dropped_when_the_reader_has_gone() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    asked = 0

    def endless() -> Iterator[dict[str, Any]]:
        nonlocal asked
        while True:
            asked += 1
            yield {"text": "x" * 1000}

    with open(writing, "wb") as target, RowWriter(target, "csv", ["text"]) as writer:
        writer.write(endless())
        writer.write(endless())
        assert writer.reader_gone and asked < 100


def test_memory_does_not_grow_with_the_batch() -> None:
    def peak(count: int) -> int:
        with open(os.devnull, "wb") as target, RowWriter(target, "jsonl") as writer:
            tracemalloc.start()
            try:
                writer.write({"text": f"a text of some words {number}"} for number in range(count))
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    assert peak(20_000) < peak(200) + 200_000


@pytest.mark.parametrize("form", FORMS)
def test_a_real_table_goes_through_every_form(form: Form) -> None:
    for path in sorted(real_data("tncc").glob("*.tsv")):
        rows = read(path.read_bytes(), "tsv")
        assert any('"' in row["sentence1"] for row in rows)
        assert written(read(written(rows, form), form), "tsv") == path.read_bytes()
        assert json.loads(written(rows, "jsonl").splitlines()[-1]) == rows[-1]
