"""Tables are read row by row, exactly, with errors that name the line."""

from __future__ import annotations

import csv
import io
import json
import os
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from mvc.errors import ConfigError, DataError
from mvc.tables import FIELD_LIMIT, Form, Row, form_of, read_rows, require_columns, text_of
from tests.real_data import real_data


def read(content: str | bytes, form: Form) -> list[Row]:
    return list(read_rows(io.BytesIO(content.encode() if isinstance(content, str) else content), form))


@pytest.mark.parametrize(
    ("name", "form"),
    [("a.csv", "csv"), ("a.b.TSV", "tsv"), ("a.tab", "tsv"), ("a.jsonl", "jsonl"), ("a.NDJSON", "jsonl")],
)
def test_the_form_comes_from_the_name(name: str, form: str) -> None:
    assert form_of(Path("some.csv") / name, None) == form


def test_a_given_form_goes_first() -> None:
    assert form_of(Path("a.csv"), "tsv") == "tsv"
    assert form_of(None, "JSONL") == "jsonl"


def test_an_unknown_form_says_what_to_give() -> None:
    with pytest.raises(
        ConfigError, match="not known\nwhy: a pipe has no file name\ndo: give --from .*--to .*: csv, tsv"
    ):
        form_of(None, None)
    with pytest.raises(
        ConfigError, match=r"a\.txt: .*not known\nwhy: its name ends in none of \.csv, \.tsv.*\ndo: give"
    ):
        form_of(Path("a.txt"), None)
    with pytest.raises(ConfigError, match="'xlsx' is no form of a table\ndo: give one of csv, tsv, jsonl"):
        form_of(Path("a.csv"), "xlsx")


def test_csv_has_quotes_and_rows_over_several_lines() -> None:
    content = 'text,label\r\n"one, ""two""\nthree",1\r\n\r\nplain "quoted" text,0\r\n"",\n'
    assert read(content, "csv") == [
        Row(2, {"text": 'one, "two"\nthree', "label": "1"}),
        Row(5, {"text": 'plain "quoted" text', "label": "0"}),
        Row(6, {"text": "", "label": ""}),
    ]


def test_tsv_has_no_quoting() -> None:
    content = 'text\tlabel\n"one\t1\n\ntwo "\t0\r\n"a"\t\n'
    assert read(content, "tsv") == [
        Row(2, {"text": '"one', "label": "1"}),
        Row(4, {"text": 'two "', "label": "0"}),
        Row(5, {"text": '"a"', "label": ""}),
    ]


def test_an_empty_line_of_one_column_is_an_empty_text_in_tsv_alone() -> None:
    assert [row.values["text"] for row in read("text\na\n\nb", "tsv")] == ["a", "", "b"]
    assert [row.values["text"] for row in read('text\na\n\n""\nb', "csv")] == ["a", "", "b"]


def test_jsonl_keeps_types_and_keys() -> None:
    content = '{"text": "\u00e9\\n", "n": 1.5}\r\n\n  \n{"other": [null, true, {"a": 1}], "big": 123456789012345678901}'
    assert read(content, "jsonl") == [
        Row(1, {"text": "\u00e9\n", "n": 1.5}),
        Row(4, {"other": [None, True, {"a": 1}], "big": 123456789012345678901}),
    ]
    assert read("", "jsonl") == []


@pytest.mark.parametrize(
    ("form", "content"), [("csv", "t\u00e9xt\na"), ("tsv", "t\u00e9xt\na"), ("jsonl", '{"t\u00e9xt": "a"}')]
)
def test_a_byte_order_mark_is_no_part_of_the_first_column(form: Form, content: str) -> None:
    with_mark = read(content.encode("utf-8-sig"), form)
    assert with_mark == read(content, form) and list(with_mark[0].values) == ["t\u00e9xt"]


def test_only_line_feeds_end_a_line() -> None:
    text = "a\u2028b\u0085c\x0bd\x0ce\x1cf"
    assert read(f"text\tn\n{text}\t1\n", "tsv") == [Row(2, {"text": text, "n": "1"})]
    assert read(f"text,n\n{text},1\n", "csv") == [Row(2, {"text": text, "n": "1"})]
    row = {"text": "a\u2028b\u0085c"}
    assert read(json.dumps(row, ensure_ascii=False), "jsonl") == [Row(1, row)]


def one_row(form: Form, text: str) -> str:
    if form == "jsonl":
        return json.dumps({"text": text, "n": "1"})
    between = "," if form == "csv" else "\t"
    return f"text{between}n\n{text}{between}1\n"


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_field_of_ten_megabytes(form: Form) -> None:
    text = "word " * 2_000_000
    assert read(one_row(form, text), form)[0].values == {"text": text, "n": "1"}


def test_a_quote_that_is_never_closed_does_not_swallow_the_file() -> None:
    with pytest.raises(
        DataError, match="line 3 cannot be read as csv\nwhy: .*double quote that is never closed\ndo: cor"
    ):
        read('text,n\na,1\n"b,2\nc,3\n', "csv")
    with pytest.raises(
        DataError, match="line 2 cannot be read as csv\nwhy: a field has more than 10,485,760 characters"
    ):
        read('text,n\n"b,2\n' + f"{'c' * 1000},3\n" * (FIELD_LIMIT // 1000), "csv")


@pytest.mark.parametrize(
    ("form", "content", "message"),
    [
        ("csv", "", "the input is empty\nwhy: a csv table begins with column names\ndo: add that first row"),
        ("tsv", "\ufeff", "the input is empty\nwhy: a tsv table"),
        ("tsv", "\n\n", "the input is empty"),
        ("csv", "text,label,text,label,n\n", "the input: column names come twice: text, label\ndo: give every column"),
        (
            "csv",
            "text,,label\n",
            "the input: column 2 has no name\nwhy: .*\ndo: name it, or leave out the index column",
        ),
        ("tsv", "\ttext\n", "the input: column 1 has no name"),
        ("csv", 'a,b\n"1\n",2\n3,4,5\n', "line 4 has 3 fields\nwhy: the first row names 2 columns\ndo: .*in quotes"),
        ("csv", "a,b\n1\n", "the input, line 2 has 1 field\n"),
        ("tsv", "a\tb\n1\t2\n3\t4\t5\n", "line 3 has 3 fields\nwhy: .*\ndo: correct that row; a tab inside a text"),
        ("tsv", "a\n1\t2\n", "line 2 has 2 fields\nwhy: the first row names 1 column\n"),
        ("csv", 'a,b\n"1"2,3\n', "line 2 cannot be read as csv\nwhy: text stands between a closing double quote"),
        ("csv", "a,b\n1,2\n1\r2,3\n", "line 3 cannot be read as csv\nwhy: a carriage return stands inside a field"),
        ("tsv", "a\tb\n1\r2\t3\n", "line 2 cannot be read as tsv\nwhy: a carriage return stands inside a field"),
        (
            "jsonl",
            '{"a": 1}\n\n{"a": }\n',
            "line 3 is not JSON\nwhy: Expecting value at character 7\ndo: write one JSON",
        ),
        ("jsonl", "[1, 2]\n", "line 1 is no JSON object\nwhy: it is a list\ndo: write one JSON object a line"),
        ("jsonl", '"a"\n', "line 1 is no JSON object\nwhy: it is a text"),
        ("jsonl", "null\n", "line 1 is no JSON object\nwhy: it is null"),
        ("jsonl", '{"a": NaN}', "line 1 is not JSON\nwhy: NaN is no number in JSON"),
        ("jsonl", '{"a":' + "[" * 100_000, "line 1 is not JSON\nwhy: .*recursion"),
        ("jsonl", "{\n", "line 1 is not JSON"),
        ("csv", b"a,b\n1,2\n\x00,3\n", "the input, line 3 holds a NUL byte"),
        ("tsv", b"a\tb\n1\t\xe9\n", "the input, line 2 is not UTF-8"),
        ("jsonl", b'{"a": "\xff"}', "the input, line 1 is not UTF-8"),
    ],
)
def test_what_cannot_be_read_names_the_line(form: Form, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(content, form)


def test_rows_before_a_bad_one_are_read() -> None:
    rows = read_rows(io.BytesIO(b"a,b\n1,2\n3\n"), "csv")
    assert next(rows) == Row(2, {"a": "1", "b": "2"})
    with pytest.raises(DataError, match="line 3 has 1 field"):
        next(rows)


def test_errors_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.csv is missing\ndo: check the path"):
        read_rows(tmp_path / "absent.csv", "csv")
    with pytest.raises(DataError, match="cannot be read\nwhy: Is a directory"):
        read_rows(tmp_path, "tsv")
    path = tmp_path / "a\nb.jsonl"
    path.write_text("{}\n{\n")
    with pytest.raises(DataError, match=r"a\\nb\.jsonl, line 2 is not JSON"):
        list(read_rows(path, "jsonl"))
    with open(path, "rb") as stream, pytest.raises(DataError, match=r"a\\nb\.jsonl, line 2 is not JSON"):
        list(read_rows(stream, "jsonl"))


def test_columns_are_known_before_any_row() -> None:
    assert read_rows(io.BytesIO(b"b,a\n"), "csv").columns == ("b", "a")
    assert read_rows(io.BytesIO(b"b\ta\n1\t2"), "tsv").columns == ("b", "a")
    assert read_rows(io.BytesIO(b'{"a": 1}'), "jsonl").columns is None


def test_text_of_a_column() -> None:
    row = Row(7, {"sentence": "a film", "label": 1, "tags": ["x"], "note": None, "ok": True, "facts": {}})
    assert text_of(row, "sentence") == "a film"
    for column, kind in {
        "label": "a number",
        "tags": "a list",
        "note": "null",
        "ok": "true or false",
        "facts": "an object",
    }.items():
        with pytest.raises(
            DataError, match=f"line 7: column '{column}' is no text\nwhy: it is {kind}\ndo: put texts in"
        ):
            text_of(row, column)
    with pytest.raises(
        DataError, match="line 7 has no column 'sentense'\nwhy: its columns are: sentence, label, .*\ndo: .*'sentence'"
    ):
        text_of(row, "sentense")


def test_columns_are_required_before_anything_is_done() -> None:
    require_columns(["a", "b"], ["b", "a"])
    require_columns([], [])
    with pytest.raises(
        DataError, match="in.csv has no column 'Text'\nwhy: its columns are: label, text\ndo: .* is 'text'"
    ):
        require_columns(["label", "text"], ["label", "Text"], "in.csv")
    with pytest.raises(
        DataError, match="no column 'text'\nwhy: its columns are: a, b\ndo: give one of those, or correct"
    ):
        require_columns(["a", "b"], ["text"])
    with pytest.raises(DataError, match="the table has no column 'text'\nwhy: it has no columns$"):
        require_columns([], ["text"])


def test_a_row_of_a_pipe_is_there_as_soon_as_its_line_is() -> None:
    reading, writing = os.pipe()
    with open(reading, "rb") as source, open(writing, "wb", buffering=0) as target:
        target.write(b"text\tlabel\n")
        rows = read_rows(source, "tsv")
        for number in range(3):
            target.write(f"text {number}\t1\n".encode())
            assert next(rows) == Row(number + 2, {"text": f"text {number}", "label": "1"})


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_memory_does_not_grow_with_the_table(form: Form) -> None:
    head, _, line = one_row(form, "a text of some words").partition("\n")
    line = line or head + "\n"

    def peak(count: int) -> int:
        source = io.BytesIO((head + "\n" + line * count).encode())
        tracemalloc.start()
        try:
            assert sum(len(row.values) for row in read_rows(source, form)) == 2 * (count + (form == "jsonl"))
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # 20,000 rows held would be 5 MB and more.
    assert peak(20_000) < peak(200) + 200_000


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("train", {"0": 957, "1": 1043}),
        ("dev", {"0": 428, "1": 444}),
        ("test", {"0": 912, "1": 909}),
    ],
)
def test_sst2_is_read_whole(name: str, counts: dict[str, int]) -> None:
    path = real_data("sst2") / f"{name}.tsv"
    rows = list(read_rows(path, form_of(path, None)))
    assert Counter(row.values["label"] for row in rows) == counts
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [f"{text_of(row, 'sentence')}\t{row.values['label']}" for row in rows] == lines[1:-1]
    assert [row.line for row in rows] == list(range(2, len(rows) + 2))


def test_quotes_of_a_table_without_quoting_are_not_lost(tmp_path: Path) -> None:
    # Read as csv with tabs, by the module's defaults, the first two rows would become one.
    path = tmp_path / "a.tsv"
    path.write_text('text\tlabel\n"squat style\t1\nred"\t0\n')
    with open(path, newline="") as file:
        assert len(list(csv.reader(file, delimiter="\t"))) == 2
    assert [row.values["text"] for row in read_rows(path, "tsv")] == ['"squat style', 'red"']
