"""The test split, sealed: a list of files until every classifier is trained and the arm is chosen.

Training code holds a `SealedTest` at most, which has no pixels. `open_test` is the only way to them; it asks for the
classifiers' keys, and writes each opening down in the run, where it stays. Opening it again with other settings is
possible, and the verdict then says how often it was done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mvc.dataset import Dataset
from mvc.errors import DataError
from mvc.storage import read_json_lines, sha256_json, write_json_lines

from .images import Images, decode_all

OPENINGS = "test_openings.jsonl"
"""In the run folder and not below results/, so that --redo does not forget."""


@dataclass(frozen=True)
class SealedTest:
    """The files of the test split.

    Attributes:
        run: the run folder.
        ids: of the images, in the order of the index.
        paths: their files.
        digests: sha256 of each.
        labels: of each.
        size: side in pixels at which they will be decoded.
        background: colour behind transparent pixels.
    """

    run: Path
    ids: tuple[str, ...]
    paths: tuple[Path, ...]
    digests: tuple[str, ...]
    labels: tuple[int, ...]
    size: int
    background: str

    @classmethod
    def of(cls, run: Path, dataset: Dataset, size: int, background: str) -> SealedTest:
        """The test split of a run's index."""
        records = dataset.split("test")
        return cls(
            run=run,
            ids=tuple(record.id for record in records),
            paths=tuple(dataset.image_path(record) for record in records),
            digests=tuple(record.sha256 for record in records),
            labels=tuple(record.label for record in records),
            size=size,
            background=background,
        )

    def __len__(self) -> int:
        return len(self.ids)


def open_test(sealed: SealedTest, keys: Mapping[str, Sequence[str]]) -> Images:
    """Decode the test split for classifiers that are trained and whose arm is chosen; the opening is written down.

    Args:
        sealed: the test split.
        keys: name of each arm to the keys of its trained classifiers.

    Raises:
        DataError: a classifier is not trained yet, or a test image is missing or has changed.
        EnvironmentFault: the opening cannot be written down.
    """
    missing = [name for name, found in keys.items() if not found]
    if missing or not keys:
        raise DataError(
            f"the test split stays closed: {', '.join(missing) or 'no arm'} has no trained classifier",
            why="it is read once, after all training and every choice",
        )
    path = sealed.run / OPENINGS
    rows = read_json_lines(path) if path.exists() else []
    digest = sha256_json({name: list(found) for name, found in keys.items()})
    if all(row.get("classifiers") != digest for row in rows):
        rows.append({"classifiers": digest, "arms": sorted(keys)})
        write_json_lines(path, rows)
    pixels = decode_all(sealed.paths, sealed.digests, sealed.size, sealed.background, "test images")
    return Images(pixels, torch.tensor(sealed.labels, dtype=torch.int64))


def openings(run: Path) -> int:
    """How often the test split of a run was opened for different classifiers."""
    path = run / OPENINGS
    return len(read_json_lines(path)) if path.exists() else 0
