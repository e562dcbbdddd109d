"""The files of a folder, links followed with care; nothing is decoded here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from mvc.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})


def printable(name: str) -> str:
    """A file name that is safe to print: control characters and bytes that are no text are escaped."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode() for letter in name
    )


def listing(items: Collection[str]) -> str:
    """All items, one a line when there are several."""
    names = [printable(item) for item in items]
    return names[0] if len(names) == 1 else "".join(f"\n  {name}" for name in names)


def counted(count: int, noun: str) -> str:
    """A count and its noun, in the plural unless it is one."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass
class Tree:
    """What a walk through a folder saw; all paths are relative to it, in POSIX form.

    Attributes:
        images: files with the name of an image.
        folders: folders that are not hidden.
        others: counts of the other files by suffix.
        outside: links that lead out of the folder and were not followed.
    """

    images: list[str] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    outside: list[str] = field(default_factory=list)


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def walk(root: Path) -> Tree:
    """List a folder; hidden names are left out, a linked folder or file is visited once and never outside `root`.

    Raises:
        DataError: a folder cannot be listed; names it.
    """
    tree, real_root = Tree(), root.resolve()
    seen = {_identity(root)}
    pending, links = [root], list[Path]()
    while pending or links:
        while pending:
            _list_folder(pending.pop(), root, tree, seen, pending, links)
        # Links wait until all real files are known, and linked files until all linked folders are: a file that
        # was seen under its own name is no second image.
        folders = [link for link in links if link.is_dir()]
        batch, links = (folders, [link for link in links if not link.is_dir()]) if folders else (links, [])
        for link in sorted(batch):
            _follow(link, root, real_root, tree, seen, pending)
    tree.images.sort()
    tree.folders.sort()
    return tree


def _follow(
    link: Path, root: Path, real_root: Path, tree: Tree, seen: set[tuple[int, int]], pending: list[Path]
) -> None:
    # realpath, since resolve() raises on links that point at each other
    if not Path(os.path.realpath(link)).is_relative_to(real_root):
        tree.outside.append(link.relative_to(root).as_posix())
    elif not link.exists():
        _note_file(link, root, tree)  # reading it will say what is wrong
    elif _identity(link) not in seen:
        seen.add(_identity(link))
        if link.is_dir():
            tree.folders.append(link.relative_to(root).as_posix())
            pending.append(link)
        elif link.is_file():
            _note_file(link, root, tree)


def _list_folder(
    folder: Path, root: Path, tree: Tree, seen: set[tuple[int, int]], pending: list[Path], links: list[Path]
) -> None:
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"{folder} cannot be listed", why=error.strerror or str(error), do="check its permissions"
        ) from error
    for entry in entries:
        path = Path(entry.path)
        # __MACOSX is what zip files made on a Mac carry along; it holds no pictures.
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if entry.is_symlink():
            links.append(path)
        elif entry.is_dir():
            if _identity(path) not in seen:
                seen.add(_identity(path))
                tree.folders.append(path.relative_to(root).as_posix())
                pending.append(path)
        elif entry.is_file():
            seen.add(_identity(path))
            _note_file(path, root, tree)


def _note_file(path: Path, root: Path, tree: Tree) -> None:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        tree.images.append(path.relative_to(root).as_posix())
    else:
        tree.others[path.suffix.lower() or path.name] += 1
