"""Folders of texts of two moods, and experiments on them, for the tests of the comparison."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from mvc.classify.text_data import Texts
from mvc.config_texts import TextExperiment

from .text_toys import MOODS, moods

SIZES = {"train": 24, "dev": 20, "test": 40}


def write_texts(folder: Path, pairs: bool = False, sizes: dict[str, int] = SIZES) -> Path:
    """train.tsv, dev.tsv and test.tsv with the columns text (or text and more) and label."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, (split, count) in enumerate(sizes.items()):
        write_table(folder / f"{split}.tsv", moods(count, number, pairs))
    return folder


def write_table(path: Path, texts: Texts) -> None:
    """A TSV file of labelled texts."""
    columns = ["text", "more"][: len(texts.texts[0])]
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)
        writer.writerow([*columns, "label"])
        writer.writerows([[*row, MOODS[label]] for row, label in zip(texts.texts, texts.labels, strict=True)])


def experiment(folder: Path, run: Path, data: dict[str, Any] | None = None, **classify: Any) -> TextExperiment:
    """A comparison of real texts with EDA."""
    settings = {"arms": ["real", "eda"], "seeds": 2, "max_train_steps": 6, "evaluation_steps": 3, **classify}
    return TextExperiment.model_validate(
        {
            "run": {"dir": str(run), "device": "cpu"},
            "data": {"path": str(folder), "shots": 4, "seeds": 2, **(data or {})},
            "augmentations": {"eda": {"augmentations_per_sample": 3}, "unused": {"method": "rewriting"}},
            "classify": settings,
        }
    )
