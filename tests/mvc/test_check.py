from __future__ import annotations

import shutil
import time
from io import StringIO
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from mvc.check import CheckReport, check_folder, print_report
from mvc.duplicates import across, equal_files, near_pairs
from mvc.errors import DataError
from mvc.randomness import numpy_generator
from tests.mvc.pictures import fill, picture


def printed(report: CheckReport) -> str:
    console = Console(file=StringIO(), width=160)
    print_report(report, console)
    return str(console.file.getvalue())  # type: ignore[attr-defined]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "data"
    fill(root, {"train/cat": 12, "train/dog": 3, "test/cat": 2, "test/dog": 2})
    shutil.copy(root / "train/cat/000.png", root / "test/cat/equal.png")
    shutil.copy(root / "train/cat/001.png", root / "train/dog/torn.png")
    picture(2).save(root / "test/dog/near.jpg", quality=90)
    Image.new("L", (50, 60), 7).save(root / "train/cat/flat.png")
    (root / "train/cat/half.png").write_bytes((root / "train/cat/003.png").read_bytes()[:200])
    (root / "train/[red].txt").write_text("x")
    return root


def test_report_counts_everything(folder: Path) -> None:
    report = check_folder(folder)
    assert report.counts == {"cat": {"train": 13, "test": 3}, "dog": {"train": 4, "test": 3}}
    assert report.sizes == {(40, 40): 22, (50, 60): 1}
    assert report.modes == {"RGB": 22, "L": 1}
    assert list(report.corrupt) == ["train/cat/half.png"]
    assert report.equal == [["test/cat/equal.png", "train/cat/000.png"], ["train/cat/001.png", "train/dog/torn.png"]]
    assert report.equal_across == [["test/cat/equal.png", "train/cat/000.png"]]
    assert [pair[:2] for pair in report.near] == [("test/dog/near.jpg", "train/cat/002.png")]
    assert report.near_across == report.near and report.near[0][2] <= 4
    assert report.ignored == {".txt": 1} and report.problems == []
    assert "1 image: one colour only" in report.warnings
    assert "uneven classes: cat has 13 training images, dog has 4" in report.warnings
    assert "1 image in more than one class: train/cat/001.png = train/dog/torn.png" in report.warnings


def test_printed_report(folder: Path) -> None:
    text = printed(check_folder(folder))
    for part in (
        "40x40 (22), 50x60 (1)",
        "40 to 50, 40 to 60 px",
        "train/cat/half.png",
        "2 copies of 2 images",
        "1 equal, 1 near",
        "test/dog/near.jpg = train/cat/002.png",
        "warning: uneven classes",
    ):
        assert part in text
    assert "every image can be read" not in text


def test_clean_folder_without_splits(tmp_path: Path) -> None:
    fill(tmp_path, {"[bold]cat": 3, "dog": 3})
    report = check_folder(tmp_path)
    assert report.counts["dog"] == {"all": 3} and not report.corrupt
    text = printed(report)
    assert "every image can be read" in text and "[bold]cat" in text and "no splits given" in text


def test_problems_are_shown_not_raised(tmp_path: Path) -> None:
    fill(tmp_path, {"train/cat": 2, "train/dog": 2, "test/emu": 1, "test/cat": 1})
    report = check_folder(tmp_path)
    assert len(report.problems) == 1 and "without training images: emu" in report.problems[0]
    assert "to put right" in printed(report)
    with pytest.raises(DataError, match="does not exist"):
        check_folder(tmp_path / "nowhere")


def test_only_corrupt_images_can_be_printed(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"")
    report = check_folder(tmp_path)
    assert len(report.corrupt) == 2 and len(report.problems) == 1
    assert "the file is empty" in printed(report)


def test_dark_16_bit_images_are_noticed(tmp_path: Path) -> None:
    fill(tmp_path, {"cat": 2, "dog": 2})
    values = numpy_generator(0, "test dark").integers(0, 4096, (40, 40)).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "cat/dark.png")
    warnings = check_folder(tmp_path).warnings
    assert warnings == ["1 image: 16-bit values stay below 4096, so the image is nearly black"]


def test_near_pairs_equal_the_direct_count() -> None:
    bits = numpy_generator(0, "test hashes").integers(0, 2, (600, 64), dtype=np.uint8)
    bits[300:600] = bits[:300]
    for row in range(300):
        bits[300 + row, : row % 8] ^= 1
    hashes = [np.packbits(row).tobytes().hex() for row in bits]
    pairs = near_pairs(hashes, 4)
    expected = {
        (first, second, int((bits[first] != bits[second]).sum()))
        for first in range(600)
        for second in range(first + 1, 600)
        if int((bits[first] != bits[second]).sum()) <= 4
    }
    assert {tuple(row) for row in pairs.tolist()} == expected and len(expected) >= 150
    assert (np.diff(pairs[:, 2]) >= 0).all()
    one, two = imagehash.hex_to_hash(hashes[3]), imagehash.hex_to_hash(hashes[303])
    assert (3, 303, one - two) in expected


def test_near_pairs_of_5000_hashes_take_seconds() -> None:
    numbers = numpy_generator(0, "test many").integers(0, 2**63, 5000)
    hashes = [f"{number:016x}" for number in numbers]
    start = time.monotonic()
    near_pairs(hashes)
    assert time.monotonic() - start < 5
    assert near_pairs([]).shape == (0, 3)


def test_equal_files_and_across() -> None:
    groups = equal_files({"c": "1", "a": "1", "b": "2", "d": "3", "e": "3"})
    assert groups == [["a", "c"], ["d", "e"]]
    assert across(groups, {"a": "train", "c": "test", "d": "train", "e": "train"}) == [["a", "c"]]
    assert across(groups, {"a": "train"}) == []
