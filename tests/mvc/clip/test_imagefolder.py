"""Folders with metadata: rows that belong together, splits by folder, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pyarrow
import pytest
from pyarrow import parquet

from mvc.clip.pairs import read_pairs
from mvc.errors import DataError

from .pair_data import examples, write_imagefolder, write_images

GIVEN = examples(3)


def test_rows_of_one_file_are_its_captions(tmp_path: Path) -> None:
    write_images(tmp_path / "a", GIVEN)
    rows = [("a/000.png", "one"), ("a/002.png", "two"), ("./a/000.png", "three"), ("a\\002.png", "two")]
    (tmp_path / "metadata.csv").write_text("file_name,text\n" + "".join(f'"{name}","{text}"\n' for name, text in rows))
    pairs = read_pairs(tmp_path, "train")
    assert pairs.ids == ["a/000.png", "a/002.png"] and pairs.captions == [["one", "three"], ["two", "two"]]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("key", ["caption", "text"])
def test_each_kind_of_metadata(kind: str, key: str, tmp_path: Path) -> None:
    write_images(tmp_path, GIVEN)
    rows = [{"file_name": one.name, key: f"{one.name}, or so"} for one in GIVEN]
    if kind == "csv":
        text = f"{key},file_name\n" + "".join(f'"{row[key]}",{row["file_name"]}\n' for row in rows)
        (tmp_path / "metadata.csv").write_text(text)
    elif kind == "jsonl":
        (tmp_path / "metadata.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    else:
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "metadata.parquet")
    pairs = read_pairs(tmp_path, "train")
    assert pairs.captions == [["000.png, or so"], ["001.png, or so"], ["002.png, or so"]]


def test_splits_by_the_paths_of_one_metadata_file(tmp_path: Path) -> None:
    """The first folder called like a split counts, wherever the metadata lie; below it no name counts."""
    rows = []
    for folder in ("images/train", "images/val/test", "test"):
        write_images(tmp_path / folder, GIVEN[:1])
        rows.append(json.dumps({"file_name": f"{folder}/000.png", "captions": [folder]}))
    (tmp_path / "metadata.jsonl").write_text("\n".join(rows))
    assert [read_pairs(tmp_path, split).captions for split in ("train", "validation", "test")] == [
        [["images/train"]],
        [["images/val/test"]],
        [["test"]],
    ]


def test_as_the_datasets_package_reads_it(tmp_path: Path) -> None:
    """The reference: its own imagefolder builder finds the same captions for the same images."""
    root = tmp_path / "set"
    for split, given in (("train", GIVEN[:2]), ("test", GIVEN[2:])):
        write_imagefolder(root, split, given)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(root), cache_dir=str(tmp_path / "cache"))
    for split in ("train", "test"):
        pairs = read_pairs(root, split)
        theirs = loaded[split].cast_column("image", datasets.Image(decode=False))
        assert list(theirs["captions"]) == pairs.captions
        assert [Path(row["path"]).read_bytes() for row in theirs["image"]] == [
            pairs.content(index) for index in range(len(pairs))
        ]


def test_links_are_followed_as_in_a_hub_cache(tmp_path: Path) -> None:
    write_images(tmp_path / "blobs", GIVEN[:1])
    root = tmp_path / "snapshot" / "train"
    root.mkdir(parents=True)
    (root / "000.png").symlink_to("../../blobs/000.png")
    (root / "metadata.jsonl").write_text('{"file_name": "000.png", "text": "one"}\n')
    assert read_pairs(tmp_path / "snapshot", "train").content(0) == GIVEN[0].content


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"file_name": "9.png", "text": "a"}', "line 2: there is no image .*train/9.png\nwhy: No such file"),
        ('{"file_name": "sub", "text": "a"}', "line 2: .*train/sub is no file"),
        ('{"file_name": "../a.png", "text": "a"}', r"line 2: file_name \.\./a\.png leads out of the folder"),
        ('{"file_name": "/a.png", "text": "a"}', "line 2: file_name /a.png leads out of the folder"),
        ('{"text": "a"}', "line 2 has no file_name"),
        ('{"file_name": 7, "text": "a"}', "line 2 has no usable 7 as file_name"),
        ('{"file_name": "000.png", "captions": ["a", " "]}', "line 2: caption 2 is empty"),
        ('{"file_name": "000.png", "captions": []}', "line 2 has no captions"),
        ('{"file_name": "000.png", "label": 1}', "line 2 has no captions(.|\n)*there is file_name, label"),
        ('{"file_name": "000.png"', "line 2 is not JSON"),
        ("[1]", "line 2 is no JSON object"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: str, message: str) -> None:
    write_imagefolder(tmp_path, "train", GIVEN[:1])
    (tmp_path / "train" / "sub").mkdir()
    with open(tmp_path / "train" / "metadata.jsonl", "a", encoding="utf-8") as file:
        file.write(row + "\n")
    with pytest.raises(DataError, match=f"train/metadata.jsonl, {message}"):
        read_pairs(tmp_path, "train")


def test_metadata_that_cannot_be_used(tmp_path: Path) -> None:
    write_imagefolder(tmp_path, "train", GIVEN)
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "train/001.png", "text": "again"}\n')
    with pytest.raises(DataError, match=r"train/metadata.jsonl, line 2: train/001.png is also in .*metadata.jsonl"):
        read_pairs(tmp_path, "train")
    (tmp_path / "metadata.jsonl").write_text("")
    assert len(read_pairs(tmp_path, "train")) == 3
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n000.png,a\n")
    with pytest.raises(DataError, match="several metadata files: metadata.csv, metadata.jsonl"):
        read_pairs(tmp_path, "train")
    (tmp_path / "train" / "metadata.jsonl").unlink()
    (tmp_path / "train" / "metadata.csv").write_text("file_name,captions\n000.png,\"['a', 'b']\"\n")
    with pytest.raises(DataError, match="metadata.csv, line 2: captions is a list written as text"):
        read_pairs(tmp_path, "train")
    (tmp_path / "train" / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(DataError, match="names no images"):
        read_pairs(tmp_path, "train")
    (tmp_path / "train" / "metadata.csv").rename(tmp_path / "train" / "metadata.parquet")
    with pytest.raises(DataError, match="metadata.parquet cannot be read as parquet"):
        read_pairs(tmp_path, "train")
