"""The texts that the source back_captioning draws from: run/back_captions.jsonl, one row a text, to edit by hand.

Each training image has up to l x m of them: l captions, m rewrites of each (Back-Modality, Sec. 2.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.captions import clean, numbered_rows
from mvc.errors import ConfigError, DataError
from mvc.modality.chain import leaf_order
from mvc.modality.nodes import Sample
from mvc.stages import BACK_CAPTIONS

KEYS = ("id", "class_name", "branch", "caption", "text", "captioner", "rewriter", "facts")


@dataclass(frozen=True)
class BackText:
    """A text to draw from.

    Attributes:
        branch: number of the caption, and of its rewrite where captions are rewritten.
        text: what is drawn, beginning with the words that name the class.
    """

    branch: list[int]
    text: str


def read_back_captions(run: Path, class_names: Mapping[str, str]) -> dict[str, list[BackText]]:
    """The texts of every training image, by its id, in the order of their branches.

    Args:
        run: the run folder.
        class_names: class folder by id of the training images.

    Raises:
        DataError: the file is missing or a row is wrong, or an image has no text; names line and id.
    """
    path = run / BACK_CAPTIONS
    found: dict[str, dict[tuple[int, ...], str]] = {name: {} for name in class_names}
    for number, row in numbered_rows(path):
        wrong = _what_is_wrong(row, found)
        if wrong:
            raise DataError(f"{path}, line {number}, id {row.get('id')!r}: {wrong[0]}", do=wrong[1])
        found[row["id"]][tuple(row["branch"])] = clean(row["text"])
    lacking = [name for name, texts in found.items() if not texts]
    if lacking:
        raise DataError(
            f"{path} has no text for {len(lacking)} of {len(found)} images, such as {lacking[0]}",
            do="add rows, or run `mvc back-caption` to make them",
        )
    return {name: [BackText(list(branch), texts[branch]) for branch in sorted(texts)] for name, texts in found.items()}


def _what_is_wrong(
    row: Mapping[str, Any], found: Mapping[str, Mapping[tuple[int, ...], str]]
) -> tuple[str, str] | None:
    """What is wrong with a row, and what to do about it."""
    unknown, missing = (
        [key for key in row if key not in KEYS],
        [key for key in ("id", "branch", "text") if key not in row],
    )
    if unknown or missing:
        what = f"unknown key {', '.join(unknown)}" if unknown else f"key {', '.join(missing)} is missing"
        return what, f"use the keys {', '.join(KEYS)}"
    branch = row["branch"]
    if not isinstance(row["id"], str) or row["id"] not in found:
        return "is no training image of this run", "remove the row, or delete the file to make it afresh"
    if not isinstance(branch, list) or not branch or not all(type(part) is int and part >= 0 for part in branch):
        return "branch is no list of numbers", "write the number of the caption and that of its rewrite, as [0, 1]"
    if tuple(branch) in found[row["id"]]:
        return f"branch {branch} comes twice", "keep one row a branch"
    if not isinstance(row["text"], str) or not clean(row["text"]):
        return "the text is empty", "write one, or remove the row"
    return None


@dataclass(frozen=True)
class BackTable:
    """What the jobs of one class are drawn from.

    Attributes:
        texts: of each training image of the class, in the order of their ids.
        imaginations: n, images of each text.
    """

    texts: Sequence[Sequence[BackText]]
    imaginations: int

    @property
    def most(self) -> int:
        """Images that it can give of each training image, at the least."""
        return min(len(own) for own in self.texts) * self.imaginations

    def chosen(self, seed: int, class_name: str, index: int) -> tuple[int, BackText]:
        """The training image and the text of an index.

        Indices go round the training images; each time another of an image's texts x imaginations is taken, in a
        random order, so that no drawing repeats one (uniform choice without replacement, Sec. 3.2).

        Args:
            seed: run.seed; randomness from (seed, "back-modality choice back captions" and class, image).
            class_name: class folder.
            index: of the job, below len(texts) * most.
        """
        image, place = index % len(self.texts), index // len(self.texts)
        counts = [len(self.texts[image]), self.imaginations]
        text, _ = leaf_order(seed, Sample(image, None, f"back captions {class_name}"), counts)[place]
        return image, self.texts[image][text]


def require_enough(tables: Mapping[str, BackTable], wanted: Mapping[str, int]) -> None:
    """Refuse to ask a class for more images than it has texts and imaginations for.

    Raises:
        ConfigError: names the first class and what to raise.
    """
    for name, count in wanted.items():
        table = tables[name]
        if count > table.most * len(table.texts):
            raise ConfigError(
                f"{count} images of back_captioning are wanted of class {name}, and its {len(table.texts)} training "
                f"images give {table.most} each",
                why=f"each has {table.most // table.imaginations} texts, each drawn {table.imaginations} times",
                do="raise back_captioning.captions, rewrites or imaginations, or lower generate.per_real",
            )
