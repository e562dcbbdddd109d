"""Parquet files with large row groups: unpacked once, whole or not at all, and the same images as without."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

import mvc.clip.parquet
from mvc.clip import unpacking
from mvc.clip.pairs import Pairs, read_pairs
from mvc.errors import DataError, EnvironmentFault, Stopped
from mvc.stopping import flag

from .pair_data import examples, write_parquet

GIVEN = examples(40)
"""More than are in memory at a time."""


@pytest.fixture(autouse=True)
def _small_groups_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mvc.clip.parquet, "LARGE_GROUP", 100)


def read(tmp_path: Path, cache: str | None = "cache") -> Pairs:
    return read_pairs(tmp_path / "set", "train", tmp_path / cache if cache else None)


def test_the_same_images_with_and_without_a_copy(tmp_path: Path) -> None:
    write_parquet(tmp_path / "set", "train", GIVEN)
    plain, copied = read(tmp_path, None), read(tmp_path)
    assert (copied.ids, copied.captions, copied.digest) == (plain.ids, plain.captions, plain.digest)
    for index in (39, 0, 17, 16, 15):
        assert copied.content(index) == plain.content(index) == GIVEN[index].content
    (copy,) = (tmp_path / "cache").glob("*/images.bin")
    assert copy.read_bytes() == b"".join(one.content for one in GIVEN)
    copy.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"00001.parquet, row 39 \(from 0\) cannot be read\nwhy: the file became shorter"
    ):
        copied.content(39)


def test_small_groups_are_read_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "set", "train", GIVEN)
    monkeypatch.setattr(mvc.clip.parquet, "LARGE_GROUP", 2**20)
    assert read(tmp_path).content(20) == GIVEN[20].content and not (tmp_path / "cache").exists()


def test_a_copy_is_made_once_for_each_state_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "set", "train", GIVEN[:3])
    first = read(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(unpacking, "_contents", None)  # nothing may call it
        assert read(tmp_path) == first
    write_parquet(tmp_path / "set", "train", GIVEN[3:7])
    assert [read(tmp_path).content(index) for index in range(4)] == [one.content for one in GIVEN[3:7]]
    assert len(list((tmp_path / "cache").iterdir())) == 2
    os.utime(
        tmp_path / "set" / "data" / "train-00000-of-00001.parquet", ns=(0, 0)
    )  # as large as before, and another one
    read(tmp_path)
    assert len(list((tmp_path / "cache").iterdir())) == 3


@pytest.mark.parametrize("sizes", ["", "[", "7", "[1]", '["a"]', "{}"])
def test_a_spoilt_copy_is_made_again(tmp_path: Path, sizes: str) -> None:
    write_parquet(tmp_path / "set", "train", GIVEN[:3])
    first = read(tmp_path)
    (notes,) = (tmp_path / "cache").glob("*/sizes.json")
    notes.write_text(sizes)
    assert read(tmp_path) == first and json.loads(notes.read_text()) == [len(one.content) for one in GIVEN[:3]]


def test_nothing_stays_of_what_fails_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_parquet(tmp_path / "set", "train", GIVEN)
    with monkeypatch.context() as patch:
        patch.setattr(flag, "signal", 15)
        with pytest.raises(Stopped, match="stopped by signal 15"):
            read(tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(EnvironmentFault, match="cannot write .*file/parquet-"):
        read(tmp_path, "file")
    # The middle of the file: the pages of some images, which nothing reads before they are unpacked.
    path = tmp_path / "set" / "data" / "train-00000-of-00001.parquet"
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + b"\xff" * 5000 + content[len(content) // 3 + 5000 :])
    with pytest.raises(DataError, match="00001.parquet cannot be read as parquet(.|\n)*fetch or write it again"):
        read(tmp_path)
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_image_without_bytes_says_so_when_asked_for(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    images = [{"bytes": one.content} for one in GIVEN[:2]] + [{"bytes": None}]
    table = pyarrow.table({"image": images, "text": ["a", "b", "c"]})
    parquet.write_table(table, tmp_path / "set" / "train.parquet", write_statistics=False)
    pairs = read(tmp_path)
    assert pairs.content(1) == GIVEN[1].content
    with pytest.raises(
        DataError, match=r"train.parquet, row 2 \(from 0\) cannot be read as an image\nwhy: the file is empty"
    ):
        pairs.image(2)
