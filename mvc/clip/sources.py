"""Which form a data set of captioned images has, and which of its files or rows belong to which split."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Literal, TypeVar, get_args

from mvc.errors import ConfigError, DataError
from mvc.layout import SPLIT_FOLDERS, SPLITS
from mvc.walk import counted, listing, printable

Form = Literal["imagefolder", "json", "parquet", "webdataset"]
FORMS: tuple[Form, ...] = get_args(Form)
SUFFIXES: dict[str, Form] = {".json": "json", ".parquet": "parquet", ".tar": "webdataset"}
METADATA = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_EXPECTED = f"give a folder with {' or '.join(METADATA)}, or .json, .parquet or .tar files"

_WILD = "*?[{"
_Item = TypeVar("_Item")


class MissingSplit(DataError):
    """The data are in order, and have no such split."""


@dataclass(frozen=True)
class Source:
    """A data set as it lies on the disk.

    Attributes:
        form: how it is written.
        root: the folder that paths and ids are relative to.
        files: those that name the images: metadata, lists, parquet files or shards; sorted.
    """

    form: Form
    root: Path
    files: list[Path]


def find_source(path: str | Path, form: str | None) -> Source:
    """Find the form and the files of a data set.

    Args:
        path: a folder; one .json, .parquet or .tar file; or a pattern of such files with `*`, `?`, `[0-9]`, `**`
            and braces ("train-{000..010}.tar", "{train,test}.json").
        form: one of `FORMS`, for folders that hold several; None takes what is there.

    Raises:
        ConfigError: there is no such form.
        DataError: nothing is there, files of a pattern are missing, or the form is not clear.
    """
    if form is not None and form not in FORMS:
        raise ConfigError(f"'{printable(form)}' is no form of captioned images", do=f"give one of {', '.join(FORMS)}")
    whole = Path(path)
    if whole.is_dir():
        return _of_folder(whole, form)
    if whole.is_file():
        return _of_files(whole.parent, [whole], form)
    if not any(letter in str(path) for letter in _WILD):
        raise DataError(f"{printable(str(path))} does not exist", do="check the path")
    # The folder before the first part that varies.
    varies = next(at for at, part in enumerate(whole.parts) if any(letter in part for letter in _WILD))
    root = Path(*whole.parts[:varies])
    return _of_files(root, _matches(str(path)), form)


def _matches(pattern: str) -> list[Path]:
    found: set[Path] = set()
    for one in expand_braces(pattern):
        there = [Path(name) for name in glob.glob(one, recursive=True)]
        if not there:
            raise DataError(f"no file is called {printable(one)}", do="check the pattern, or fetch the missing files")
        found.update(file for file in there if file.is_file())
    return sorted(found)


def expand_braces(pattern: str) -> list[str]:
    """The texts that a pattern with braces stands for, as a shell makes them.

    Braces hold alternatives ("{a,b}") or a range of numbers ("{000..010}", of equal widths where one begins with 0).
    They don't nest; others stay as they are.
    """
    parts = re.split(r"\{([^{}]*)\}", pattern)
    choices = [[text] if at % 2 == 0 else _alternatives(text) for at, text in enumerate(parts)]
    return ["".join(one) for one in product(*choices)]


def _alternatives(text: str) -> list[str]:
    numbers = re.fullmatch(r"(\d+)\.\.(\d+)", text)
    if numbers:
        first, last = numbers.groups()
        padded = any(len(end) > 1 and end.startswith("0") for end in (first, last))
        width = max(len(first), len(last)) if padded else 0
        step = 1 if int(first) <= int(last) else -1
        return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    return text.split(",") if "," in text else [f"{{{text}}}"]


def _of_files(root: Path, files: list[Path], form: str | None) -> Source:
    forms = {SUFFIXES.get(file.suffix.lower()) for file in files}
    known = forms.pop() if len(forms) == 1 else None
    if known is None:
        names = [file.name for file in files[:5]]
        why = "an archive must not be compressed, or no image could be found in it without unpacking all before"
        raise DataError(
            f"{listing(names)} cannot be read as captioned images",
            why=why if any(re.search(r"\.(tgz|tar\.\w+)$", name) for name in names) else "the form is not known",
            do=_EXPECTED,
        )
    if form is not None and form != known:
        raise DataError(f"{printable(files[0].name)} is {known}, and {form} was asked for", do="correct one of them")
    return Source(known, root, files)


def _of_folder(root: Path, form: str | None) -> Source:
    inside, folders = _listed(root)
    below = [file for folder in folders for file in _listed(folder)[0]]
    by_form: dict[Form, list[Path]] = {"imagefolder": [file for file in [*inside, *below] if file.name in METADATA]}
    for suffix, own in SUFFIXES.items():
        # Lists lie beside the folders of their images; what is called .json among images is something else.
        places = inside if own == "json" else [*inside, *below]
        by_form[own] = [file for file in places if file.suffix.lower() == suffix and file.name not in METADATA]
    there = [own for own in FORMS if by_form[own] and form in (None, own)]
    if not there:
        what = "captioned images" if form is None else f"captioned images as {form}"
        raise DataError(f"{printable(str(root))} holds no {what}", do=_EXPECTED)
    # Metadata files have a name of their own, which nothing else bears.
    if len(there) > 1 and there[0] != "imagefolder":
        counts = ", ".join(f"{own} ({counted(len(by_form[own]), 'file')})" for own in there)
        raise DataError(f"{printable(str(root))} holds several forms: {counts}", do="say which one is meant")
    return Source(there[0], root, sorted(by_form[there[0]]))


def _listed(folder: Path) -> tuple[list[Path], list[Path]]:
    """The files that can name images, and the folders, of a folder that may hold many images besides."""
    files, folders = list[Path](), list[Path]()
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.name in METADATA or os.path.splitext(entry.name)[1].lower() in SUFFIXES:
                    if entry.is_file():
                        files.append(folder / entry.name)
                elif entry.is_dir():
                    folders.append(folder / entry.name)
    except OSError as error:
        what = f"{printable(str(folder))} cannot be listed"
        raise DataError(what, why=error.strerror or str(error), do="check its permissions") from error
    return sorted(files), sorted(folders)


def split_of(split: str) -> str:
    """The split that a word stands for: "val" is "validation" (see `mvc.layout.SPLIT_FOLDERS`).

    Raises:
        ConfigError: none.
    """
    if split.casefold() not in SPLIT_FOLDERS:
        raise ConfigError(f"'{printable(split)}' is no split", do=f"give one of {', '.join(SPLITS)}")
    return SPLIT_FOLDERS[split.casefold()]


def folder_word(folders: Iterable[str]) -> str | None:
    """The first of some folder names, from the outermost on, that names a split; None if none does."""
    return next((name for name in folders if name.casefold() in SPLIT_FOLDERS), None)


def file_word(file: Path, root: Path) -> str | None:
    """The word that tells the split of a file: a folder between it and `root`, else a word of its name.

    Raises:
        DataError: its name has words of two splits.
    """
    *folders, _ = file.relative_to(root).parts
    words = [word for word in re.split(r"[^a-z0-9]+", file.stem.casefold()) if word in SPLIT_FOLDERS]
    if len({SPLIT_FOLDERS[word] for word in words}) > 1 and folder_word(folders) is None:
        raise DataError(
            f"the name of {printable(str(file))} has words of several splits: {', '.join(words)}",
            do=f"keep one of {', '.join(SPLITS)} in it",
        )
    return folder_word(folders) or next(iter(words), None)


def files_of(source: Source, split: str) -> Sequence[Path]:
    """The files of a split, sorted; for forms whose files hold one split each.

    Raises:
        DataError: as `choose` does.
    """
    found: dict[str | None, list[Path]] = {}
    for file in source.files:
        found.setdefault(file_word(file, source.root), []).append(file)
    return choose(found, split, source.root, lambda file: printable(str(file)))


def choose(
    found: Mapping[str | None, Sequence[_Item]], split: str, where: Path, name: Callable[[_Item], str]
) -> Sequence[_Item]:
    """What belongs to a split; where no name tells a split, all is training data.

    Args:
        found: files or rows by the word that tells their split; None of those that no word does.
        split: train, validation or test.
        where: the data set, for errors.
        name: what errors call a file or row.

    Raises:
        MissingSplit: there is no such split; lists those there are.
        DataError: it is there under two names, or only some files or rows belong to a split.
    """
    if not any(found.values()):
        raise DataError(f"{printable(str(where))} names no images", do=_EXPECTED)
    words = {word: SPLIT_FOLDERS[word.casefold()] for word in sorted(word for word in found if word is not None)}
    if words and found.get(None):
        raise DataError(
            f"{name(found[None][0])} belongs to no split, and others do: {', '.join(words)}",
            do="put it into a folder of its split, or name it so",
        )
    if not words and split == "train" and found.get(None):
        return found[None]
    own = [word for word, meant in words.items() if meant == split]
    if len(own) > 1:
        raise DataError(f"{printable(str(where))} has several splits of {split}: {', '.join(own)}", do="keep one")
    if not own:
        there = ", ".join(sorted(set(words.values()), key=SPLITS.index)) if words else "train"
        why = "" if words else "; no folder or file is named after a split, so all counts as train"
        raise MissingSplit(
            f"{printable(str(where))} has no split {split}",
            why=f"there is: {there}{why}",
            do="add it; a validation part can be cut off from train" if split == "validation" else "add it",
        )
    return found[own[0]]
