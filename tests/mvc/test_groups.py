"""The group of each image: by a pattern in its path, or by a column of metadata.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mvc.errors import ConfigError, DataError
from mvc.groups import find_groups
from mvc.layout import FoundImage
from mvc.storage import write_json_lines

PATHS = ("cat/p1_a.png", "cat/p1_b.png", "dog/p1_c.png", "dog/p2_d.png")
IMAGES = [FoundImage(path, path.split("/")[0], None) for path in PATHS]


def by_pattern(pattern: str) -> dict[str, str] | None:
    return find_groups(Path("nowhere"), IMAGES, pattern, None)


def by_column(root: Path, rows: list[dict[str, Any]], column: str = "patient") -> dict[str, str] | None:
    write_json_lines(root / "metadata.jsonl", rows)
    return find_groups(root, IMAGES, None, column)


def rows_of(*values: Any) -> list[dict[str, Any]]:
    return [{"file_name": path, "patient": value} for path, value in zip(PATHS, values, strict=True)]


def test_none_is_wanted() -> None:
    assert find_groups(Path("nowhere"), IMAGES, None, None) is None


def test_the_brackets_name_the_group_across_classes() -> None:
    assert by_pattern("(p[0-9]+)_") == dict(zip(PATHS, ("p1", "p1", "p1", "p2"), strict=True))
    assert by_pattern("^([^/]+/p[0-9]+)_") == dict(zip(PATHS, ("cat/p1", "cat/p1", "dog/p1", "dog/p2"), strict=True))
    assert by_pattern("(?:cat|dog)/(?P<patient>p[0-9])") == by_pattern("(p[0-9]+)_")


@pytest.mark.parametrize(
    ("pattern", "text"),
    [
        ("p([0-9]", r"(?s)'p\(\[0-9\]' is no regular expression.*unterminated"),
        ("p(1){99999999999999999999}", "is no regular expression"),
        ("p[0-9]+", "has 0 capturing groups, not one"),
        ("(p)([0-9])", "(?s)has 2 capturing groups, not one.*only hold together"),
    ],
)
def test_patterns_that_are_refused(pattern: str, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        by_pattern(pattern)


def test_images_without_a_group_are_named() -> None:
    with pytest.raises(DataError, match=r"(?s)finds no group for 1 of 4 images: dog/p2_d.png\n.*correct the pattern"):
        by_pattern("(p1)")
    # An empty match and an optional part that did not take place name no group either.
    for pattern in ("([0-9]*)", "cat/p1_b|dog|cat(x)?"):
        with pytest.raises(DataError, match="for 4 of 4 images"):
            by_pattern(pattern)
    many = [FoundImage(f"cat/{number}.png", "cat", None) for number in range(9)]
    with pytest.raises(DataError, match=r"(?s)9 of 9 images: \n  cat/0.png\n.*cat/4.png\n  and 4 more\nwhy"):
        find_groups(Path("nowhere"), many, "(x)", None)


def test_both_ways_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"both data.group_pattern and data.group_column"):
        find_groups(Path("nowhere"), IMAGES, "(p)", "patient")


def test_a_column_names_the_group(tmp_path: Path) -> None:
    assert by_column(tmp_path, rows_of("x", " x ", "y", "z")) == dict(zip(PATHS, "xxyz", strict=True))
    # A column with gaps comes as 7.0 from a table.
    assert by_column(tmp_path, rows_of(7, 7.0, "7", 8)) == dict(zip(PATHS, "7778", strict=True))
    backslashes = [{**row, "file_name": "./" + row["file_name"].replace("/", "\\")} for row in rows_of(*"abcd")]
    assert by_column(tmp_path, backslashes) == dict(zip(PATHS, "abcd", strict=True))


def test_metadata_of_split_folders_whatever_they_are_called(tmp_path: Path) -> None:
    images = [FoundImage("Training/cat/1.png", "cat", "train"), FoundImage("val/cat/1.png", "cat", "validation")]
    for folder, value in (("Training", "a"), ("val", "b")):
        (tmp_path / folder).mkdir()
        write_json_lines(tmp_path / folder / "metadata.jsonl", [{"file_name": "cat/1.png", "patient": value}])
    assert find_groups(tmp_path, images, None, "patient") == {"Training/cat/1.png": "a", "val/cat/1.png": "b"}


@pytest.mark.parametrize("value", [None, "", "  ", True, [1], float("1.5"), {}])
def test_values_that_name_no_group(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"(?s)has no patient for 1 of 4 images: cat/p1_b.png.*text or a whole number"):
        by_column(tmp_path, rows_of("a", value, "c", "d"))


def test_rows_and_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"(?s)there is no metadata.jsonl in .*rows like .*patient"):
        find_groups(tmp_path, IMAGES, None, "patient")
    with pytest.raises(DataError, match="has no patient for 1 of 4 images: dog/p2_d.png"):
        by_column(tmp_path, rows_of(*"abcd")[:3])
    with pytest.raises(DataError, match=r"(?s)data.group_column=subject is no column of .*there are: patient"):
        by_column(tmp_path, rows_of(*"abcd"), "subject")
    with pytest.raises(DataError, match="row 5 has no file_name"):
        by_column(tmp_path, [*rows_of(*"abcd"), {"patient": "x"}])
    with pytest.raises(DataError, match="row 5: cat/p1_a.png is of patient a and b"):
        by_column(tmp_path, [*rows_of(*"abcd"), {"file_name": PATHS[0], "patient": "b"}])
