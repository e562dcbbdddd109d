"""The splits of a folder of labelled texts: one table each, read whole, and texts that stand in two of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mvc.errors import DataError
from mvc.storage import sha256_json
from mvc.tables import SUFFIXES, form_of, read_rows, require_columns, text_of
from mvc.walk import counted, printable

from .text_data import Texts

NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}
"""Names of files, without suffix and in any case, that are taken for a split."""


@dataclass(frozen=True)
class TextSplits:
    """A data set of labelled texts.

    Attributes:
        train, validation, test: the splits; validation may be empty. Test texts that are also training or validation
            texts are left out.
        classes: names of the classes, sorted; labels count along them.
        leaks: how many test texts were left out.
    """

    train: Texts
    validation: Texts
    test: Texts
    classes: list[str]
    leaks: int

    @property
    def digest(self) -> str:
        """sha256 over all texts and labels."""
        return sha256_json([[one.texts, one.labels] for one in (self.train, self.validation, self.test)])


def read_splits(folder: Path, text_columns: Sequence[str], label_column: str) -> TextSplits:
    """Read the tables of a folder.

    Args:
        folder: with train, validation (or dev) and test as .csv, .tsv or .jsonl; without a validation file the last
            weights of a fit are used.
        text_columns: one column, or two that are classified together.
        label_column: of the class; numbers and words alike.

    Raises:
        DataError: there is no such folder, train or test is missing or there twice, a column is missing, a row has an
            empty text or no label, a class of validation or test is not in training, or there is one class.
    """
    if not folder.is_dir():
        raise DataError(f"data.path {folder} is not a folder", do="give a folder with train.csv, test.csv and so on")
    rows = {split: _read(folder, split, text_columns, label_column) for split in NAMES}
    classes = sorted({label for _, label in rows["train"]})
    if len(classes) < 2:
        raise DataError(
            f"the training texts in {folder} have one class, {printable(classes[0]) if classes else 'or none'}",
            do=f"see that {label_column} is the column of the class",
        )
    for split, own in rows.items():
        strange = sorted({label for _, label in own} - set(classes))
        if strange:
            raise DataError(
                f"{split} has the class {printable(strange[0])}, which no training text has",
                do="correct it, or add training texts of it",
            )
    known = {text for split in ("train", "validation") for text, _ in rows[split]}
    kept = [(number, row) for number, row in enumerate(rows["test"]) if row[0] not in known]
    if not kept:
        raise DataError(f"every test text in {folder} is also a training or validation text", do="give other ones")
    return TextSplits(
        _texts(list(enumerate(rows["train"])), classes),
        _texts(list(enumerate(rows["validation"])), classes),
        _texts(kept, classes),
        classes,
        len(rows["test"]) - len(kept),
    )


_Labelled = tuple[tuple[str, ...], str]


def _texts(rows: Sequence[tuple[int, _Labelled]], classes: Sequence[str]) -> Texts:
    number = {name: label for label, name in enumerate(classes)}
    return Texts([own for _, (own, _) in rows], [number[label] for _, (_, label) in rows], [place for place, _ in rows])


def _read(folder: Path, split: str, text_columns: Sequence[str], label_column: str) -> list[_Labelled]:
    names = NAMES[split]
    found = sorted(path for path in folder.iterdir() if path.stem.lower() in names and path.suffix.lower() in SUFFIXES)
    if len(found) > 1:
        raise DataError(
            f"{folder} has several files of {split}: {', '.join(path.name for path in found)}", do="keep one"
        )
    if not found and split != "validation":
        raise DataError(
            f"{folder} has no file of {split}", do=f"add {names[0]}.csv, {names[0]}.tsv or {names[0]}.jsonl"
        )
    return list(_rows(found[0], text_columns, label_column)) if found else []


def _rows(path: Path, text_columns: Sequence[str], label_column: str) -> Iterator[_Labelled]:
    rows, count = read_rows(path, form_of(path, None)), 0
    if rows.columns is not None:
        require_columns(rows.columns, [*text_columns, label_column])
    for row in rows:
        count += 1
        try:
            texts = tuple(text_of(row, column) for column in text_columns)
        except DataError as error:
            raise DataError(f"{path}, {error.what}", error.why, error.do) from error
        label = row.values.get(label_column)
        if not all(text.strip() for text in texts):
            raise DataError(f"{path}, line {row.line}: a text is empty", do="write it, or remove the row")
        if label is None or isinstance(label, bool | list | dict) or not str(label).strip():
            raise DataError(f"{path}, line {row.line}: there is no class in {label_column}", do="write it")
        yield texts, str(label).strip()
    if not count:
        raise DataError(f"{path} has no rows", do="add texts")


def described(splits: TextSplits) -> str:
    """The data set in words."""
    counts = [f"{counted(len(one), 'text')} to {what}" for one, what in _purposes(splits)]
    leaks = f"; {counted(splits.leaks, 'test text')} left out, because training has it too" if splits.leaks else ""
    return f"{len(splits.classes)} classes, {', '.join(counts)}{leaks}"


def _purposes(splits: TextSplits) -> list[tuple[Texts, str]]:
    return [(splits.train, "train with"), (splits.validation, "validate with"), (splits.test, "test with")]
