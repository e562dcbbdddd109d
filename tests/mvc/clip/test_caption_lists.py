"""JSON lists: an entry a caption or an image, where paths begin, and entries that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mvc.clip.pairs import read_pairs
from mvc.errors import DataError

from .pair_data import examples, write_images, write_list

GIVEN = examples(3)


def write(root: Path, entries: Any, name: str = "train.json") -> Path:
    (root / name).write_text(json.dumps(entries))
    return root


def test_entries_of_one_image_are_joined_in_their_order(tmp_path: Path) -> None:
    write_images(tmp_path / "a", GIVEN)
    entries = [
        {"image": "a/001.png", "caption": "one", "image_id": "b"},
        {"image": "a/000.png", "caption": ["two", "three"]},
        {"image": "./a/001.png", "caption": "four", "image_id": "b", "dataset": "toy"},
        {"image": "a/002.png", "captions": ["five"], "image_id": 0},
    ]
    pairs = read_pairs(write(tmp_path, entries), "train")
    assert pairs.ids == ["a/001.png", "a/000.png", "a/002.png"]
    assert pairs.captions == [["one", "four"], ["two", "three"], ["five"]]


def test_images_of_another_folder(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere" / "val2014", GIVEN)
    (tmp_path / "lists").mkdir()
    lists = write(tmp_path / "lists", [{"image": "val2014/002.png", "caption": "one"}], "coco_test.json")
    pairs = read_pairs(lists, "test", image_root=tmp_path / "elsewhere")
    assert pairs.ids == ["val2014/002.png"] and pairs.content(0) == GIVEN[2].content
    with pytest.raises(DataError, match=r"entry 0 \(from 0\): there is no image .*lists/val2014/002.png"):
        read_pairs(lists, "test")


def test_several_lists_of_a_split_are_several_data_sets(tmp_path: Path) -> None:
    write_list(tmp_path, "train", GIVEN)
    write(tmp_path, [{"image": "train/000.png", "caption": "one"}], "other_train.json")
    with pytest.raises(DataError, match="several lists of train: other_train.json, toy_train.json\ndo: give the file"):
        read_pairs(tmp_path, "train")
    assert len(read_pairs(tmp_path / "toy_train.json", "train")) == 3
    with pytest.raises(DataError, match="has no split test\nwhy: there is: train"):
        read_pairs(tmp_path / "toy_train.json", "test")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("a", "entry 1 .from 0. is no object\nwhy: it is 'a'"),
        ({"caption": "a"}, "entry 1 .from 0. has no image"),
        ({"image": "train/000.png"}, "entry 1 .from 0. has no captions"),
        ({"image": "train/000.png", "caption": ""}, "entry 1 .from 0.: caption 1 is empty"),
        ({"image": "train/000.png", "caption": []}, "entry 1 .from 0. has no captions"),
        ({"image": "train/9.png", "caption": "a"}, "entry 1 .from 0.: there is no image .*train/9.png"),
        ({"image": "../9.png", "caption": "a"}, r"entry 1 .from 0.: image \.\./9.png leads out"),
        (
            {"image": "train/001.png", "caption": "a", "image_id": 5},
            "entry 1 .from 0.: image_id 5 is train/001.png, and train/000.png before",
        ),
        (
            {"image": "train/000.png", "caption": "a", "image_id": "6"},
            "entry 1 .from 0.: train/000.png has the image_id 6, and 5 before",
        ),
    ],
)
def test_entries_that_cannot_be_used(tmp_path: Path, entry: Any, message: str) -> None:
    write_images(tmp_path / "train", GIVEN)
    write(tmp_path, [{"image": "train/000.png", "caption": "one", "image_id": 5}, entry])
    with pytest.raises(DataError, match=f"train.json, {message}"):
        read_pairs(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[{]", "train.json is not JSON\nwhy: .*line 1 column 3"),
        (b'["\xff"]', "train.json is not JSON\nwhy: .*0xff in position 2"),
        (b"[" * 100_000, "train.json is not JSON"),
        (b'{"images": []}', "train.json is no list\nwhy: its JSON is dict"),
        (b"[]", "has no images in train"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "train.json").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_pairs(tmp_path, "train")
