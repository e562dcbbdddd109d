"""What `mvc check FOLDER` finds and prints: counts, sizes, modes, corrupt files, duplicates, copies across splits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvc.class_names import codes
from mvc.duplicates import NEAR_DISTANCE, across, equal_files, near_pairs
from mvc.layout import SPLITS, Layout, class_problems, find_layout
from mvc.probe import ImageFacts, probe_all
from mvc.walk import counted, printable

IMBALANCE = 3.0
"""The largest class has at least so many times the training images of the smallest: worth a warning."""
SMALLEST_SIDE = 32
"""Side in pixels below which no near duplicates are looked for: a perceptual hash tells too little there."""
SHOWN = 10
"""Examples printed of each kind of copy."""


@dataclass(frozen=True)
class CheckReport:
    """What was found in a folder of images; paths are relative to it.

    Attributes:
        root: the folder.
        counts: images that can be read, by class and split ("all" where the folder has no splits).
        sizes: images by (width, height), upright.
        modes: images by Pillow's mode of the file as stored.
        corrupt: reason by path, for images that cannot be read.
        equal: groups of files with equal bytes.
        near: (path, path, differing bits) of pictures that look alike without being equal, nearest first.
        equal_across, near_across: those of `equal` and `near` that lie in more than one split.
        ignored: other files, by suffix.
        problems: what has to be put right before a run.
        warnings: what is worth knowing.
    """

    root: Path
    counts: dict[str, dict[str, int]]
    sizes: Counter[tuple[int, int]]
    modes: Counter[str]
    corrupt: dict[str, str]
    equal: list[list[str]]
    near: list[tuple[str, str, int]]
    equal_across: list[Sequence[str]]
    near_across: list[tuple[str, str, int]]
    ignored: Counter[str]
    problems: list[str]
    warnings: list[str]


def check_folder(folder: Path, background: str = "white") -> CheckReport:
    """Read every image of a folder and report on it; nothing is written.

    Args:
        folder: class folders, with or without split folders.
        background: colour behind transparent pixels.

    Raises:
        DataError: not a folder, or no class folders in it.
    """
    layout = find_layout(Path(os.path.abspath(folder.expanduser())))
    facts, corrupt = probe_all(layout.root, [image.path for image in layout.images], background)
    split = {image.path: image.split for image in layout.images if image.split}
    equal = equal_files({path: fact.sha256 for path, fact in facts.items()})
    near = _near_duplicates(facts, equal)
    near_across = [pair for pair in near if across([pair[:2]], split)]
    counts = _counts(layout, facts)
    return CheckReport(
        root=layout.root,
        counts=counts,
        sizes=Counter((fact.width, fact.height) for fact in facts.values()),
        modes=Counter(fact.mode for fact in facts.values()),
        corrupt=corrupt,
        equal=equal,
        near=near,
        equal_across=across(equal, split),
        near_across=near_across,
        ignored=layout.others,
        problems=[str(problem) for problem in class_problems(layout, facts)],
        warnings=layout.warnings + _warnings(layout, facts, counts, equal),
    )


def _counts(layout: Layout, facts: Mapping[str, ImageFacts]) -> dict[str, dict[str, int]]:
    names = [name for name in SPLITS if name in layout.given] or ["all"]
    counts = {class_name: dict.fromkeys(names, 0) for class_name in layout.classes}
    for image in layout.images:
        if image.path in facts:
            counts[image.class_name][image.split or "all"] += 1
    return counts


def _near_duplicates(facts: Mapping[str, ImageFacts], equal: list[list[str]]) -> list[tuple[str, str, int]]:
    # One of each group of equal files stands for all; flat and tiny images would all look alike.
    copies = {path for group in equal for path in group[1:]}
    paths = [
        path
        for path, fact in facts.items()
        if path not in copies and not fact.note and min(fact.width, fact.height) >= SMALLEST_SIDE
    ]
    pairs = near_pairs([facts[path].phash for path in paths])
    return [(paths[first], paths[second], bits) for first, second, bits in pairs.tolist()]


def _warnings(
    layout: Layout, facts: Mapping[str, ImageFacts], counts: dict[str, dict[str, int]], equal: list[list[str]]
) -> list[str]:
    warnings = [
        f"{counted(count, 'image')}: {note}"
        for note, count in Counter(f.note for f in facts.values() if f.note).items()
    ]
    name = "train" if layout.given else "all"
    train = {class_name: row[name] for class_name, row in counts.items() if row[name]}
    if train and max(train.values()) >= IMBALANCE * min(train.values()):
        largest, smallest = max(train, key=lambda key: train[key]), min(train, key=lambda key: train[key])
        warnings.append(
            f"uneven classes: {printable(largest)} has {train[largest]} training images, "
            f"{printable(smallest)} has {train[smallest]}"
        )
    class_of = {image.path: image.class_name for image in layout.images}
    torn = [group for group in equal if len({class_of[path] for path in group}) > 1]
    if torn:
        warnings.append(f"{counted(len(torn), 'image')} in more than one class: {_joined(torn[0])}")
    coded = codes(layout.classes, {})
    if coded:
        shown = ", ".join(map(printable, coded[:3]))
        warnings.append(
            f"{counted(len(coded), 'class folder')} named like a code ({shown}): give words by data.class_names"
        )
    return warnings


def _joined(paths: Sequence[str]) -> str:
    return " = ".join(printable(path) for path in paths)


def print_report(report: CheckReport, console: Console) -> None:
    """Print a report as tables and lines."""
    console.print(f"Images in {escape(printable(str(report.root)))}", highlight=False)
    console.print(_count_table(report))
    console.print(_feature_table(report))
    if report.corrupt:
        console.print(_corrupt_table(report.corrupt))
    _print_copies(report, console)
    for problem in report.problems:
        console.print(f"[red]to put right:[/red] {escape(problem)}", highlight=False)
    for warning in report.warnings:
        console.print(f"[yellow]warning:[/yellow] {escape(warning)}", highlight=False)
    if not (report.corrupt or report.problems):
        console.print("[green]every image can be read[/green]")


def _count_table(report: CheckReport) -> Table:
    splits = list(next(iter(report.counts.values())))
    table = Table()
    table.add_column("class", overflow="fold")
    for name in splits:
        table.add_column("images" if name == "all" else name, justify="right")
    for class_name, row in report.counts.items():
        table.add_row(escape(printable(class_name)), *(str(row[name]) for name in splits))
    totals = [sum(row[name] for row in report.counts.values()) for name in splits]
    table.add_section()
    table.add_row(f"{len(report.counts)} classes", *map(str, totals))
    return table


def _feature_table(report: CheckReport) -> Table:
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")
    if report.sizes:
        shown = ", ".join(f"{width}x{height} ({count})" for (width, height), count in report.sizes.most_common(4))
        more = f" and {len(report.sizes) - 4} other sizes" if len(report.sizes) > 4 else ""
        widths, heights = zip(*report.sizes, strict=True)
        table.add_row("sizes", shown + more)
        table.add_row("width, height", f"{min(widths)} to {max(widths)}, {min(heights)} to {max(heights)} px")
        table.add_row("modes", ", ".join(f"{mode} ({count})" for mode, count in report.modes.most_common()))
    ignored = ", ".join(f"{printable(suffix)} ({count})" for suffix, count in report.ignored.most_common())
    table.add_row("other files", escape(ignored) or "none")
    table.add_row("cannot be read", str(len(report.corrupt)))
    table.add_row(
        "equal files", f"{sum(len(group) - 1 for group in report.equal)} copies of {len(report.equal)} images"
    )
    table.add_row("near duplicates", f"{len(report.near)} pairs (at most {NEAR_DISTANCE} of 64 bits differ)")
    across_splits = f"{len(report.equal_across)} equal, {len(report.near_across)} near"
    table.add_row("copies across splits", across_splits if "train" in _splits(report) else "no splits given")
    return table


def _splits(report: CheckReport) -> set[str]:
    return {name for row in report.counts.values() for name in row}


def _corrupt_table(corrupt: dict[str, str]) -> Table:
    table = Table(title="Images that cannot be read", title_justify="left")
    table.add_column("file", overflow="fold")
    table.add_column("reason", overflow="fold")
    for path, reason in corrupt.items():
        table.add_row(escape(printable(path)), escape(printable(reason)))
    return table


def _print_copies(report: CheckReport, console: Console) -> None:
    kinds: list[tuple[str, list[str]]] = [
        ("equal across splits", [_joined(group) for group in report.equal_across]),
        ("near across splits", [f"{_joined(pair[:2])} ({pair[2]} bits)" for pair in report.near_across]),
        ("equal", [_joined(group) for group in report.equal if group not in report.equal_across]),
        (
            "near",
            [f"{_joined(pair[:2])} ({pair[2]} bits)" for pair in report.near if pair not in set(report.near_across)],
        ),
    ]
    for title, lines in kinds:
        if lines:
            console.print(f"[bold]{title}[/bold]")
            for line in lines[:SHOWN]:
                console.print(f"  {escape(line)}", highlight=False)
            if len(lines) > SHOWN:
                console.print(f"  and {len(lines) - SHOWN} more")
