"""The table of `mvc tune` as a file and on a terminal, and what has to be known to read it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mvc.errors import DataError
from mvc.storage import read_json, write_text

TUNE, TABLE = "tune/tune.json", "tune/table.csv"
"""Below the run folder."""
COLUMNS = (
    "drawn",
    "images",
    "class_agreement",
    "class_agreement_error",
    "coverage",
    "coverage_error",
    "density",
    "distance",
    "distance_ratio",
    "distance_ratio_error",
    "copies",
)
"""Columns of table.csv between the settings and the accuracy."""
_NOISY = {"class_agreement": "class agreement", "coverage": "coverage", "distance_ratio": "distance ratio"}
"""Figures with a standard error."""
_APART = 2 * math.sqrt(2)
"""Standard errors by which two points have to differ: two of a difference."""


def write_table(run: Path, summary: Mapping[str, Any]) -> None:
    """Write table.csv: one row a point, in the order given; shares, empty where there is none."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    after = ["validation_accuracy", "validation_accuracy_error", "front", "folder"]
    writer.writerow(["point", *summary["keys"], *COLUMNS, *after])
    for point in summary["points"]:
        accuracy = point["validation_accuracy"] or {"mean": None, "error": None}
        cells = [
            *(_setting(point["settings"][key]) for key in summary["keys"]),
            *(point[name] for name in COLUMNS),
            accuracy["mean"],
            accuracy["error"],
        ]
        shown = ["" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells]
        writer.writerow([point["number"], *shown, int(point["front"]), point["folder"]])
    write_text(run / TABLE, text.getvalue())


def _setting(value: Any) -> str:
    """A value in few letters: 1.5, 1-2 for a range, finetuned 0.5 + pretrained 0.5 for shares."""
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return " + ".join(f"{name} {share:g}" for name, share in value.items() if share)
    if isinstance(value, list):
        return "-".join(_setting(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def notes_of(summary: Mapping[str, Any]) -> list[str]:
    """What the table does not say by itself: the trade-off, which figures are noisy, and what is lacking.

    Args:
        summary: as in tune.json.
    """
    points, real = summary["points"], summary["real"]
    notes = [_front(summary)] if summary["front"] else []
    notes += _noise(summary)
    if not real["validation"]["images"]:
        notes.append("there is no validation image, so there is neither coverage nor a distance ratio")
    elif real["train"]["coverage"] is None:
        notes.append("coverage and density need two validation images of a class")
    if summary["agreement_by"] is None:
        notes.append(
            "nothing could say which class an image shows; class agreement needs two classes, and two training images "
            "of each or filter.clip"
        )
    spoilt = {point["number"]: point["drawn"] - point["images"] for point in points}
    if any(spoilt.values()):
        told = ", ".join(f"{count} of point {number}" for number, count in spoilt.items() if count)
        notes.append(f"images that are not finite count as read wrongly: {told}")
    return notes


def _front(summary: Mapping[str, Any]) -> str:
    names = ", ".join(map(str, summary["front"]))
    plural = len(summary["front"]) > 1
    return (
        f"point{'s' if plural else ''} {names} {'are' if plural else 'is'} marked: no other is as good in class "
        "agreement, coverage and distance (up to that of unseen real images) and better in one; nothing is chosen"
    )


def _noise(summary: Mapping[str, Any]) -> list[str]:
    """Which figures tell the points apart, and which differ by no more than chance would explain."""
    found = {}
    for name, words in _NOISY.items():
        found[words] = [(point[name], point[f"{name}_error"]) for point in summary["points"]]
    accuracies = [point["validation_accuracy"] or {"mean": None, "error": None} for point in summary["points"]]
    found["accuracy"] = [(accuracy["mean"], accuracy["error"]) for accuracy in accuracies]
    noisy: list[str] = []
    clear: list[str] = []
    for words, pairs in found.items():
        known = [(value, error) for value, error in pairs if value is not None and error is not None]
        if not known:
            continue
        values, error = [value for value, _ in known], max(error for _, error in known)
        told = f"{words} (standard error {_points(words, error)})"
        (clear if max(values) - min(values) > _APART * error else noisy).append(told)
    if len(summary["points"]) < 2:
        return [f"with one point nothing is compared: {', '.join(noisy)}"] if noisy else []
    lines = []
    if noisy:
        lines.append(f"noisy: {', '.join(noisy)}: the points differ by no more than chance would explain")
    if clear:
        lines.append(f"differences larger than chance: {', '.join(clear)}; below 2.8 standard errors they are not")
    return lines


def _points(words: str, error: float) -> str:
    return f"{error:.2f}" if words == "distance ratio" else f"{100 * error:.1f} points"


def print_tune(run: Path, console: Console | None = None) -> None:
    """Print the points of a finished `mvc tune` in the order given, real images below them, and how to read it.

    Args:
        run: the run folder.
        console: where to print; standard output when absent.

    Raises:
        DataError: there is none.
    """
    path, console = run / TUNE, console or Console()
    if not path.exists():
        raise DataError(f"{path} is missing", do="run `mvc tune`")
    summary = read_json(path)
    table = Table(
        title=f"{summary['per_class']} images a class at each point",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    rows = [*(_point_row(summary, point) for point in summary["points"]), *_real_rows(summary)]
    # In two lines, and figures that nothing has are left out: terminals are narrow.
    settings = [key.rpartition(".")[2].replace("_", "\n") for key in summary["keys"]]
    headings = ["", *settings, "agree", "cover", "dense", "ratio", "copies", "accuracy"]
    shown = [column for column in range(len(headings)) if column == 0 or any(row[column] for row, _ in rows)]
    for column in shown:
        table.add_column(headings[column], justify="right" if column else "left", overflow="fold", no_wrap=column == 0)
    for row, style in rows:
        table.add_row(*(row[column] for column in shown), style=style)
    console.print(table)
    for line in (*_explained(summary), *summary["notes"]):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"plot: {run / 'tune' / 'trade_off.png'}", soft_wrap=True, highlight=False)


def _point_row(summary: Mapping[str, Any], point: Mapping[str, Any]) -> tuple[list[str], str | None]:
    cells = [f"{point['number']}{' *' if point['front'] else ''}"]
    cells += [_setting(point["settings"][key]) for key in summary["keys"]]
    cells += [
        _percent(point["class_agreement"]),
        _percent(point["coverage"]),
        _decimals(point["density"]),
        _decimals(point["distance_ratio"]),
        _percent(point["copies"]),
        _accuracy(point["validation_accuracy"]),
    ]
    return cells, "bold" if point["front"] else None


def _real_rows(summary: Mapping[str, Any]) -> list[tuple[list[str], str | None]]:
    """What real images have, and classifiers without the points' images."""
    blank = [""] * len(summary["keys"])
    train, validation = summary["real"]["train"], summary["real"]["validation"]
    ratio = _decimals(None if validation["distance"] is None else 1.0)
    unseen = [_percent(validation["class_agreement"]), "", "", ratio, _percent(validation["copies"]), ""]
    seen = ["", _percent(train["coverage"]), _decimals(train["density"]), "", "", ""]
    rows: list[tuple[list[str], str | None]] = [
        (["unseen", *blank, *unseen], "dim"),
        (["training", *blank, *seen], "dim"),
    ]
    short = summary["classifiers"]
    for name in ("real", "duplicate") if short is not None else ():
        rows.append(([name, *blank, *[""] * 5, _accuracy(short["baselines"][name])], "dim"))
    return rows


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.0f}%"


def _decimals(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _accuracy(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else f"{100 * found['mean']:.1f}±{100 * found['error']:.1f}"


def _explained(summary: Mapping[str, Any]) -> list[str]:
    real = summary["real"]
    lines = [
        f"against {real['train']['images']} training and {real['validation']['images']} validation images, "
        f"by the features of {summary['extractor']}"
    ]
    if summary["agreement_by"] is not None:
        lines.append(f"agree: read as their class by {summary['agreement_by']}")
    if real["train"]["coverage"] is not None:
        lines.append("cover: validation images that have an image of their class nearby; dense: how many are near one")
    if real["validation"]["distance"] is not None:
        lines.append("ratio: distance to the nearest training image, 1 for unseen real images; below 1 is nearer")
    short = summary["classifiers"]
    if short is not None:
        count = len(short["seeds"])
        lines.append(
            f"accuracy: per cent of {short['validation_images']} validation images, mean of {count} "
            f"classifier{'s' if count > 1 else ''} ({short['backbone']}, {short['arm']}) of {short['steps']} steps, "
            "with the standard error"
        )
    return lines
