"""Which classes are taken for which others: by the arm chosen on validation, and by what it is compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvc.arms import parse_arm
from mvc.storage import read_json

from .classifiers import Comparison
from .sections import percent, reading

MOST_CLASSES = 20
"""Of more classes the most confused pairs are shown, and no matrix."""
MOST_PAIRS = 12
DEEP = 0.55
"""Share from which the text of a cell has the colour of the page."""

Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One cell of a matrix: its text in whole per cent, and the strength of its colour in [0, 1]."""

    text: str
    share: float
    deep: bool


@dataclass(frozen=True)
class Matrix:
    """Shares of the images of each true class (rows) that are taken for each class (columns)."""

    arm: str
    rows: list[list[Cell]]


@dataclass(frozen=True)
class Confusions:
    """What is confused with what, means over the classifiers of an arm.

    Attributes:
        classes: in words, in the order of the labels.
        matrices: of the reference and of the chosen arm; empty with too many classes.
        arms: the names of both.
        pairs: (true class, taken for, per cent by each arm), the most frequent first; empty with few classes.
    """

    classes: list[str]
    matrices: list[Matrix]
    arms: list[str]
    pairs: list[tuple[str, str, list[str]]]


def read_confusions(folders: Sequence[Path], comparison: Comparison, words: Mapping[str, str]) -> Confusions | None:
    """The confusion matrices of the chosen arm and its reference.

    Args:
        folders: of results, one a run; several are added up.
        comparison: says which arms, and which of the result files are of this comparison.
        words: class folder -> words, in the order of the labels.

    Returns:
        None where the files do not tell, as those of older runs.

    Raises:
        DataError: a file is damaged.
    """
    arms = {arm.name: arm.values for arm in comparison.arms}
    wanted = [name for name in (comparison.reference, comparison.best) if name in arms]
    if len(wanted) < 2:
        return None
    matrices = [_counts(folders, name, arms[name], set(words)) for name in wanted]
    if not all(len(counts) for counts in matrices):
        return None
    classes = list(words.values())
    if len(classes) <= MOST_CLASSES:
        shown = [_matrix(name, counts) for name, counts in zip(wanted, matrices, strict=True)]
        return Confusions(classes, shown, wanted, [])
    return Confusions(classes, [], wanted, _pairs(classes, matrices))


def _counts(folders: Sequence[Path], arm: str, values: Sequence[float], classes: set[str]) -> Counts:
    """(C, C) test images over all classifiers of an arm; (0, 0) where the files do not tell."""
    # Files of seeds that are no longer compared may lie beside the others.
    left = Counter(f"{value:.6f}" for value in values)
    total: Counts = np.zeros((0, 0))
    for path in (path for folder in folders for path in sorted(folder.glob(f"{parse_arm(arm).file_stem}-seed*.json"))):
        row = read_json(path)
        with reading(path):
            # JSON sorts the names, while the matrix has the order of the labels.
            if "test" not in row or set(row["test"]["per_class"]) != classes:
                continue
            accuracy = f"{row['test']['accuracy']:.6f}"
            if left[accuracy]:
                left[accuracy] -= 1
                own = np.array(row["test"]["confusion"], dtype=np.float64)
                if own.shape != (len(classes), len(classes)):
                    raise ValueError(f"a confusion matrix of {own.shape} for {len(classes)} classes")
                total = own + total if len(total) else own
    return total


def _shares(counts: Counts) -> Counts:
    """Rows that add up to 1; 0 for classes without an image."""
    shares: Counts = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return shares


def _matrix(arm: str, counts: Counts) -> Matrix:
    return Matrix(arm, [[_cell(float(share)) for share in row] for row in _shares(counts)])


def _cell(share: float) -> Cell:
    text = "" if share == 0 else f"{100 * share:.0f}" if share > 0.005 else "<1"
    return Cell(text, round(share, 3), share >= DEEP)


def _pairs(classes: Sequence[str], matrices: Sequence[Counts]) -> list[tuple[str, str, list[str]]]:
    wrong = np.add.reduce(list(matrices))
    np.fill_diagonal(wrong, 0)
    shares = [_shares(counts) for counts in matrices]
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_PAIRS]
    places = [divmod(int(place), len(classes)) for place in order]
    return [
        (classes[true], classes[taken], [percent(float(own[true, taken])) for own in shares])
        for true, taken in places
        if wrong[true, taken]
    ]
