"""The results of a run in the form of the paper's Tables 1 to 5 (Mixing Visual Concepts, Sec. 4).

A row is a backbone; a column is the arm that stands for it, "-" where there is none. Gains in brackets are against the
same augmentation without synthetic images, in points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mvc.arms import Arm, parse_arm
from mvc.errors import DataError
from mvc.storage import files_like, read_json

from .outcomes import augmentation_of
from .table import read_table, wide_console
from .verdict_words import points

AUGMENTATION_COLUMNS = {"default": "Baseline", "fast_autoaugment": "FAA", "autoaugment": "AA", "randaugment": "RA"}
STRATEGIES = ("two_phase", "rsp", "combined")
"""Which strategy stands for synthetic images in Tables 1 to 4: the best of the paper's Table 5 first."""
FINE_TUNED = ("finetuned", None)
PRE_TRAINED = ("pretrained",)
OURS = (*FINE_TUNED, *PRE_TRAINED)


@dataclass(frozen=True)
class Row:
    """One arm with one backbone; `mean` is its test accuracy, a share."""

    arm: Arm
    augmentation: str
    mean: float


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Args:
        heading: as in the paper.
        find: the arm that stands for it, if there is one.
        base: the augmentation whose accuracy without synthetic images it is compared with; None for no comparison.
    """

    heading: str
    find: Callable[[Sequence[Row]], Row | None]
    base: str | None = None


def real_row(rows: Sequence[Row], augmentation: str) -> Row | None:
    """The arm without synthetic images of an augmentation."""
    return next((row for row in rows if row.arm.strategy == "real" and row.augmentation == augmentation), None)


def synthetic_row(
    rows: Sequence[Row], augmentation: str, strategies: Sequence[str], sources: Sequence[str | None]
) -> Row | None:
    """The arm with synthetic images of an augmentation, by strategy, then source, in the orders given.

    Of arms that differ in their ratio alone it is the one that names none, else the first.
    """

    def rank(row: Row) -> tuple[int, int, bool]:
        arm = row.arm
        return strategies.index(arm.strategy), sources.index(arm.source), arm.ratio is not None

    fitting = [row for row in rows if row.augmentation == augmentation]
    fitting = [row for row in fitting if row.arm.strategy in strategies and row.arm.source in sources]
    return min(fitting, key=rank, default=None)


def _real(augmentation: str) -> Column:
    return Column(AUGMENTATION_COLUMNS[augmentation], lambda rows: real_row(rows, augmentation))


def _synthetic(
    heading: str, augmentation: str, strategies: Sequence[str] = STRATEGIES, sources: Sequence[str | None] = OURS
) -> Column:
    return Column(heading, lambda rows: synthetic_row(rows, augmentation, strategies, sources), augmentation)


def main_columns() -> list[Column]:
    """Of Tables 1 to 3: each augmentation without and with synthetic images."""
    named = {name: "Syn" if name == "default" else f"{short}+Syn" for name, short in AUGMENTATION_COLUMNS.items()}
    real = [_real(name) for name in AUGMENTATION_COLUMNS]
    return real + [_synthetic(f"Ours({text})", name) for name, text in named.items()]


def source_columns(augmentation: str) -> list[Column]:
    """Of Table 4: images of the pre-trained and of the fine-tuned model, by one strategy if there is one for both."""
    short = AUGMENTATION_COLUMNS[augmentation]

    def of(sources: Sequence[str | None]) -> Callable[[Sequence[Row]], Row | None]:
        def find(rows: Sequence[Row]) -> Row | None:
            both = [
                strategy
                for strategy in STRATEGIES
                if all(synthetic_row(rows, augmentation, (strategy,), each) for each in (PRE_TRAINED, FINE_TUNED))
            ]
            return synthetic_row(rows, augmentation, both or STRATEGIES, sources)

        return find

    return [
        _real(augmentation),
        Column(f"{short}+Syn(PT)", of(PRE_TRAINED), augmentation),
        Column(f"{short}+Syn(FT)", of(FINE_TUNED), augmentation),
    ]


def strategy_columns(augmentation: str) -> list[Column]:
    """Of Table 5: the ways of training on synthetic images."""
    named = {"combined": "combined", "rsp": "RSP", "two_phase": "Two-Phase"}
    ours = [_synthetic(heading, augmentation, (strategy,)) for strategy, heading in named.items()]
    return [_real(augmentation), *ours]


def cell(column: Column, rows: Sequence[Row]) -> tuple[str, float | None]:
    """The text of a cell, and its gain in points, as a share; None where there is nothing to compare with."""
    found = column.find(rows)
    if found is None:
        return "-", None
    base = None if column.base is None else real_row(rows, column.base)
    if base is None:
        return points(found.mean), None
    gain = found.mean - base.mean
    return f"{points(found.mean)} ({points(gain, signed=True)})", gain


def paper_table(title: str, columns: Sequence[Column], models: dict[str, list[Row]]) -> Table | None:
    """A table with a row a backbone and, where there are several, their average gains.

    Returns:
        The table; None where no column with synthetic images has an arm.
    """
    cells = {model: [cell(column, rows) for column in columns] for model, rows in models.items()}
    filled = [
        any(row[place][0] != "-" for row in cells.values()) for place, column in enumerate(columns) if column.base
    ]
    if not any(filled):
        return None
    table = Table(title=title)
    for heading in ("Model", *(column.heading for column in columns)):
        table.add_column(heading, justify="left" if heading == "Model" else "right", overflow="fold")
    for model, row in cells.items():
        table.add_row(model, *(text for text, _ in row))
    if len(cells) > 1:
        gains = [[gain for _, gain in column if gain is not None] for column in zip(*cells.values(), strict=True)]
        averages = [f"({points(sum(known) / len(known), signed=True)})" if known else "-" for known in gains]
        table.add_row("Average", *averages)
    return table


def read_models(run: Path) -> dict[str, list[Row]]:
    """The arms of each backbone of a finished comparison, the first backbone first.

    Raises:
        DataError: the run has no finished comparison, or a table names no known arm.
    """
    results = run / "results"
    models = {_first_backbone(run): _rows(results / "table.csv")}
    for path in sorted(results.glob("*/table.csv")):
        models[path.parent.name] = _rows(path)
    return models


def _rows(path: Path) -> list[Row]:
    try:
        parsed = [(parse_arm(row["arm"]), row.get("augmentation"), float(row["mean"])) for row in read_table(path)]
    except (KeyError, ValueError) as error:
        raise DataError(f"{path} cannot be used", why=str(error), do="run `mvc classify` again") from error
    return [Row(arm, named or augmentation_of(arm, "default"), mean) for arm, named, mean in parsed]


def _first_backbone(run: Path) -> str:
    """From a result of a classifier; those of several data seeds or folds lie in runs of their own below this one."""
    for path in [*files_like(run, "results/*-seed*.json"), *files_like(run, "*/results/*-seed*.json")]:
        row: Any = read_json(path)
        if isinstance(row, dict) and row.get("backbone"):
            return str(row["backbone"])
    return "classifier"


def print_paper_tables(run: Path, console: Console | None = None) -> None:
    """Print each of the paper's tables that the arms of a run fill with at least one column of synthetic images.

    Tables 4 and 5 are about AutoAugment in the paper; without synthetic images under it they are about the default
    augmentation.

    Args:
        run: the run folder.
        console: where to print; standard output when absent.

    Raises:
        DataError: the run has no finished comparison.
    """
    models, console = read_models(run), console or wide_console()
    rows = [row for found in models.values() for row in found]
    under = {row.augmentation for row in rows if row.arm.uses_synthetic}
    augmentation = "autoaugment" if "autoaugment" in under else "default"
    tables = [
        paper_table("as Tables 1 to 3 of the paper: test accuracy, per cent", main_columns(), models),
        paper_table("as Table 4: pre-trained (PT) and fine-tuned (FT) model", source_columns(augmentation), models),
        paper_table("as Table 5: strategies of training", strategy_columns(augmentation), models),
    ]
    shown = [table for table in tables if table is not None]
    for table in shown:
        console.print(table)
    if not shown:
        console.print("the paper's tables need an arm with synthetic images; none was trained", highlight=False)
