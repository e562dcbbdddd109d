from __future__ import annotations

import os
from pathlib import Path

import pytest

from mvc.errors import DataError
from mvc.layout import class_problems, find_layout
from mvc.walk import counted, listing, printable, walk
from tests.mvc.pictures import fill


def found(root: Path) -> list[tuple[str, str, str | None]]:
    return [(image.path, image.class_name, image.split) for image in find_layout(root).images]


def touch(root: Path, *paths: str) -> None:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(b"x")


def test_class_folders_without_splits(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.JPG", "cat/deep/er/2.jpeg", "dog/3.tif", "dog/notes.txt", "metadata.jsonl", ".git/4.png")
    touch(tmp_path, "dog/.hidden.png", "__MACOSX/cat/5.png", "dog/Thumbs.db", "dog/README")
    assert found(tmp_path) == [
        ("cat/1.JPG", "cat", None),
        ("cat/deep/er/2.jpeg", "cat", None),
        ("dog/3.tif", "dog", None),
    ]
    layout = find_layout(tmp_path)
    assert layout.classes == ["cat", "dog"] and layout.given == frozenset()
    assert layout.others == {".txt": 1, ".jsonl": 1, ".db": 1, "README": 1}


@pytest.mark.parametrize(
    "train,validation,test",
    [
        ("train", "validation", "test"),
        ("Training", "Val", "Testing"),
        ("TRAIN", "dev", "TEST"),
        ("training", "valid", "test"),
    ],
)
def test_split_folders_and_their_other_names(tmp_path: Path, train: str, validation: str, test: str) -> None:
    touch(tmp_path, f"{train}/cat/1.png", f"{validation}/cat/1.png", f"{test}/dog/1.png", f"{train}/dog/9.png")
    assert sorted(found(tmp_path)) == sorted(
        [
            (f"{train}/cat/1.png", "cat", "train"),
            (f"{train}/dog/9.png", "dog", "train"),
            (f"{validation}/cat/1.png", "cat", "validation"),
            (f"{test}/dog/1.png", "dog", "test"),
        ]
    )


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.png", "bus/1.png")
    assert found(tmp_path) == [("bus/1.png", "bus", None), ("train/1.png", "train", None)]


def test_folders_beside_the_splits(tmp_path: Path) -> None:
    touch(
        tmp_path,
        "train/a/1.png",
        "train/b/1.png",
        "test/a/1.png",
        "unlabelled/1.png",
        "unlabelled/2.png",
        "train/x.png",
    )
    warnings = find_layout(tmp_path).warnings
    assert "unlabelled/ lies beside the split folders, ignored: 2 images" in warnings
    assert "1 image outside the class folders, ignored: train/x.png" in warnings
    touch(tmp_path / "unclear", "train/steam/1.png", "bus/1.png", "car/1.png")
    with pytest.raises(DataError, match="other folders with images: bus, car"):
        find_layout(tmp_path / "unclear")


def test_errors_of_layout(tmp_path: Path) -> None:
    touch(tmp_path, "loose/a.jpg", "loose/b.png", "one/only/x.png", "two/Train/a/1.png", "two/training/a/2.png")
    touch(tmp_path, "no_train/test/a/1.png", "no_train/val/a/1.png", "list.csv", "none/readme.txt")
    cases = {
        "loose": "(?s)no class folders.*no folder says their class.*a.jpg.*b.png.*FOLDER/<class>/<image>",
        "one": "only one class folder in .*: only",
        "two": "several train folders: Train, training",
        "no_train": "has test, val but no train folder",
        "none": "(?s)no class folders.*no image files were found",
        "absent": "absent does not exist",
        "list.csv": "(?s)names a file.*CSV, JSONL, parquet",
    }
    for name, text in cases.items():
        with pytest.raises(DataError, match=text):
            find_layout(tmp_path / name)


def test_link_loop_gives_one_image(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/1.png")
    (tmp_path / "cat/loop").symlink_to("..")
    (tmp_path / "cat/self").symlink_to("self")
    (tmp_path / "cat/again.png").symlink_to("1.png")
    (tmp_path / "dog/cats").symlink_to("../cat")
    assert walk(tmp_path).images == ["cat/1.png", "dog/1.png"]


def test_links_inside_are_followed_and_links_out_are_not(tmp_path: Path) -> None:
    root, outside = tmp_path / "data", tmp_path / "elsewhere"
    touch(root, ".store/c/1.png", ".store/loose.png", "dog/1.png")
    touch(outside, "secret.png", "more/x.png")
    (root / "cat").symlink_to(".store/c")
    (root / "dog/linked.png").symlink_to("../.store/loose.png")
    (root / "dog/out.png").symlink_to(outside / "secret.png")
    (root / "dog/out").symlink_to(outside)
    tree = walk(root)
    assert tree.images == ["cat/1.png", "dog/1.png", "dog/linked.png"]
    assert sorted(tree.outside) == ["dog/out", "dog/out.png"]
    assert find_layout(root).classes == ["cat", "dog"]
    # The name of a folder that is itself reached through a link is no way out.
    (tmp_path / "alias").symlink_to(root)
    assert walk(tmp_path / "alias").images == tree.images


def test_hard_links_are_two_files(tmp_path: Path) -> None:
    touch(tmp_path, "cat/1.png", "dog/1.png")
    os.link(tmp_path / "cat/1.png", tmp_path / "dog/2.png")
    assert walk(tmp_path).images == ["cat/1.png", "dog/1.png", "dog/2.png"]


def problems(root: Path, without: tuple[str, ...] = ()) -> list[str]:
    layout = find_layout(root)
    return [str(problem) for problem in class_problems(layout, {image.path for image in layout.images} - set(without))]


def test_problems_list_all_offenders(tmp_path: Path) -> None:
    touch(
        tmp_path, "train/a/1.png", "train/b/1.png", "train/e1/x.txt", "test/a/1.png", "test/new/1.png", "test/own/1.png"
    )
    (tmp_path / "train/e2").mkdir()
    only_test, empty = problems(tmp_path)
    assert "without training images" in only_test and "\n  new\n  own" in only_test
    assert empty.startswith("class folders without training images") and "\n  e1\n  e2" in empty
    assert any("b" in text for text in problems(tmp_path, without=("train/b/1.png",))[1].splitlines()[1:])
    fill(tmp_path / "fine", {"a": 1, "b": 1})
    assert problems(tmp_path / "fine") == []


def test_twins_in_case_and_unicode_form(tmp_path: Path) -> None:
    touch(tmp_path, "Cat/1.png", "cat/1.png", "caf\u00e9/1.png", "cafe\u0301/1.png", "dog/1.png")
    (text,) = problems(tmp_path)
    assert "differ only in case or Unicode form" in text
    assert "Cat = cat" in text and "cafe\u0301 = caf\u00e9" in text and "dog" not in text


def test_names_that_are_no_text(tmp_path: Path) -> None:
    touch(tmp_path, "dog/1.png")
    place = os.fsencode(tmp_path) + b"/c\xe9t"
    try:
        os.mkdir(place)
    except OSError:
        pytest.skip("this file system only takes UTF-8 names")
    with open(place + b"/1.png", "wb") as file:
        file.write(b"x")
    (text,) = problems(tmp_path)
    assert "names are not UTF-8: c\\udce9t" in text


def test_words_for_messages() -> None:
    assert printable("a\x1b[31m\nb\udce9") == "a\\x1b[31m\\nb\\udce9"
    assert listing(["a"]) == "a" and listing(["a", "b"]) == "\n  a\n  b"
    assert counted(1, "image") == "1 image" and counted(0, "image") == "0 images"
