"""The data set as the data stage froze it in a run: records, classes and their words."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from mvc.errors import DataError
from mvc.storage import read_json, read_json_lines

INDEX, CLASSES = "data/index.jsonl", "data/classes.json"


@dataclass(frozen=True)
class ImageRecord:
    """One image of the data set.

    Attributes:
        id: names the image in captions and in the provenance of synthetic images; its path in the data folder.
        path: relative to the data folder, POSIX.
        class_name: name of the class folder.
        label: index of the class in `Dataset.classes`.
        split: "train", "validation" or "test".
        sha256: of the file's bytes.
        width, height: in pixels, upright.
        mode: Pillow's mode of the file as stored.
        group: the images it must not be parted from, where groups are used.
    """

    id: str
    path: str
    class_name: str
    label: int
    split: str
    sha256: str
    width: int
    height: int
    mode: str
    group: str | None = None


@dataclass(frozen=True)
class Dataset:
    """The images a run uses.

    Attributes:
        root: the data folder.
        classes: folder names, sorted; the index is the label.
        words: the words for each class in captions, in the order of `classes`.
        records: sorted by id.
    """

    root: Path
    classes: list[str]
    words: list[str]
    records: list[ImageRecord]

    def split(self, name: str) -> list[ImageRecord]:
        """The records of one split, sorted by id."""
        return [record for record in self.records if record.split == name]

    def image_path(self, record: ImageRecord) -> Path:
        """Where the image file lies."""
        return self.root / record.path


def load_index(run: Path) -> Dataset:
    """Read what the data stage froze; images that few-shot subsets leave out are not among the records.

    Raises:
        DataError: the files are missing or do not fit together; names file and value.
    """
    content = read_json(run / CLASSES)
    try:
        root = run / str(content["root"])  # an absolute root replaces `run`
        classes = [str(row["folder"]) for row in content["classes"]]
        words = [str(row["words"]) for row in content["classes"]]
        labels = [int(row["label"]) for row in content["classes"]]
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(run / CLASSES, f"{type(error).__name__}: {error}") from error
    if labels != list(range(len(classes))) or classes != sorted(set(classes)):
        raise _broken(run / CLASSES, "classes are not sorted by folder name and numbered from 0")
    rows = read_json_lines(run / INDEX)
    records = [_record(run / INDEX, number, row, classes) for number, row in enumerate(rows, 1) if row.get("used")]
    return Dataset(root, classes, words, sorted(records, key=lambda record: record.id))


def _record(index: Path, number: int, row: dict[str, Any], classes: list[str]) -> ImageRecord:
    try:
        # Indices of runs before there were groups have no such key.
        names = [field.name for field in fields(ImageRecord) if field.name in row or field.default is MISSING]
        record = ImageRecord(**{name: row[name] for name in names})
        path = PurePosixPath(record.path)
        if path.is_absolute() or ".." in path.parts or "\0" in record.path:
            raise ValueError(f"path {record.path!a} leads out of the data folder")
        if classes[record.label] != record.class_name or record.label < 0:
            raise ValueError(f"label {record.label} is not the class {record.class_name!a}")
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _broken(index, f"line {number}: {type(error).__name__}: {error}") from error
    return record


def _broken(path: Path, reason: str) -> DataError:
    return DataError(f"{path} cannot be used", why=reason, do="run the data stage again with --redo")
