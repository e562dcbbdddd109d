from __future__ import annotations

import os
import shutil
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from mvc.config import DataSection, Experiment, TrainSection
from mvc.data_stage import SKIPPED, SUMMARY, run_data
from mvc.dataset import CLASSES, INDEX, load_index
from mvc.errors import ConfigError, DataError
from mvc.storage import read_json, read_json_lines
from tests.folders import sha256_folder
from tests.mvc.pictures import fill, picture
from tests.real_data import real_data


def experiment(path: Path | str, **data: Any) -> Experiment:
    return Experiment(data=DataSection(path=str(path), **data))


def test_user_folder_is_split_frozen_and_untouched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "data", {"cat": 20, "dog": 10})
    (tmp_path / "data/notes.txt").write_text("hello")
    before = sha256_folder(tmp_path / "data")
    run_data(tmp_path / "run", experiment(tmp_path / "data"))
    assert sha256_folder(tmp_path / "data") == before
    summary = read_json(tmp_path / "run" / SUMMARY)
    assert summary["used"] == {"train": 19, "validation": 5, "test": 6}
    assert summary["used_per_class"]["dog"] == {"train": 6, "validation": 2, "test": 2}
    assert summary["made"] == ["test", "validation"] and summary["ignored_files"] == {".txt": 1}
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("data:")]
    assert lines[0].startswith("data: 30 images in 2 classes from ")
    assert lines[1] == "data: uses 19 train, 5 validation, 6 test images (test and validation made by rule)"
    assert lines[2] == "data: no image skipped; 1 other file ignored"


def test_same_bytes_again(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"cat": 20, "dog": 10})
    for name in ("one", "two"):
        run_data(tmp_path / name, experiment(tmp_path / "data", shots=3))
    for file in (INDEX, CLASSES, SUMMARY):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_rows_hold_unused_images_too(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"cat": 20, "dog": 10})
    run_data(tmp_path / "run", experiment(tmp_path / "data", shots=3))
    rows = read_json_lines(tmp_path / "run" / INDEX)
    assert len(rows) == 30 and sum(row["used"] for row in rows) == 6 + 5 + 6
    assert set(rows[0]) == {
        *("id", "path", "class_name", "label", "split", "sha256", "width", "height", "mode", "phash", "note", "used"),
        "group",
    }
    assert all(row["group"] is None for row in rows)
    assert all(len(row["phash"]) == 16 and int(row["phash"], 16) >= 0 for row in rows)
    assert [len(load_index(tmp_path / "run").split(name)) for name in ("train", "validation", "test")] == [6, 5, 6]


def test_bad_images_are_all_listed_or_skipped(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"cat": 8, "dog": 8})
    (tmp_path / "data/cat/empty.png").write_bytes(b"")
    (tmp_path / "data/dog/text.jpg").write_text("hello")
    with pytest.raises(
        DataError, match="(?s)2 images in .*cat/empty.png: the file is empty.*dog/text.jpg: not an image"
    ):
        run_data(tmp_path / "run", experiment(tmp_path / "data"))
    assert not (tmp_path / "run" / INDEX).exists()
    run_data(tmp_path / "run", experiment(tmp_path / "data", on_bad="skip"))
    skipped = read_json_lines(tmp_path / "run" / SKIPPED)
    assert [row["path"] for row in skipped] == ["cat/empty.png", "dog/text.jpg"]
    assert skipped[0]["reason"] == "the file is empty"
    summary = read_json(tmp_path / "run" / SUMMARY)
    assert summary["skipped"] == 2 and summary["images"] == 16
    (tmp_path / "data/cat/empty.png").unlink()
    (tmp_path / "data/dog/text.jpg").unlink()
    run_data(tmp_path / "run", experiment(tmp_path / "data", on_bad="skip"))
    assert not (tmp_path / "run" / SKIPPED).exists()


def test_class_whose_images_are_all_bad(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"cat": 4, "dog": 4})
    (tmp_path / "data/emu").mkdir()
    (tmp_path / "data/emu/a.png").write_bytes(b"")
    with pytest.raises(DataError, match="class folders without training images: emu"):
        run_data(tmp_path / "run", experiment(tmp_path / "data", on_bad="skip"))


def test_file_name_that_is_no_text_counts_as_bad(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"cat": 4, "dog": 4})
    try:
        with open(os.fsencode(tmp_path / "data/cat") + b"/\xe9.png", "wb") as file:
            picture(99).save(file, "PNG")
    except OSError:
        pytest.skip("this file system only takes UTF-8 names")
    run_data(tmp_path / "run", experiment(tmp_path / "data", on_bad="skip"))
    assert read_json_lines(tmp_path / "run" / SKIPPED) == [
        {"path": "cat/\\udce9.png", "reason": "its path is not UTF-8 text"}
    ]


def test_copies_across_given_splits_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "data", {"train/cat": 6, "train/dog": 6, "test/cat": 2, "test/dog": 2})
    shutil.copy(tmp_path / "data/train/cat/000.png", tmp_path / "data/test/cat/copy.png")
    run_data(tmp_path / "run", experiment(tmp_path / "data", validation_share=0.01))
    text = capsys.readouterr().err
    assert (
        "warning: 1 image in more than one split, which flatters results: test/cat/copy.png = train/cat/000.png" in text
    )


def test_groups_are_frozen_and_kept_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "data", {f"{name}/p{n}": 3 for name in ("cat", "dog") for n in range(8)})
    run_data(tmp_path / "run", experiment(tmp_path / "data", group_pattern="(cat|dog)/p[0-9]"))
    assert "classes without test images (all its images are of one group): cat, dog" in capsys.readouterr().err
    run_data(tmp_path / "run", experiment(tmp_path / "data", group_pattern="/(p[0-9])/"))
    text = capsys.readouterr().err
    assert "data: 8 groups; splits that are made part none" in text and "warning" not in text
    homes = defaultdict(set)
    for record in load_index(tmp_path / "run").records:
        assert record.group == record.path.split("/")[1]
        homes[record.group].add(record.split)
    assert sorted(homes) == [f"p{n}" for n in range(8)] and all(len(splits) == 1 for splits in homes.values())
    summary = read_json(tmp_path / "run" / SUMMARY)
    assert summary["groups"] == 8 and summary["used"] == {"train": 30, "validation": 6, "test": 12}


def test_groups_that_given_splits_part_are_warned_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "data", {"train/cat": 6, "train/dog": 6, "test/cat": 2, "test/dog": 3})
    run_data(tmp_path / "run", experiment(tmp_path / "data", group_pattern="00([0-9])[.]png"))
    text = "3 groups lie in more than one split, which flatters results: 0 in train and test"
    assert f"warning: {text}" in capsys.readouterr().err
    assert text in read_json(tmp_path / "run" / SUMMARY)["warnings"]


def test_a_fold_is_the_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "data", {"cat": 10, "dog": 15})
    tested = list[str]()
    for fold in range(5):
        run_data(tmp_path / "run", experiment(tmp_path / "data", folds=5, fold=fold))
        assert f"data: the test split is fold {fold} of 0 to 4" in capsys.readouterr().err
        tested += [record.id for record in load_index(tmp_path / "run").split("test")]
        assert read_json(tmp_path / "run" / SUMMARY)["used"] == {"train": 16, "validation": 4, "test": 5}
    assert len(tested) == len(set(tested)) == 25


def test_folds_and_groups_are_refused_before_any_image_is_read(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"train/cat": 3, "train/dog": 3, "test/cat": 2, "test/dog": 2})
    (tmp_path / "data/train/cat/bad.png").write_bytes(b"")
    with pytest.raises(ConfigError, match="the folder has a test split"):
        run_data(tmp_path / "run", experiment(tmp_path / "data", folds=5))
    with pytest.raises(DataError, match="finds no group for 11 of 11 images"):
        run_data(tmp_path / "run", experiment(tmp_path / "data", group_pattern="patient-(.)"))
    assert not (tmp_path / "run").exists()


def test_codes_and_class_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(tmp_path / "data", {"n01443537": 6, "n01629819": 6})
    run_data(tmp_path / "run", experiment(tmp_path / "data"))
    assert "2 class folders named like a code (n01443537, n01629819)" in capsys.readouterr().err
    names = {"n01443537": "goldfish", "n01629819": "fire salamander"}
    run_data(tmp_path / "run", experiment(tmp_path / "data", class_names=names))
    assert "named like a code" not in capsys.readouterr().err
    assert load_index(tmp_path / "run").words == ["goldfish", "fire salamander"]
    with pytest.raises(ConfigError, match="(?s)'n01443573'.*'n01443537'"):
        run_data(tmp_path / "run", experiment(tmp_path / "data", class_names={"n01443573": "goldfish"}))


def test_upright_size_and_mode_are_recorded(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"cat": 4, "dog": 4})
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(50).resize((30, 20)).save(tmp_path / "data/cat/turned.jpg", exif=exif)
    run_data(tmp_path / "run", experiment(tmp_path / "data"))
    row = next(row for row in read_json_lines(tmp_path / "run" / INDEX) if row["id"] == "cat/turned.jpg")
    assert (row["width"], row["height"], row["mode"]) == (20, 30, "RGB")


def test_paths_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="(?s)no data was given.*data.path"):
        run_data(tmp_path / "run", Experiment())
    with pytest.raises(DataError, match="nowhere does not exist"):
        run_data(tmp_path / "run", experiment(tmp_path / "nowhere"))
    (tmp_path / "list.jsonl").write_text("{}")
    with pytest.raises(DataError, match="names a file"):
        run_data(tmp_path / "run", experiment(tmp_path / "list.jsonl"))


def test_one_image_a_class_needs_pairing_self(tmp_path: Path) -> None:
    fill(tmp_path / "data", {"cat": 1, "dog": 5})
    with pytest.raises(DataError, match=r"fewer than 2 different training images: cat \(1\)"):
        run_data(tmp_path / "run", experiment(tmp_path / "data"))
    data = DataSection(path=str(tmp_path / "data"))
    run_data(tmp_path / "run", Experiment(data=data, train=TrainSection(pairing="self")))
    assert read_json(tmp_path / "run" / SUMMARY)["used_per_class"]["cat"] == {"train": 1}


def test_digits_live_in_the_run_which_can_be_moved(tmp_path: Path) -> None:
    start = time.monotonic()
    run_data(tmp_path / "run", experiment("digits", shots=5))
    assert time.monotonic() - start < 20
    assert read_json(tmp_path / "run" / CLASSES)["root"] == "data/digits"
    shutil.move(tmp_path / "run", tmp_path / "moved")
    dataset = load_index(tmp_path / "moved")
    assert len(dataset.classes) == 10 and dataset.words[0] == "eight"
    assert [len(dataset.split(name)) for name in ("train", "validation", "test")] == [50, 50, 797]
    assert all(dataset.image_path(record).is_file() for record in dataset.records)
    first = (tmp_path / "moved" / INDEX).read_bytes()
    run_data(tmp_path / "moved", experiment("digits", shots=5))
    assert (tmp_path / "moved" / INDEX).read_bytes() == first


def test_real_folders(tmp_path: Path) -> None:
    expected = {"brain_tumor_mri": (4, [640, 160, 400]), "caltech101_20": (20, [480, 120, 400])}
    for name, (classes, counts) in expected.items():
        run_data(tmp_path / name, experiment(real_data(name)))
        dataset = load_index(tmp_path / name)
        assert len(dataset.classes) == classes
        assert [len(dataset.split(split)) for split in ("train", "validation", "test")] == counts
