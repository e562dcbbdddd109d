"""The quality stage: the synthetic set against real images that no training saw, and real against real as the floor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mvc.config import Experiment
from mvc.dataset import Dataset, load_index
from mvc.devices import pick_device
from mvc.extractors import FoundExtractor, find_extractor
from mvc.features import FOLDER, look
from mvc.progress import say
from mvc.quality import FIGURES
from mvc.report.quality import HEADINGS, NEAREST, QUALITY, Line, read_quality
from mvc.storage import write_json, write_json_lines
from mvc.synthetic import SyntheticImage, read_synthetic

from .comparison import Compared, Images, compare_groups, find_nearest

_SHORT = [{"precision": "prec.", "coverage": "cover."}.get(heading, heading) for heading in HEADINGS]
"""Headings with which the table fits into 80 columns."""
_SHOWN_BY_CLASS = (0, 1, 3, 6)
"""Columns of the table by class: both distances that need no CLIP, precision and coverage."""


def run_quality(run: Path, experiment: Experiment) -> None:
    """Write run/quality/nearest.jsonl, a row a synthetic image, and then run/quality/quality.json.

    Real images are brought to the size of the synthetic ones first. The test split is not looked at.

    Args:
        run: the run folder, with a finished synthetic set.
        experiment: sections run, data, filter and quality are used.

    Raises:
        DataError: there is no synthetic set, or an image cannot be decoded.
        ConfigError: the extractor is not known.
        EnvironmentFault: its weights are missing or damaged, or the place cannot be written.
        NumericError: the features of an image are not finite.
        Stopped: a signal asked for a stop; what was seen of the images is kept.
    """
    dataset, made = load_index(run), read_synthetic(run)
    size = made[0].row["image_size"] if made else experiment.data.image_size
    extractor = _extractor(experiment)
    compared = _look(run, experiment, dataset, made, extractor, size)
    summary = {
        "extractor": extractor.name,
        "extractor_identity": extractor.identity,
        "image_size": size,
        "neighbours": compared.neighbours,
        "counts": {"synthetic": len(made), "train": len(compared.train), "validation": len(compared.held_out)},
        **compare_groups(compared, [image.source for image in made], dataset.classes),
    }
    rows, summary["nearest"] = find_nearest(compared, made, [record.id for record in dataset.split("train")])
    summary["notes"] = _notes(summary)
    write_json_lines(run / NEAREST, rows)
    write_json(run / QUALITY, summary)
    for note in summary["notes"]:
        say(f"quality: {note}")


def _extractor(experiment: Experiment) -> FoundExtractor:
    own = experiment.quality.extractor
    if own == "auto":
        return find_extractor(experiment.filter.extractor, "filter.extractor")
    return find_extractor(own, "quality.extractor")


def _look(
    run: Path,
    experiment: Experiment,
    dataset: Dataset,
    made: Sequence[SyntheticImage],
    extractor: FoundExtractor,
    size: int | None,
) -> Compared:
    """Features of all images, by way of the run's cache; the network is loaded once, if at all."""
    load = cache(lambda: extractor.load(pick_device(experiment.run.device)))

    def seen(images: Sequence[tuple[str, Path]], side: int | None, classes: Sequence[str]) -> Images:
        found = look(run / FOLDER, images, side, experiment.data.background, extractor.identity, load)
        return Images(found.features, np.array(classes, dtype=np.str_))

    kinds = [seen([(str(image.row["sha256"]), image.path) for image in made], None, [i.class_name for i in made])]
    for split in ("train", "validation"):
        records = dataset.split(split)
        images = [(record.sha256, dataset.image_path(record)) for record in records]
        kinds.append(seen(images, size, [record.class_name for record in records]))
    return Compared(kinds[0], kinds[1], kinds[2], experiment.quality.neighbours, experiment.run.seed)


def _notes(summary: dict[str, Any]) -> list[str]:
    """What the figures lack, in words."""
    synthetic, held_out = summary["counts"]["synthetic"], summary["counts"]["validation"]
    if not synthetic:
        return ["there is no synthetic image, so only real images are compared"]
    if not held_out:
        return ["there is no validation image, so nothing is compared with real images that no training saw"]
    lacking = [name.replace("_", " ") for name in FIGURES if summary["overall"][name] is None]
    if not lacking:
        return []
    return [
        f"{synthetic} synthetic and {held_out} validation images with quality.neighbours={summary['neighbours']} are "
        f"too few for {', '.join(lacking)}"
    ]


def print_quality(run: Path, console: Console | None = None) -> None:
    """Print the figures of a run's synthetic set with those of real images beside them.

    Args:
        run: the run folder.
        console: where to print; standard output when absent.

    Raises:
        DataError: the quality stage has not run.
    """
    found, console = read_quality(run), console or Console()
    console.print(_table("set", found.lines, range(len(HEADINGS))))
    # The floor stands in brackets there, and takes the place of half the columns.
    console.print(_table("class", found.classes, _SHOWN_BY_CLASS))
    for text in (*found.explained, *found.notes):
        console.print(text, soft_wrap=True, highlight=False)


def _table(first: str, lines: Sequence[Line], columns: Sequence[int]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=0, pad_edge=False)
    for number, heading in enumerate((first, "images", *(_SHORT[column] for column in columns))):
        table.add_column(heading, justify="right" if number else "left", no_wrap=number > 0)
    for line in lines:
        cells = [line.cells[column] for column in columns]
        table.add_row(line.name, line.images, *cells, style="dim" if line.floor else None)
    return table
