"""Folders of labelled texts: which files are which split, what their rows hold, and what cannot be used."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest

from mvc.classify.text_files import described, read_splits
from mvc.errors import DataError
from tests.real_data import real_data

from .text_runs import write_texts


def test_splits_are_read_with_their_labels_and_rows(tmp_path: Path) -> None:
    splits = read_splits(write_texts(tmp_path), ["text"], "label")
    assert splits.classes == ["bad", "good"] and splits.leaks == 0
    assert [len(one) for one in (splits.train, splits.validation, splits.test)] == [24, 20, 40]
    assert splits.train.labels == [row % 2 for row in range(24)] and splits.train.ids == list(range(24))
    assert described(splits) == "2 classes, 24 texts to train with, 20 texts to validate with, 40 texts to test with"


def test_csv_and_jsonl_and_numbers_as_labels(tmp_path: Path) -> None:
    (tmp_path / "Train.csv").write_text('a,b,y\n"one, two",three,1\nfour,five,0\n')
    (tmp_path / "valid.jsonl").write_text('{"a": "six", "b": "seven", "y": 1}\n')
    (tmp_path / "test.tsv").write_text("a\tb\ty\neight\tnine\t0\nfour\tfive\t0\n")
    (tmp_path / "notes.txt").write_text("not a table")
    splits = read_splits(tmp_path, ["a", "b"], "y")
    assert splits.train.texts == [("one, two", "three"), ("four", "five")] and splits.train.labels == [1, 0]
    assert splits.validation.labels == [1] and splits.classes == ["0", "1"]
    assert (splits.test.texts, splits.test.ids, splits.leaks) == ([("eight", "nine")], [0], 1)
    assert "1 test text left out, because training has it too" in described(splits)


def test_validation_may_be_missing(tmp_path: Path) -> None:
    write_texts(tmp_path)
    (tmp_path / "dev.tsv").unlink()
    assert len(read_splits(tmp_path, ["text"], "label").validation) == 0


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("test.tsv", None, "has no file of test(.|\n)*add test.csv"),
        ("training.csv", "text,label\na,b\n", "several files of train: train.tsv, training.csv"),
        ("test.tsv", "text\tlabel\n \tgood\n", "test.tsv, line 2: a text is empty"),
        ("test.tsv", "text\tlabel\na\t\n", "test.tsv, line 2: there is no class in label"),
        ("test.tsv", "text\tlabel\na\tmixed\n", "test has the class mixed, which no training text has"),
        ("test.tsv", "text\tlabel\n", "test.tsv has no rows"),
        ("test.tsv", "texts\tlabel\na\tgood\n", "'text'(.|\n)*texts"),
        ("train.tsv", "text\tlabel\na\tgood\nb\tgood\n", "have one class, good"),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    write_texts(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_splits(tmp_path, ["text"], "label")


def test_other_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        read_splits(tmp_path / "nowhere", ["text"], "label")
    write_texts(tmp_path)
    (tmp_path / "test.tsv").write_bytes((tmp_path / "train.tsv").read_bytes())
    with pytest.raises(DataError, match="every test text"):
        read_splits(tmp_path, ["text"], "label")
    (tmp_path / "train.jsonl").write_text('{"text": 3, "label": "good"}\n')
    (tmp_path / "train.tsv").unlink()
    with pytest.raises(DataError, match="train.jsonl, line 1: column 'text' is no text"):
        read_splits(tmp_path, ["text"], "label")


def test_the_cut_of_sst2_as_it_is() -> None:
    folder = real_data("sst2")
    splits = read_splits(folder, ["sentence"], "label")
    assert [len(one) for one in (splits.train, splits.validation, splits.test)] == [2000, 872, 1821]
    assert Counter(splits.train.labels) == {1: 1043, 0: 957} and splits.leaks == 0
    with open(folder / "train.tsv", newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    assert [text for (text,) in splits.train.texts] == [row[0] for row in rows]
