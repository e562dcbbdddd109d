"""The table of a comparison: results/table.csv, and the same on a terminal with the verdict below it."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from mvc.errors import DataError
from mvc.storage import read_json, write_text

from .statistics import Summary
from .verdict import p_text, points

COLUMNS = (
    "arm",
    "mean",
    "standard_deviation",
    "seeds",
    "values",
    "difference",
    "p_value",
    "validation_mean",
)
"""Columns of table.csv: shares, empty where there is none; p_value is Holm-corrected."""


def write_table(path: Path, summaries: Sequence[Summary]) -> None:
    """Write table.csv, one row an arm."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for summary in summaries:
        found = summary.comparison
        cells = [
            summary.mean,
            summary.standard_deviation,
            len(summary.values),
            " ".join(f"{value:.6f}" for value in summary.values),
            None if found is None else found.difference,
            None if found is None else found.corrected,
            summary.validation_mean,
        ]
        shown = ["" if cell is None else f"{cell:.6g}" if isinstance(cell, float) else str(cell) for cell in cells]
        writer.writerow([summary.arm, *shown])
    write_text(path, text.getvalue())


def print_table(run: Path, console: Console | None = None) -> None:
    """Print the table, the verdict, the size of the test set and the warnings of a finished comparison.

    Args:
        run: the run folder.
        console: where to print; standard output when absent.

    Raises:
        DataError: the run has no finished comparison.
    """
    path, console = run / "results" / "table.csv", console or Console()
    if not path.exists():
        raise DataError(f"{path} is missing", do="run `mvc classify`")
    verdict = read_json(run / "results" / "verdict.json")
    table = Table(title="test accuracy, per cent")
    for heading in ("arm", "mean", "difference to real", "p (Holm)"):
        table.add_column(heading, justify="left" if heading == "arm" else "right", no_wrap=True)
    with open(path, newline="") as file:
        for row in csv.DictReader(file):
            spread = f" +- {points(float(row['standard_deviation']))}" if row["standard_deviation"] else ""
            difference = points(float(row["difference"]), signed=True) if row["difference"] else ""
            p_value = p_text(float(row["p_value"])).removeprefix("p ").removeprefix("= ") if row["p_value"] else ""
            style = "bold" if row["arm"] == verdict["best_arm"] else None
            table.add_row(row["arm"], points(float(row["mean"])) + spread, difference, p_value, style=style)
    console.print(table)
    console.print(f"verdict: {verdict['sentence']}", soft_wrap=True, highlight=False)
    console.print(f"test set: {verdict['test_set']}", soft_wrap=True, highlight=False)
    for warning in verdict["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False)
