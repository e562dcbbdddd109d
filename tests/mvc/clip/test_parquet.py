"""Parquet files: what `datasets` writes, columns, row groups, and files that cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pytest
from pyarrow import parquet

import mvc.clip.parquet
from mvc.clip.pairs import read_pairs
from mvc.errors import DataError

from .pair_data import examples, write_parquet

GIVEN = examples(5)
IMAGES = [{"bytes": one.content, "path": one.name} for one in GIVEN]


def write(root: Path, columns: dict[str, Any], group: int = 2) -> Path:
    parquet.write_table(pyarrow.table(columns), root / "train.parquet", row_group_size=group)
    return root


@pytest.mark.parametrize("key", ["captions", "caption", "text"])
def test_what_the_datasets_package_writes(key: str, tmp_path: Path) -> None:
    texts = [one.captions if key == "captions" else one.captions[0] for one in GIVEN]
    features = datasets.Features(
        {
            "image": datasets.Image(),
            key: datasets.List(datasets.Value("string")) if key == "captions" else datasets.Value("string"),
        }
    )
    table = datasets.Dataset.from_dict({"image": IMAGES, key: texts}, features=features)
    table.to_parquet(str(tmp_path / "test-00000-of-00001.parquet"))
    pairs = read_pairs(tmp_path, "test")
    assert pairs.captions == [one.captions if key == "captions" else one.captions[:1] for one in GIVEN]
    assert [pairs.content(index) for index in range(5)] == [one.content for one in GIVEN]


@pytest.mark.parametrize("group", [1, 2, 5, 100])
def test_row_groups_of_any_size(group: int, tmp_path: Path) -> None:
    pairs = read_pairs(write(tmp_path, {"image": IMAGES, "text": ["a", "b", "c", "d", "e"]}, group), "train")
    assert pairs.ids == [f"train.parquet/{row}" for row in range(5)] and pairs.captions[3] == ["d"]
    for index in (4, 0, 3, 1, 2):
        assert pairs.content(index) == GIVEN[index].content


def test_several_files_are_one_split(tmp_path: Path) -> None:
    whole = read_pairs(write_parquet(tmp_path / "whole", "train", GIVEN), "train")
    for number, part in enumerate((GIVEN[:2], GIVEN[2:])):
        made = write_parquet(tmp_path / str(number), "train", part) / "data" / "train-00000-of-00001.parquet"
        (tmp_path / "parts").mkdir(exist_ok=True)
        made.rename(tmp_path / "parts" / f"train-0000{number}-of-00002.parquet")
    parts = read_pairs(tmp_path / "parts", "train")
    assert parts.captions == whole.captions and parts.ids[1:3] == [
        "train-00000-of-00002.parquet/1",
        "train-00001-of-00002.parquet/0",
    ]
    assert [parts.content(index) for index in range(5)] == [one.content for one in GIVEN]


def test_rows_of_one_image_id_are_its_captions(tmp_path: Path) -> None:
    columns = {"image": IMAGES, "text": ["a", "b", "c", "d", "e"], "image_id": [7, 8, 7, 8, 9]}
    pairs = read_pairs(write(tmp_path, columns), "train")
    assert pairs.ids == ["7", "8", "9"] and pairs.captions == [["a", "c"], ["b", "d"], ["e"]]
    assert [pairs.content(index) for index in range(3)] == [GIVEN[row].content for row in (0, 1, 4)]


def test_which_column_is_the_image(tmp_path: Path) -> None:
    large = pyarrow.array(IMAGES, pyarrow.struct({"path": pyarrow.string(), "bytes": pyarrow.large_binary()}))
    texts, other = ["a"] * 5, [{"bytes": b"other"}] * 5
    assert read_pairs(write(tmp_path, {"picture": large, "text": texts}), "train").content(4) == GIVEN[4].content
    named = {"mask": other, "image": IMAGES, "text": texts}
    assert read_pairs(write(tmp_path, named), "train").content(4) == GIVEN[4].content
    with pytest.raises(DataError, match="has several columns of images(.|\n)*mask (.|\n)*picture "):
        read_pairs(write(tmp_path, {"mask": other, "picture": IMAGES, "text": texts}), "train")
    with pytest.raises(DataError, match=r"has no column of images(.|\n)*columns are image \(string\), text \(string\)"):
        read_pairs(write(tmp_path, {"image": texts, "text": texts}), "train")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"train.parquet, row 0 \(from 0\) has no captions"),
        ({"text": ["a", "b", "c", " ", "e"]}, r"train.parquet, row 3 \(from 0\): caption 1 is empty"),
        ({"text": ["a", "b", "c", "d", None]}, r"train.parquet, row 4 \(from 0\) has no captions"),
        ({"captions": [["a"], ["b"], [], ["d"], ["e"]]}, r"train.parquet, row 2 \(from 0\) has no captions"),
        ({"text": [1, 2, 3, 4, 5]}, r"train.parquet, row 0 \(from 0\): caption 1 is no text\nwhy: it is 1"),
        (
            {"text": ["a"] * 5, "image": [*IMAGES[:3], {"bytes": None, "path": "x"}, IMAGES[4]]},
            "row group 1 has 1 row without",
        ),
        ({"text": ["a"] * 5, "image": [*IMAGES[:4], None]}, "row group 2 has 1 row without the bytes of an image"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pairs(write(tmp_path, {"image": IMAGES, **columns}), "train")


def test_missing_bytes_without_statistics_are_named_when_asked_for(tmp_path: Path) -> None:
    table = pyarrow.table({"image": [IMAGES[0], {"bytes": None, "path": "x"}], "text": ["a", "b"]})
    parquet.write_table(table, tmp_path / "train.parquet", write_statistics=False)
    pairs = read_pairs(tmp_path, "train")
    assert pairs.content(0) == GIVEN[0].content
    with pytest.raises(DataError, match=r"train.parquet, row 1 \(from 0\) holds no image\nwhy: bytes is null"):
        pairs.image(1)


def test_row_groups_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"image": IMAGES, "text": ["a"] * 5}, group=5)
    monkeypatch.setattr(mvc.clip.parquet, "GROUP_LIMIT", 1000)
    message = "groups of .*train.parquet are too large(.|\n)*take 6.0 KiB, and 1000 B(.|\n)*row_group_size=100"
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path, "train")
    monkeypatch.setattr(mvc.clip.parquet, "LARGE_GROUP", 1000)
    assert read_pairs(tmp_path, "train", tmp_path / "cache").content(4) == GIVEN[4].content


@pytest.mark.parametrize("size", [0, 3, 200, -1])
def test_half_a_file(tmp_path: Path, size: int) -> None:
    path = write(tmp_path, {"image": IMAGES, "text": ["a"] * 5}) / "train.parquet"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="train.parquet cannot be read as parquet(.|\n)*fetch or write it again"):
        read_pairs(tmp_path, "train")


def test_a_file_that_is_written_anew_is_read_anew(tmp_path: Path) -> None:
    for number in (0, 1):
        write(tmp_path, {"image": [IMAGES[number]], "text": ["a"]})
        assert read_pairs(tmp_path, "train").content(0) == GIVEN[number].content
