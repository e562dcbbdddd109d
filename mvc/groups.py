"""Which images belong together, such as those of one patient: by a pattern in their paths, or a column of metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from mvc.errors import ConfigError, DataError
from mvc.layout import FoundImage
from mvc.storage import read_json_lines
from mvc.walk import counted, listing

METADATA = "metadata.jsonl"
SHOWN = 5
"""Images named in a message about images without a group."""


def find_groups(
    root: Path, images: Sequence[FoundImage], pattern: str | None, column: str | None
) -> dict[str, str] | None:
    """Find the group of every image.

    Args:
        root: the data folder.
        images: all images of it.
        pattern: data.group_pattern, searched in each path relative to the data folder, such as
            "cat/p07_1.png"; what its one capturing group matches is the name of the image's group.
        column: data.group_column, of metadata.jsonl in the data folder and in its split folders.

    Returns:
        group by path; None where neither is given. The same name in two classes is the same group.

    Raises:
        ConfigError: both are given, or the pattern is no regular expression with one capturing group.
        DataError: images have no group, or metadata.jsonl cannot be used.
    """
    if pattern is not None and column is not None:
        raise ConfigError("both data.group_pattern and data.group_column are given", do="keep one of them")
    if pattern is not None:
        return _by_pattern(_compiled(pattern), images)
    return _by_column(root, images, column) if column is not None else None


def _compiled(pattern: str) -> re.Pattern[str]:
    example = "write one such as 'patient-([0-9]+)'"
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError) as error:
        raise ConfigError(
            f"data.group_pattern: {pattern!r} is no regular expression", why=str(error), do=example
        ) from error
    if compiled.groups != 1:
        raise ConfigError(
            f"data.group_pattern: {pattern!r} has {counted(compiled.groups, 'capturing group')}, not one",
            why="what the one pair of round brackets matches is the name of an image's group",
            do=f"{example}; brackets that only hold together are (?:...)",
        )
    return compiled


def _by_pattern(pattern: re.Pattern[str], images: Sequence[FoundImage]) -> dict[str, str]:
    found = {image.path: match[1] for image in images if (match := pattern.search(image.path)) and match[1]}
    _require_all(
        images,
        found,
        f"data.group_pattern: {pattern.pattern!r} finds no group",
        "correct the pattern; it is searched in paths such as those above, and must match some text in its brackets",
    )
    return found


def _require_all(images: Sequence[FoundImage], found: Mapping[str, str], what: str, advice: str) -> None:
    missing = [image.path for image in images if image.path not in found]
    if missing:
        more = f"\n  and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        raise DataError(
            f"{what} for {len(missing)} of {len(images)} images: {listing(missing[:SHOWN])}{more}",
            why="an image without a group could lie in another split than its like",
            do=advice,
        )


def _by_column(root: Path, images: Sequence[FoundImage], column: str) -> dict[str, str]:
    folders = ["", *sorted({image.path.split("/")[0] for image in images if image.split})]
    files = [path for folder in folders if (path := root / folder / METADATA).is_file()]
    if not files:
        raise DataError(
            f"data.group_column={column}, and there is no {METADATA} in {root}",
            do=f"write one with {_example(column)}, or use data.group_pattern",
        )
    found: dict[str, str] = {}
    columns: set[str] = set()
    for path in files:
        for number, row in enumerate(read_json_lines(path), 1):
            columns.update(row)
            _note_row(path, number, row, column, path.parent.relative_to(root), found)
    if column not in columns:
        named = ", ".join(sorted(columns - {"file_name"})) or "none besides file_name"
        raise DataError(
            f"data.group_column={column} is no column of {', '.join(map(str, files))}", do=f"there are: {named}"
        )
    _require_all(
        images,
        found,
        f"{METADATA} has no {column}",
        f"give each image a row with file_name and {column}, as text or a whole number",
    )
    return found


def _note_row(path: Path, number: int, row: dict[str, Any], column: str, folder: Path, found: dict[str, str]) -> None:
    name, value = row.get("file_name"), _text(row.get(column))
    if not isinstance(name, str):
        raise DataError(f"{path}, row {number} has no file_name", do=f"write {_example(column)}")
    if value:
        image = (PurePosixPath(folder.as_posix()) / name.replace("\\", "/")).as_posix()
        if found.setdefault(image, value) != value:
            raise DataError(f"{path}, row {number}: {image} is of {column} {found[image]} and {value}", do="keep one")


def _example(column: str) -> str:
    return 'rows like {"file_name": "cat/1.png", "' + column + '": "p07"}'


def _text(value: Any) -> str:
    """A group's name; empty for what names none. A column with gaps often comes as 7.0 for 7."""
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    return str(value).strip() if isinstance(value, str | int) and not isinstance(value, bool) else ""
