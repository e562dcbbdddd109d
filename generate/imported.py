"""The source import: a folder of class folders that another tool filled becomes candidates like ours."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvc.errors import DataError
from mvc.images import decode, to_uint8
from mvc.walk import listing, printable, walk


@dataclass(frozen=True)
class ImportedFiles:
    """Images of another tool.

    Attributes:
        folder: where they lie.
        files: paths below it by class folder of the run, sorted.
    """

    folder: Path
    files: dict[str, list[str]]


def find_imported(folder: Path, classes: Sequence[str], words: Mapping[str, str]) -> ImportedFiles:
    """Find the images of each class: folders called like the run's class folders, or like their words.

    Files are never changed. Images below a class folder are found at any depth. Names count as equal in any Unicode
    form, as other systems write them in another one.

    Args:
        folder: of class folders; a folder `train` with class folders in it is looked into.
        classes: class folders of the run.
        words: by class folder.

    Raises:
        DataError: there is no such folder, it has a folder that is no class, no image of any class, or a name that
            is no text.
    """
    if not folder.is_dir():
        raise DataError(f"generate.import_path {folder} is not a folder", do="give a folder of class folders")
    if (folder / "train").is_dir() and "train" not in classes:
        folder = folder / "train"
    by_name = {_key(words[name]): name for name in classes if name in words} | {_key(name): name for name in classes}
    found: dict[str, list[str]] = {name: [] for name in classes}
    unknown = set[str]()
    images = walk(folder).images
    _require_text(folder, images)
    for path in images:
        first, _, rest = path.partition("/")
        if not rest:
            continue
        if _key(first) in by_name:
            found[by_name[_key(first)]].append(path)
        else:
            unknown.add(first)
    if unknown:
        raise DataError(
            f"{folder} has folders that are no class: {listing([printable(name) for name in sorted(unknown)])}",
            why=f"the classes are {listing([printable(name) for name in classes])}",
            do="rename or remove them",
        )
    if not any(found.values()):
        raise DataError(f"{folder} holds no image of any class", do="give a folder of class folders with images")
    return ImportedFiles(folder, {name: sorted(paths) for name, paths in found.items()})


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _require_text(folder: Path, images: Sequence[str]) -> None:
    # They are written down in the rows, which are UTF-8.
    broken = [path for path in images if not _is_text(path)]
    if broken:
        raise DataError(f"{folder} has names that are not UTF-8: {listing(broken)}", do="rename them")


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def read_imported(imported: ImportedFiles, file: str, size: int, background: str) -> NDArray[np.uint8]:
    """One image as (size, size, 3) uint8, by the same rules as real ones.

    Raises:
        DataError: it cannot be decoded.
    """
    return to_uint8(decode(imported.folder / file, background), size)
