"""The table of a CLIP comparison: recalls by arm, and the RSUM of each against that of `none`, paired by seed."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mvc.config_clip import PLAIN
from mvc.errors import DataError
from mvc.paired_test import Comparison, compare, holm, p_value_text, standard_deviation
from mvc.storage import read_json, write_json, write_text

from .clip_evaluation import KS

TABLE, VERDICT = "table.csv", "verdict.json"
COLUMNS = (
    "arm",
    *(f"text_retrieval@{k}" for k in KS),
    *(f"image_retrieval@{k}" for k in KS),
    "rsum",
    "standard_deviation",
    "values",
    "difference",
    "low",
    "high",
    "p_value",
    "validation_rsum",
    "zero_shot_accuracy",
)
"""Columns of table.csv: per cent, means over the seeds; difference, low, high (95 % interval) and p_value
(Holm-corrected) are of the RSUM against `none`. Empty where there is none."""
_WIDTH = 160


@dataclass(frozen=True)
class ArmRow:
    """An arm over its seeds.

    Attributes:
        arm: its name.
        rows: what was measured of each seed.
        comparison: its RSUM against that of `none`; None for `none` itself, or without it.
        corrected: p value after Holm's correction over all arms.
    """

    arm: str
    rows: Sequence[Mapping[str, Any]]
    comparison: Comparison | None
    corrected: float | None

    @property
    def rsums(self) -> list[float]:
        """RSUM of each seed."""
        return [float(row["test"]["rsum"]) for row in self.rows]

    def mean(self, *keys: str) -> float | None:
        """Mean of a number over the seeds; None where a seed has none."""
        found = []
        for row in self.rows:
            value: Any = row
            for key in keys:
                value = None if value is None else value.get(key)
            found.append(value)
        return None if None in found else float(np.mean(found))


def compared(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[ArmRow]:
    """Arms with their paired comparison to `none`.

    Args:
        rows: of each arm what was measured, the seeds in one order.
    """
    plain = [row["test"]["rsum"] for row in rows[PLAIN]] if PLAIN in rows else None
    found = {
        arm: None if plain is None or arm == PLAIN else compare([row["test"]["rsum"] for row in own], plain)
        for arm, own in rows.items()
    }
    tested = [arm for arm, one in found.items() if one is not None and one.p_value is not None]
    p_values = [one.p_value for one in found.values() if one is not None and one.p_value is not None]
    corrected = dict(zip(tested, holm(p_values), strict=True)) if p_values else {}
    return [ArmRow(arm, own, found[arm], corrected.get(arm)) for arm, own in rows.items()]


def conclude_clips(folder: Path, rows: Mapping[str, Sequence[Mapping[str, Any]]], warnings: Sequence[str]) -> None:
    """Write table.csv, and verdict.json last, because its presence says that the comparison is complete."""
    arms = compared(rows)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for one in arms:
        writer.writerow([_cell(value) for value in _cells(one)])
    write_text(folder / TABLE, text.getvalue())
    write_json(folder / VERDICT, {"sentence": _sentence(arms), "warnings": list(warnings)})


def _cells(one: ArmRow) -> list[str | float | None]:
    found = one.comparison
    return [
        one.arm,
        *(one.mean("test", "text_retrieval", str(k)) for k in KS),
        *(one.mean("test", "image_retrieval", str(k)) for k in KS),
        one.mean("test", "rsum"),
        standard_deviation(one.rsums),
        " ".join(f"{value:.4f}" for value in one.rsums),
        *((None, None, None) if found is None else (found.difference, found.low, found.high)),
        one.corrected,
        one.mean("validation_rsum"),
        one.mean("zero_shot_accuracy"),
    ]


def _cell(value: str | float | None) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else value


def _sentence(arms: Sequence[ArmRow]) -> str:
    """What can be said of the arm that the validation pairs chose."""
    others = [one for one in arms if one.comparison is not None]
    if not others:
        return "not told: without the arm none, or with no other one, nothing is compared"
    best = max(others, key=lambda one: one.mean("validation_rsum") or 0.0)
    found = best.comparison
    assert found is not None
    signed = f"{found.difference:+.1f}"
    if best.corrected is None:
        return f"not told: one seed cannot tell whether {best.arm} helps; its RSUM differs from none by {signed}"
    interval = "" if found.low is None else f"95 % interval {found.low:+.1f} to {found.high:+.1f}, "
    shown = f"{interval}{len(best.rows)} seeds, p {_equals(best.corrected)}"
    if best.corrected < 0.05:
        what = "helped" if found.difference > 0 else "hurt"
        return f"{best.arm} {what}: RSUM {signed} against none ({shown})"
    return f"not told: {best.arm} differs from none by {signed} RSUM ({shown}); chance could explain it"


def _equals(p_value: float) -> str:
    text = p_value_text(p_value)
    return text if text.startswith("<") else f"= {text}"


def print_clips(run: Path, console: Console | None = None) -> None:
    """Print the table and the sentence of a finished comparison.

    Raises:
        DataError: the run has no finished comparison.
    """
    folder = run / "results"
    if not (folder / VERDICT).exists():
        raise DataError(f"{folder} has no finished comparison", do="run `mvc clip`")
    console = console or _wide()
    with open(folder / TABLE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    zero_shot = any(row["zero_shot_accuracy"] for row in rows)
    table = Table(title="retrieval among the test pairs, per cent")
    heads = ["arm", *(f"text@{k}" for k in KS), *(f"image@{k}" for k in KS), "RSUM", "to none", "95 % interval", "p"]
    for head in [*heads, *(["zero-shot"] if zero_shot else [])]:
        table.add_column(head, justify="left" if head == "arm" else "right", no_wrap=head == "arm")
    for row in rows:
        table.add_row(*_shown(row), *([_points(row["zero_shot_accuracy"], 100)] if zero_shot else []))
    console.print(table)
    verdict = read_json(folder / VERDICT)
    console.print(f"verdict: {verdict['sentence']}", soft_wrap=True, highlight=False)
    for warning in verdict["warnings"]:
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False)


def _wide() -> Console:
    console = Console()
    return console if console.is_terminal else Console(width=_WIDTH)


def _shown(row: Mapping[str, str]) -> list[str]:
    recalls = [_points(row[f"{kind}@{k}"]) for kind in ("text_retrieval", "image_retrieval") for k in KS]
    spread = f" +- {float(row['standard_deviation']):.1f}" if row["standard_deviation"] else ""
    interval = f"{float(row['low']):+.1f} to {float(row['high']):+.1f}" if row["low"] and row["high"] else ""
    difference = f"{float(row['difference']):+.1f}" if row["difference"] else ""
    p_value = p_value_text(float(row["p_value"])) if row["p_value"] else ""
    return [row["arm"], *recalls, _points(row["rsum"]) + spread, difference, interval, p_value]


def _points(text: str, factor: float = 1.0) -> str:
    return f"{factor * float(text):.1f}" if text else ""
