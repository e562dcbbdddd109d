"""What the quality stage wrote, as texts for the page and the terminal, and the pairs of images that it points at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mvc.dataset import load_index
from mvc.errors import DataError
from mvc.quality import FIGURES
from mvc.storage import read_json, read_json_lines
from mvc.synthetic import synthetic_folder

from .pictures import BLOCKS, GAP, data_uri, square_sides, tile
from .sections import class_words, percent, reading, require

QUALITY, NEAREST = "quality/quality.json", "quality/nearest.jsonl"
"""Below the run folder."""
PAIRS = 25
"""Pairs of a synthetic image and its nearest training image on a page."""
HEADINGS = ("Fréchet", "kernel", "CMMD", "precision", "recall", "density", "coverage")
"""Of the columns, in the order of `mvc.quality.FIGURES`."""

_ABSENT = "No figures of quality yet: the synthetic set has not been measured."


@dataclass(frozen=True)
class Line:
    """One row of the table: name, number of images, a cell a figure; `floor` marks real images."""

    name: str
    images: str
    cells: list[str]
    floor: bool = False


@dataclass(frozen=True)
class Quality:
    """The figures of a set.

    Attributes:
        lines: all images, each source, and real training images; then the same on equally many images.
        classes: a line a class, on equally many images, the floor in brackets.
        explained: what the figures are computed from, and how near the training images are.
        notes: what is lacking.
    """

    lines: list[Line]
    classes: list[Line]
    explained: list[str]
    notes: list[str]


@dataclass(frozen=True)
class Pair:
    """A synthetic image and its nearest training image beside each other."""

    uri: str
    name: str
    note: str
    near: bool
    """Nearer than any held-out image is to a training image."""


@dataclass(frozen=True)
class Pairs:
    """The pairs of a page, nearest first, and their shape in pixels."""

    pairs: list[Pair]
    width: int
    height: int
    unreadable: int


def read_quality(run: Path) -> Quality:
    """The tables of run/quality/quality.json.

    Raises:
        DataError: the quality stage has not run, or the file cannot be used.
    """
    path = run / QUALITY
    require(path, _ABSENT)
    summary = read_json(path)
    words = class_words(run)
    with reading(path):
        return Quality(
            lines=_lines(summary),
            classes=[
                _class_line(words.get(name, name), said, summary["floor"]["by_class"][name])
                for name, said in summary["by_class"].items()
            ],
            explained=[_compared(summary), *_nearness(summary)],
            notes=[_sentence(str(note)) for note in summary["notes"]],
        )


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _lines(summary: dict[str, Any]) -> list[Line]:
    overall, floor = summary["overall"], summary["floor"]["overall"]
    lines = [Line("synthetic", str(overall["images"]), _cells(overall))]
    if len(summary["by_source"]) > 1:
        lines += [
            Line(BLOCKS.get(source, source), str(said["images"]), _cells(said))
            for source, said in summary["by_source"].items()
        ]
    lines.append(Line("real training", str(floor["images"]), _cells(floor), floor=True))
    equal = overall["equal"]
    if equal is not None and overall["images"] != floor["images"]:
        count = str(equal["images"])
        lines.append(Line("synthetic, as many", count, _cells(equal["synthetic"])))
        lines.append(Line("real, as many", count, _cells(equal["floor"]), floor=True))
    return lines


def _class_line(words: str, said: dict[str, Any], floor: dict[str, Any]) -> Line:
    equal = said["equal"]
    if equal is None:
        pairs = zip(_cells(said), _cells(floor), strict=True)
        return Line(words, str(said["images"]), [_beside(*pair) for pair in pairs])
    pairs = zip(_cells(equal["synthetic"]), _cells(equal["floor"]), strict=True)
    count = equal["images"] if equal["images"] == said["images"] else f"{equal['images']} of {said['images']}"
    return Line(words, str(count), [_beside(*pair) for pair in pairs])


def _beside(value: str, floor: str) -> str:
    return value if (value, floor) == ("–", "–") else f"{value} ({floor})"


def _cells(said: dict[str, Any]) -> list[str]:
    """The figures as texts: distances with three digits, shares with two decimals."""
    cells = []
    for name in FIGURES:
        value = said[name]
        if value is None:
            cells.append("–")
        elif name in ("frechet_distance", "kernel_distance", "cmmd"):
            cells.append(_three(value))
        else:
            cells.append(f"{value:.2f}")
    return cells


def _three(value: float) -> str:
    """Three digits, never in powers of ten; differences of nothing as 0."""
    if abs(value) < 5e-6:
        return "0"
    text = f"{value:.3g}"
    return text if "e" not in text else f"{value:.0f}" if abs(value) > 1 else f"{value:.6f}"


def _compared(summary: dict[str, Any]) -> str:
    counts, size = summary["counts"], summary["image_size"]
    at = f", all at {size} pixels" if size is not None else ""
    return (
        f"Compared with {counts['validation']} real validation images by the features of {summary['extractor']}{at}; "
        f"{summary['neighbours']} neighbours."
    )


def _nearness(summary: dict[str, Any]) -> list[str]:
    ours, theirs = summary["nearest"]["synthetic"], summary["nearest"]["held_out"]
    if ours["mean"] is None:
        return []
    text = f"Distance to the nearest training image: {_three(ours['mean'])} on average"
    same = f"It is of the same class for {percent(ours['same_class'])} % of the synthetic images"
    if theirs["mean"] is None:
        return [f"{text}.", f"{same}."]
    return [
        f"{text}, and {_three(theirs['mean'])} for held-out images; nearer than that are "
        f"{percent(ours['nearer'])} % of the synthetic and {percent(theirs['nearer'])} % of the held-out images.",
        f"{same} and {percent(theirs['same_class'])} % of the held-out ones.",
    ]


def read_pairs(run: Path, background: str) -> Pairs:
    """Synthetic images beside their nearest training image, the nearest pairs first.

    Args:
        run: the run folder.
        background: colour behind transparent pixels of the images.

    Raises:
        DataError: the quality stage has not run, or its rows do not fit the data.
    """
    path = run / NEAREST
    require(path, _ABSENT)
    rows, summary = read_json_lines(path), read_json(run / QUALITY)
    with reading(run / QUALITY):
        held_out = summary["nearest"]["held_out"]
        usual, least = held_out["mean"], held_out["least"]
    with reading(path):
        return _pairs(run, rows[:PAIRS], usual, least, background)


def _pairs(
    run: Path, rows: Sequence[dict[str, Any]], usual: float | None, least: float | None, background: str
) -> Pairs:
    dataset, words = load_index(run), class_words(run)
    real = {record.id: dataset.image_path(record) for record in dataset.split("train")}
    files = [(synthetic_folder(run) / row["file_name"], real[row["nearest_id"]], row) for row in rows]
    there = [(ours, theirs, row) for ours, theirs, row in files if ours.is_file() and theirs.is_file()]
    if not files:
        raise DataError("There is no synthetic image, so no pairs can be shown.")
    if not there:
        raise DataError("The images are not where they were, so no pairs can be shown.")
    sides, pairs = square_sides(there[0][0]), []
    for ours, theirs, row in there:
        picture = Image.new("RGBA", (2 * sides[1] + GAP, sides[1]))
        for place, file in enumerate((ours, theirs)):
            picture.paste(tile(file, sides, background), (place * (sides[1] + GAP), 0))
        own = words.get(row["class_name"], row["class_name"])
        distance = float(row["distance"])
        note = f"{_three(distance)}, {100 * distance / usual:.0f} %" if usual else _three(distance)
        near = least is not None and distance < least
        pairs.append(Pair(data_uri(picture), f"{own}: {row['id']}", note, near))
    return Pairs(pairs, 2 * sides[1] + GAP, sides[1], len(files) - len(there))
