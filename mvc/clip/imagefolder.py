"""Captioned images as Hugging Face's imagefolder has them: files, and metadata beside them with the captions of each.

A metadata file (metadata.jsonl, .csv or .parquet) lies in the data folder or in a folder of it, such as that of a
split. Its rows have `file_name`, relative to the metadata file's folder, and captions; several rows of one file are
several captions of it. Images without a row are left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mvc.errors import DataError
from mvc.tables import form_of, read_rows
from mvc.walk import printable

from .captioned import KEYS, Captioned, captions_of, inner_path
from .parquet import read_columns
from .places import image_file
from .sources import Source, choose, folder_word

_NAME = "file_name"


class _Named(NamedTuple):
    """A row: the image's path relative to the data folder, its metadata file, where errors point, and all values."""

    image: str
    metadata: Path
    where: str
    values: dict[str, Any]


def read_imagefolder(source: Source, split: str) -> dict[str, Captioned]:
    """Read the images of a split.

    The split is the first folder of an image's path, from the data folder on, that is called like one.

    Args:
        source: data folder and metadata files.
        split: train, validation or test.

    Returns:
        image and captions by path relative to the data folder, in the order of the rows.

    Raises:
        DataError: a row cannot be used, an image is missing, two metadata files name one image, or the split is
            missing; names file and line.
    """
    found: dict[str | None, list[_Named]] = {}
    for path in source.files:
        _require_one(path, source.files)
        for row in _rows(path, source.root):
            found.setdefault(folder_word(row.image.split("/")[:-1]), []).append(row)
    images: dict[str, Captioned] = {}
    root = os.fspath(source.root)
    owner: dict[str, Path] = {}
    for row in choose(found, split, source.root, lambda row: row.where):
        if owner.setdefault(row.image, row.metadata) != row.metadata:
            raise DataError(
                f"{row.where}: {printable(row.image)} is also in {printable(str(owner[row.image]))}",
                do="keep its captions in one metadata file",
            )
        captions = captions_of(row.values, row.where)
        if row.image in images:
            images[row.image].captions.extend(captions)
        else:
            images[row.image] = Captioned(image_file(os.path.join(root, row.image), row.where), captions)
    return images


def _require_one(path: Path, files: list[Path]) -> None:
    beside = [file.name for file in files if file.parent == path.parent]
    if len(beside) > 1:
        raise DataError(f"{printable(str(path.parent))} has several metadata files: {', '.join(beside)}", do="keep one")


def _rows(path: Path, root: Path) -> Iterator[_Named]:
    folder = "" if path.parent == root else f"{path.parent.relative_to(root).as_posix()}/"
    for where, values in _values(path):
        name = inner_path(values.get(_NAME), _NAME, where)
        yield _Named(folder + name, path, where, values)


def _values(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    name = printable(str(path))
    if path.suffix == ".parquet":
        for row, values in enumerate(read_columns(path, (_NAME, *KEYS))):
            yield f"{name}, row {row} (from 0)", values
    else:
        for line in read_rows(path, form_of(path, None)):
            yield f"{name}, line {line.line}", line.values
