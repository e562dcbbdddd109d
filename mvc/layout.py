"""Which class and split each image of a folder belongs to, read from the folder names."""

from __future__ import annotations

import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from mvc.errors import DataError
from mvc.walk import Tree, counted, listing, printable, walk

SPLITS = ("train", "validation", "test")
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "val": "validation",
    "valid": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
"""Folder names that are taken for a split, in any case."""
LAYOUT = "FOLDER/<class>/<image>, or FOLDER/train/<class>/<image> with validation/ and test/ beside train/"


@dataclass(frozen=True)
class FoundImage:
    """One image file: path relative to the data folder, class folder, and split where the folders say it."""

    path: str
    class_name: str
    split: str | None


@dataclass(frozen=True)
class Layout:
    """A data folder as its folder names explain it.

    Attributes:
        root: the data folder.
        classes: names of the class folders, sorted; of all splits together.
        images: sorted by path.
        given: splits that the folder has.
        others: counts of ignored files by suffix.
        warnings: what was left aside, in words.
    """

    root: Path
    classes: list[str]
    images: list[FoundImage]
    given: frozenset[str]
    others: Counter[str]
    warnings: list[str]


def find_layout(root: Path) -> Layout:
    """Find splits, classes and images of a data folder.

    A top folder is a split if it is called so (any case, see SPLIT_FOLDERS) and has folders in it: a class
    may be called "train" too. Below a class folder, images are found at any depth.

    Raises:
        DataError: not a folder, no class folders, one class only, or unclear which folders are splits.
    """
    _require_folder(root)
    tree = walk(root)
    roles = _split_roles(root, tree)
    depth = 1 if roles else 0
    images, stray, aside = list[FoundImage](), list[str](), list[str]()
    for path in tree.images:
        parts = path.split("/")
        if roles and len(parts) > 1 and parts[0] not in roles:
            aside.append(parts[0])
        elif len(parts) < depth + 2:
            stray.append(path)
        else:
            images.append(FoundImage(path, parts[depth], roles[parts[0]] if roles else None))
    classes = {
        parts[depth]
        for parts in (folder.split("/") for folder in tree.folders)
        if len(parts) > depth and (not roles or parts[0] in roles)
    }
    _require_classes(root, classes, images, stray, tree)
    warnings = _left_aside(stray, aside, tree)
    return Layout(root, sorted(classes), images, frozenset(roles.values()), tree.others, warnings)


def _left_aside(stray: list[str], aside: list[str], tree: Tree) -> list[str]:
    warnings = []
    if stray:
        warnings.append(f"{counted(len(stray), 'image')} outside the class folders, ignored: {printable(stray[0])}")
    for name, count in sorted(Counter(aside).items()):
        warnings.append(f"{printable(name)}/ lies beside the split folders, ignored: {counted(count, 'image')}")
    if tree.outside:
        example = printable(tree.outside[0])
        warnings.append(f"{counted(len(tree.outside), 'link')} out of the folder, not followed: {example}")
    return warnings


def _require_folder(root: Path) -> None:
    if root.is_file():
        raise DataError(
            f"data.path names a file: {root}",
            why="lists of images (CSV, JSONL, parquet) and archives are not read",
            do=f"give a folder: {LAYOUT}",
        )
    if not root.is_dir():
        raise DataError(
            f"the data folder {root} does not exist",
            why="data.path is looked up on this machine; data set ids of a hub are not downloaded",
            do="correct data.path",
        )


def _split_roles(root: Path, tree: Tree) -> dict[str, str]:
    """Top folders that are splits, with their split; empty if the top folders are the classes."""
    top = [folder for folder in tree.folders if "/" not in folder]
    parents = {folder.split("/")[0] for folder in tree.folders if "/" in folder}
    roles = {
        name: SPLIT_FOLDERS[name.casefold()] for name in top if name in parents and name.casefold() in SPLIT_FOLDERS
    }
    with_images = {path.split("/")[0] for path in tree.images if "/" in path}
    besides = sorted(with_images - set(roles))
    if not roles or (besides and "train" not in roles.values()):
        return {}
    for role in SPLITS:
        names = sorted(name for name in roles if roles[name] == role)
        if len(names) > 1:
            raise DataError(
                f"{root} has several {role} folders: {', '.join(names)}", do="keep one of them, or join them"
            )
    if "train" not in roles.values():
        raise DataError(
            f"{root} has {', '.join(sorted(roles))} but no train folder",
            why="nothing to learn from",
            do=f"expected {LAYOUT}",
        )
    if besides and len(roles) == 1:
        raise DataError(
            f"{root} has a train folder with class folders in it, and other folders with images: {', '.join(besides)}",
            why="either all top folders are classes, or train, validation and test are",
            do=f"expected {LAYOUT}",
        )
    return roles


def _require_classes(root: Path, classes: set[str], images: list[FoundImage], stray: list[str], tree: Tree) -> None:
    if not images:
        why = "no image files were found"
        if stray:
            why = f"images lie outside class folders, and no folder says their class: {listing(stray)}"
        elif tree.outside:
            why = f"links that lead out of the folder are not followed: {listing(tree.outside)}"
        raise DataError(f"no class folders with images in {root}", why=why, do=f"expected {LAYOUT}")
    if len(classes) == 1:
        only = next(iter(classes))
        raise DataError(
            f"only one class folder in {root}: {printable(only)}",
            why="a classifier needs two or more classes",
            do=f"expected {LAYOUT}; if {printable(only)}/ holds the classes, give that folder",
        )


def class_problems(layout: Layout, usable: Collection[str]) -> list[DataError]:
    """Everything about the classes that has to be put right first; each error lists all its offenders.

    Args:
        layout: the data folder.
        usable: paths of the images that can be decoded.
    """
    problems = []
    unreadable = [name for name in layout.classes if not _is_text(name)]
    if unreadable:
        problems.append(DataError(f"class folders whose names are not UTF-8: {listing(unreadable)}", do="rename them"))
    twins = defaultdict(list)
    for name in layout.classes:
        twins[unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())].append(name)
    doubles = [" = ".join(names) for names in twins.values() if len(names) > 1]
    if doubles:
        problems.append(
            DataError(
                f"class folders that differ only in case or Unicode form: {listing(doubles)}",
                why="they would be two classes here and one on other systems",
                do="join them or give them different names",
            )
        )
    wanted = "train" if layout.given else None
    in_train = {image.class_name for image in layout.images if image.split == wanted and image.path in usable}
    elsewhere = {image.class_name for image in layout.images if image.split != wanted}
    only_elsewhere = sorted(elsewhere - in_train)
    if only_elsewhere:
        problems.append(
            DataError(
                f"classes in validation or test without training images: {listing(only_elsewhere)}",
                why="nothing can be learnt about them",
                do="add training images, or remove these class folders",
            )
        )
    empty = sorted(set(layout.classes) - in_train - elsewhere)
    if empty:
        problems.append(
            DataError(
                f"class folders without training images: {listing(empty)}",
                why="no usable image file was found in them",
                do="add images, or remove these folders",
            )
        )
    return problems


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
