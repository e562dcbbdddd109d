"""Which files are the data set and which split they are of: folders, single files, patterns, and what is unclear."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvc.clip.pairs import read_pairs
from mvc.clip.sources import expand_braces, file_word, find_source, split_of
from mvc.errors import ConfigError, DataError

from .pair_data import WRITERS, examples, write_imagefolder, write_list, write_shards, write_tar


@pytest.mark.parametrize("form", WRITERS)
@pytest.mark.parametrize("name", ["validation", "val", "dev", "valid"])
def test_usual_names_of_a_split(form: str, name: str, tmp_path: Path) -> None:
    WRITERS[form](tmp_path, "train", examples(2))
    WRITERS[form](tmp_path, name, examples(1, first=2))
    assert len(read_pairs(tmp_path, "train")) == 2
    for asked in ("validation", "val", "Dev"):
        assert read_pairs(tmp_path, asked).captions == [examples(1, first=2)[0].captions]


@pytest.mark.parametrize("form", WRITERS)
def test_a_missing_split_lists_those_there_are(form: str, tmp_path: Path) -> None:
    for split in ("test", "training"):
        WRITERS[form](tmp_path, split, examples(1))
    with pytest.raises(
        DataError, match="has no split validation\nwhy: there is: train, test\ndo: .*cut off from train"
    ):
        read_pairs(tmp_path, "validation")


@pytest.mark.parametrize("form", WRITERS)
def test_without_any_name_all_is_training_data(form: str, tmp_path: Path) -> None:
    """Even below a folder called test: what is given as the data set has no name of a split itself."""
    root = WRITERS[form](tmp_path / "test", "some", examples(2))
    assert len(read_pairs(root, "train")) == 2
    with pytest.raises(DataError, match="has no split test(.|\n)*is: train; no folder or file is named after a split"):
        read_pairs(root, "test")


@pytest.mark.parametrize("form", WRITERS)
def test_two_names_of_one_split_and_parts_without_a_name(form: str, tmp_path: Path) -> None:
    for split in ("val", "dev"):
        WRITERS[form](tmp_path / "twice", split, examples(1))
    with pytest.raises(DataError, match="has several splits of validation: dev, val"):
        read_pairs(tmp_path / "twice", "validation")
    for split in ("test", "others"):
        WRITERS[form](tmp_path / "partly", split, examples(1))
    for split in ("train", "test"):
        with pytest.raises(DataError, match="others.* belongs to no split, and others do: test"):
            read_pairs(tmp_path / "partly", split)


def test_words_of_a_split_in_names(tmp_path: Path) -> None:
    named = {
        "train-00000-of-00002.parquet": "train",
        "coco_Karpathy_VAL.json": "val",
        "test/0001.tar": "test",
        "Training/dev/x.tar": "Training",
        "trainer-1.tar": None,
        "contest.json": None,
        "0001.tar": None,
    }
    assert {name: file_word(tmp_path / name, tmp_path) for name in named} == named
    with pytest.raises(DataError, match="train_test.json has words of several splits: train, test"):
        file_word(tmp_path / "train_test.json", tmp_path)
    assert split_of("Training") == "train" and split_of("dev") == "validation"


@pytest.mark.parametrize(
    ("pattern", "texts"),
    [
        ("a-{08..11}.tar", ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]),
        ("{9..11}", ["9", "10", "11"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{train,val}-{0..1}", ["train-0", "train-1", "val-0", "val-1"]),
        ("a{,b}", ["a", "ab"]),
        ("a{b}c{}", ["a{b}c{}"]),
        ("plain", ["plain"]),
    ],
)
def test_braces(pattern: str, texts: list[str]) -> None:
    assert expand_braces(pattern) == texts


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 1200), st.integers(0, 40), st.integers(1, 6))
def test_ranges_of_braces(first: int, more: int, width: int) -> None:
    low, high = f"{first:0{width}d}", f"{first + more:0{width}d}"
    texts = expand_braces(f"{{{low}..{high}}}")
    assert [int(text) for text in texts] == list(range(first, first + more + 1))
    assert texts[0] == low or len(low) < len(high)
    if low.startswith("0") and len(low) > 1:
        assert {len(text) for text in texts} == {len(high)}


def test_patterns_name_shards(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_shards(tmp_path / "shards", split, examples(4))
    whole = read_pairs(tmp_path / "shards", "train")
    for pattern in ("train-{000000..000001}.tar", "*.tar", "{train,test}-*.tar", "train-00000[01].tar"):
        assert read_pairs(f"{tmp_path}/shards/{pattern}", "train") == whole
    assert len(read_pairs(f"{tmp_path}/**/train-000000.tar", "train")) == 2
    with pytest.raises(DataError, match=re.escape("train-000002.tar") + "(.|\n)*fetch the missing files"):
        read_pairs(f"{tmp_path}/shards/train-{{000000..000002}}.tar", "train")
    with pytest.raises(DataError, match=re.escape("train-*.parquet")):
        read_pairs(f"{tmp_path}/shards/train-*.parquet", "train")


def test_a_folder_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    root = write_shards(tmp_path / "set[1] {a,b}*", "train", examples(2))
    assert len(read_pairs(root, "train")) == 2


def test_relative_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_shards(tmp_path, "train", examples(2))
    monkeypatch.chdir(tmp_path)
    for path in (".", "train-*.tar", "train-{000000,000001}.tar"):
        assert read_pairs(path, "train").ids == ["train-000000.tar/000.png", "train-000001.tar/001.png"]
    assert read_pairs("train-000000.tar", "train").ids == ["train-000000.tar/000.png"]


def test_unknown_and_unclear_forms(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no captioned images\ndo: give a folder with metadata.jsonl or"):
        find_source(tmp_path, None)
    write_tar(tmp_path / "train.tar", [("a.jpg", b""), ("a.txt", b"one")])
    for name in ("train.tar.gz", "train.tgz"):
        (tmp_path / name).write_bytes(b"")
        with pytest.raises(
            DataError, match=f"{name} cannot be read as captioned images\nwhy: an archive must not be com"
        ):
            find_source(tmp_path / name, None)
    (tmp_path / "train.tsv").write_text("a\tb\n")
    with pytest.raises(DataError, match="train.tsv cannot be read as captioned images\nwhy: the form is not known"):
        find_source(tmp_path / "train.tsv", None)
    write_list(tmp_path, "train", examples(1))
    with pytest.raises(DataError, match=r"several forms: json \(1 file\), webdataset \(1 file\)"):
        find_source(tmp_path, None)
    assert find_source(tmp_path, "json").files == [tmp_path / "toy_train.json"]
    with pytest.raises(DataError, match="holds no captioned images as parquet"):
        find_source(tmp_path, "parquet")
    with pytest.raises(DataError, match="train.tar is webdataset, and json was asked for"):
        find_source(tmp_path / "train.tar", "json")
    with pytest.raises(ConfigError, match="'coco' is no form"):
        find_source(tmp_path, "coco")
    write_imagefolder(tmp_path, "train", examples(1))
    assert find_source(tmp_path, None).form == "imagefolder"


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path) -> None:
    root = write_shards(tmp_path, "train", examples(2))
    (root / ".train-000009.tar").write_bytes(b"no archive")
    (root / ".cache").mkdir()
    (root / ".cache" / "train-000008.tar").write_bytes(b"no archive")
    assert len(read_pairs(root, "train")) == 2
