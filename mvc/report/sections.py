"""What a run's files say, as plain values for the page; what is not there yet is a DataError with one line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.dataset import load_index
from mvc.errors import DataError
from mvc.stages import STAGES
from mvc.storage import read_json, read_json_lines

SPLITS = ("train", "validation", "test")
CAPTION_EXAMPLES = 3
"""Captions shown of each class."""


@dataclass(frozen=True)
class Losses:
    """What the log of the fine-tuning says.

    Attributes:
        steps, values: finite losses and their steps.
        bad: the first step whose loss is not finite (null in the log).
        skipped: steps that changed nothing.
        early, late: mean loss in each tenth of the noise schedule, over the first and the last fifth of the steps;
            None where a part has no sample, and empty where the log has no such numbers.
    """

    steps: list[int]
    values: list[float]
    bad: int | None
    skipped: int = 0
    early: tuple[float | None, ...] = ()
    late: tuple[float | None, ...] = ()


@dataclass(frozen=True)
class Validation:
    """Finite validation losses, their steps, and what images they were computed on."""

    steps: list[int]
    values: list[float]
    on: str


@dataclass(frozen=True)
class Data:
    """The data set: `rows` are class folder, its words, and images in each split and in all."""

    rows: list[tuple[str, str, list[int]]]
    totals: list[int]
    notes: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class Captions:
    """Examples (words of the class, captions) and what was counted."""

    examples: list[tuple[str, list[str]]]
    notes: list[str]


@dataclass(frozen=True)
class Machine:
    """run.json: the day of the run, and (name, value) pairs."""

    date: str
    timings: list[tuple[str, str, str]]
    """Stage, time spent, state."""
    versions: list[tuple[str, str]]
    hardware: list[tuple[str, str]]


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what goes wrong with the content of a file into a DataError that names it."""
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be used", why=reason, do="run the stage that writes it again") from error


def require(path: Path, absent: str) -> None:
    """Raise a DataError with the line `absent` if a file is not there."""
    if not path.exists():
        raise DataError(absent)


def percent(share: float, signed: bool = False) -> str:
    """A share in per cent with one decimal; never "-0.0"."""
    value = round(100 * share, 1) + 0.0
    return f"{value:+.1f}" if signed else f"{value:.1f}"


def class_words(run: Path) -> dict[str, str]:
    """The words of each class folder, in the order of the labels; none before the data stage has run."""
    if not (run / "data" / "index.jsonl").exists():
        return {}
    dataset = load_index(run)
    return dict(zip(dataset.classes, dataset.words, strict=True))


def duration(seconds: float) -> str:
    """Seconds in words, such as "12.3 s", "4 min 05 s" or "2 h 05 min"."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def losses(run: Path) -> Losses:
    """The losses of the fine-tuning, as far as it got."""
    path, absent = run / "logs" / "train.jsonl", "No loss curve yet: the model has not been fine-tuned."
    require(path, absent)
    rows = read_json_lines(path, torn_tail=True)
    with reading(path):
        points = [(int(row["step"]), math.nan if row["loss"] is None else float(row["loss"])) for row in rows]
        bins = [row["loss_by_timestep"] for row in rows if "loss_by_timestep" in row]
        part = -(-len(bins) // 5)
        early, late = (_means(bins[:part]), _means(bins[-part:])) if bins else ((), ())
    if not points:
        raise DataError(absent)
    good = [point for point in points if math.isfinite(point[1])]
    bad = next((step for step, loss in points if not math.isfinite(loss)), None)
    skipped = sum(bool(row.get("skipped")) for row in rows)
    return Losses([step for step, _ in good], [loss for _, loss in good], bad, skipped, early, late)


def _means(rows: Sequence[Sequence[float | None]]) -> tuple[float | None, ...]:
    """Mean of each column of a table with gaps; None for a column that has none but gaps."""
    columns = [[float(value) for value in column if value is not None] for column in zip(*rows, strict=True)]
    return tuple(sum(column) / len(column) if column else None for column in columns)


def validation(run: Path) -> Validation:
    """The validation losses of the fine-tuning; none if it computes none."""
    path = run / "logs" / "validation.jsonl"
    rows = read_json_lines(path, torn_tail=True)
    with reading(path):
        points = [(int(row["step"]), float(row["loss"])) for row in rows if row["loss"] is not None]
        on = str(rows[-1]["on"]) if rows else ""
    return Validation([step for step, _ in points], [loss for _, loss in points], on)


def data(run: Path) -> Data:
    """Counts per class and split, and the notes of the data stage."""
    require(run / "data" / "index.jsonl", "No data yet: the folder of images has not been read.")
    dataset, path = load_index(run), run / "data" / "summary.json"
    counts = {folder: dict.fromkeys(SPLITS, 0) for folder in dataset.classes}
    for record in dataset.records:
        counts[record.class_name][record.split] += 1
    rows = [
        (folder, words, [*counts[folder].values(), sum(counts[folder].values())])
        for folder, words in zip(dataset.classes, dataset.words, strict=True)
    ]
    totals = [sum(row[2][column] for row in rows) for column in range(len(SPLITS) + 1)]
    if not path.exists():
        return Data(rows, totals, [], [])
    summary, notes = read_json(path), []
    with reading(path):
        if summary["left_out"]:
            notes.append(f"{summary['left_out']} of {summary['images']} images are left out (few-shot subset).")
        if summary["made"]:
            notes.append(f"Made by rule, as the folder has none: {' and '.join(summary['made'])}.")
        if summary["skipped"]:
            notes.append(f"Images that could not be read and were skipped: {summary['skipped']}.")
        warnings = [str(text) for text in summary["warnings"]]
    return Data(rows, totals, notes, warnings)


def captions(run: Path, classes: int) -> Captions:
    """The first captions of the first classes, and what the caption stage counted."""
    path, summary = run / "captions.jsonl", run / "caption_summary.json"
    require(path, "No captions yet.")
    words = dict(zip((dataset := load_index(run)).classes, dataset.words, strict=True))
    texts: dict[str, list[str]] = {folder: [] for folder in words}
    rows = read_json_lines(path)
    with reading(path):
        for row in rows:
            # Rows edited by hand may name a class that is no more.
            texts.setdefault(str(row["class_name"]), []).append(str(row["caption"]))
    shown = [(words[folder], texts[folder][:CAPTION_EXAMPLES]) for folder in list(words)[:classes] if texts[folder]]
    if not summary.exists():
        return Captions(shown, [f"{len(rows)} captions."])
    counted = read_json(summary)
    with reading(summary):
        return Captions(shown, _caption_notes(counted))


def _caption_notes(counted: dict[str, Any]) -> list[str]:
    by = ", ".join(f"{count} by {name}" for name, count in sorted(counted["captioners"].items()))
    notes = [f"{counted['captions']} captions ({by})."]
    matters = {
        "empty": "say nothing behind the prefix",
        "repeated": "read the same as another of their class",
        "over_long": f"are longer than {counted['over_long'].get('limit', 77)} tokens and lose their end",
    }
    notes += [f"{counted[key]['count']} {what}." for key, what in matters.items() if counted[key]["count"]]
    if counted["single_caption_classes"]:
        notes.append(f"One caption only, so nothing to mix with: {', '.join(counted['single_caption_classes'])}.")
    if counted["same_caption_classes"]:
        notes.append(f"All captions the same: {', '.join(counted['same_caption_classes'])}.")
    return notes


def machine(run: Path) -> Machine:
    """What run.json tells about time, software and hardware."""
    path = run / "run.json"
    require(path, "No run.json, so nothing is known of versions, hardware and timings.")
    record = read_json(path)
    with reading(path):
        # The report is being written: a time of its own would make two equal reports differ.
        stages = {name: entry for name, entry in record.get("stages", {}).items() if name != "report"}
        timings = [
            (str(name), duration(float(entry["seconds"])), str(entry.get("state", "")))
            for name, entry in sorted(stages.items(), key=lambda item: _place(item[0]))
        ]
        return Machine(
            date=str(record.get("created", ""))[:10],
            timings=timings,
            versions=_pairs(record.get("versions", {})),
            hardware=_pairs(record.get("hardware", {})),
        )


def _place(stage: str) -> tuple[int, str]:
    order: Sequence[str] = tuple(stage.name for stage in STAGES)
    return (order.index(stage) if stage in order else len(order), stage)


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        (
            str(name).replace("_gib", ", GiB").replace("_", " "),
            ", ".join(map(str, value)) if isinstance(value, list) else str(value),
        )
        for name, value in values.items()
    ]
