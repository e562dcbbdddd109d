"""Labelled texts in memory, and the few of each class that data-scarce experiments train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mvc.errors import DataError
from mvc.randomness import numpy_generator


@dataclass(frozen=True)
class Texts:
    """Labelled texts, or pairs of texts that are classified together.

    Args:
        texts: one or two texts a row, the same number in all rows.
        labels: class of each row, counted from 0.
        ids: number of each row in the file that it came from.

    Raises:
        ValueError: the three lists have different lengths, or rows different numbers of texts.
    """

    texts: list[tuple[str, ...]]
    labels: list[int]
    ids: list[int]

    def __post_init__(self) -> None:
        if not len(self.texts) == len(self.labels) == len(self.ids):
            raise ValueError(f"{len(self.texts)} texts, {len(self.labels)} labels and {len(self.ids)} ids")
        if any(len(row) not in (1, 2) or len(row) != len(self.texts[0]) for row in self.texts):
            raise ValueError("rows must hold one text each, or two texts each")

    def __len__(self) -> int:
        return len(self.texts)

    def rows(self, rows: Sequence[int]) -> Texts:
        """Some of the rows, in the order given."""
        return Texts(
            [self.texts[row] for row in rows], [self.labels[row] for row in rows], [self.ids[row] for row in rows]
        )


def few_shot(texts: Texts, shots: int, seed: int, classes: Sequence[str] = ()) -> Texts:
    """Draw equally many texts of each class, as of a data set that is scarce (Back-Modality, Sec. 3.2).

    Each class is shuffled by (seed, "few texts", class) and its first ones are taken, so that a smaller subset is
    contained in every larger one of the same seed, and a class's texts don't depend on the other classes.

    Args:
        texts: all training texts.
        shots: how many of each class that is there.
        seed: data seed.
        classes: names of the classes, for the message; the others are called by their number.

    Returns:
        The subset: classes in ascending order, the texts of each in the order they were drawn.

    Raises:
        DataError: a class has fewer texts than that.
    """
    chosen: list[int] = []
    for label in sorted(set(texts.labels)):
        members = [row for row, other in enumerate(texts.labels) if other == label]
        if len(members) < shots:
            name = f"'{classes[label]}'" if label < len(classes) else str(label)
            raise DataError(
                f"class {name} has {len(members)} training texts, and data.shots is {shots}",
                do="lower data.shots, or label more texts of that class",
            )
        order = numpy_generator(seed, "few texts", label).permutation(len(members))
        chosen += [members[place] for place in order[:shots].tolist()]
    return texts.rows(chosen)
