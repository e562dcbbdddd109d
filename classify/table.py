"""The table of a comparison: results/table.csv, and the same on a terminal with the verdict below it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mvc.errors import DataError
from mvc.paired_test import p_value_text
from mvc.storage import read_json, write_text

from .statistics import Summary
from .verdict_words import points

COLUMNS = (
    "arm",
    "mean",
    "standard_deviation",
    "seeds",
    "values",
    "difference",
    "p_value",
    "validation_mean",
    "low",
    "high",
    "effect_size",
    "balanced_accuracy",
    "macro_f1",
    "auroc",
    "ece",
    "ratio",
    "diversity",
    "affinity",
    "augmentation",
    "reference",
)
"""Columns of table.csv: shares, empty where there is none.

seeds counts independent samples, values are those of all units; difference, p_value (Holm-corrected), low, high (95 %
interval) and effect_size (Hedges' g_z) are against the arm `reference`; the rest are means.
"""


_WIDTH = 120
"""Columns of text where standard output is no terminal."""


def write_table(path: Path, summaries: Sequence[Summary]) -> None:
    """Write table.csv, one row an arm."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for summary in summaries:
        found = summary.comparison
        cells: dict[str, str | float | int | None] = {
            "arm": summary.name,
            "mean": summary.mean,
            "standard_deviation": summary.standard_deviation,
            "seeds": len(summary.samples),
            "values": " ".join(f"{value:.6f}" for value in summary.values),
            "validation_mean": summary.validation_mean,
            "balanced_accuracy": summary.balanced_accuracy,
            "macro_f1": summary.macro_f1,
            "auroc": summary.auroc,
            "ece": summary.calibration_error,
            "ratio": summary.ratio,
            "diversity": summary.diversity,
            "affinity": summary.affinity,
            "augmentation": summary.augmentation,
        }
        if found is not None:
            cells |= {"difference": found.difference, "p_value": found.corrected, "low": found.low, "high": found.high}
            cells |= {"effect_size": found.effect_size, "reference": found.reference}
        writer.writerow([_cell(cells.get(column)) for column in COLUMNS])
    write_text(path, text.getvalue())


def _cell(value: str | float | int | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_table(path: Path) -> list[dict[str, str]]:
    """The rows of a table.csv, all values as texts.

    Raises:
        DataError: there is no such file.
    """
    if not path.exists():
        raise DataError(f"{path} is missing", do="run `mvc classify`")
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def wide_console() -> Console:
    """Standard output; where it is no terminal, wide enough for whole tables in place of 80 columns."""
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def print_table(run: Path, console: Console | None = None) -> None:
    """Print the table, the verdict, the size of the test set and the warnings of a finished comparison.

    Args:
        run: the run folder.
        console: where to print; standard output when absent.

    Raises:
        DataError: the run has no finished comparison.
    """
    rows, console = read_table(run / "results" / "table.csv"), console or wide_console()
    verdict = read_json(run / "results" / "verdict.json")
    several = len({row.get("reference") for row in rows} - {"", None}) > 1
    table = Table(title="test accuracy, per cent")
    headings = ["arm", "mean", "difference" if several else "difference to real", "95 % interval", "p (Holm)"]
    for heading in headings + ["against"] * several:
        table.add_column(
            heading, justify="left" if heading in ("arm", "against") else "right", no_wrap=heading in ("arm", "mean")
        )
    for row in rows:
        style = "bold" if row["arm"] == verdict["best_arm"] else None
        table.add_row(row["arm"], *_shown(row), *[row.get("reference") or ""] * several, style=style)
    console.print(table)
    console.print(f"verdict: {verdict['sentence']}", soft_wrap=True, highlight=False)
    console.print(f"test set: {verdict['test_set']}", soft_wrap=True, highlight=False)
    for warning in verdict["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False)


def _shown(row: dict[str, str]) -> list[str]:
    """Mean, difference, interval and p value of a row in words."""
    spread = f" +- {points(float(row['standard_deviation']))}" if row["standard_deviation"] else ""
    difference = points(float(row["difference"]), signed=True) if row["difference"] else ""
    interval = ""
    if row.get("low") and row.get("high"):
        interval = f"{points(float(row['low']), signed=True)} to {points(float(row['high']), signed=True)}"
    p_value = p_value_text(float(row["p_value"])) if row["p_value"] else ""
    return [points(float(row["mean"])) + spread, difference, interval, p_value]
