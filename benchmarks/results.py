"""What a benchmark found: tables to read, gates to pass, and how both are printed and handed on.

Every benchmark runs by itself as `python -m benchmarks.NAME`, prints its section and leaves with 1 if a gate is
missed; `python -m benchmarks.run` runs all of them and writes the page.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Gate:
    """A figure that has to stay within bounds; a figure that is not finite never does.

    Attributes:
        what: the figure in words.
        value: what was measured.
        low, high: the bounds, both allowed; None is no bound.
        unit: put behind the figures.
    """

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""

    @property
    def passed(self) -> bool:
        """Whether the figure is finite and within its bounds."""
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        return math.isfinite(self.value) and low <= self.value <= high

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        if self.low is not None and self.high is not None:
            return f"{self.low:g} to {self.high:g}{self.unit}"
        return f"at least {self.low:g}{self.unit}" if self.low is not None else f"at most {self.high:g}{self.unit}"

    def row(self) -> tuple[str, str, str, str]:
        """Cells for a table of gates."""
        return self.what, f"{self.value:.4g}{self.unit}", self.bounds, "ok" if self.passed else "FAIL"


@dataclass(frozen=True)
class Table:
    """A heading and rows of cells; all columns but the first are aligned to the right."""

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def markdown(self) -> str:
        """The table as Markdown that also reads well on a terminal."""
        widths = [max(len(row[column]) for row in (self.heading, *self.rows)) for column in range(len(self.heading))]

        def line(cells: Sequence[str]) -> str:
            padded = [cells[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(cells[1:], widths[1:], strict=True))]
            return f"| {' | '.join(padded)} |"

        rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
        return "\n".join([line(self.heading), line(rule), *(line(row) for row in self.rows)])


@dataclass(frozen=True)
class Section:
    """All that one benchmark has to say.

    Attributes:
        title: heading of the section.
        how: what is compared and how, in sentences.
        tables: figures.
        gates: what must hold.
        notes: what the figures mean, a sentence or two each.
    """

    title: str
    how: str
    tables: tuple[Table, ...]
    gates: tuple[Gate, ...]
    notes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all gates hold."""
        return all(gate.passed for gate in self.gates)

    def markdown(self) -> str:
        """The section's body, without its heading."""
        tables = [table.markdown() for table in self.tables]
        return "\n\n".join([self.how, *tables, *self.notes, gates_table(self.gates).markdown()])

    def to_json(self) -> str:
        """The section as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Section:
        """Inverse of `to_json`."""
        fields = json.loads(text)
        tables = (Table(tuple(one["heading"]), tuple(map(tuple, one["rows"]))) for one in fields["tables"])
        gates = (Gate(**one) for one in fields["gates"])
        return cls(fields["title"], fields["how"], tuple(tables), tuple(gates), tuple(fields["notes"]))


def gates_table(gates: Sequence[Gate]) -> Table:
    """A table of gates."""
    return Table(("gate", "measured", "allowed", ""), tuple(gate.row() for gate in gates))


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The options that all benchmarks have.

    Args:
        description: the module's docstring.
        rounds: default of `--rounds`.
    """
    options = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    options.add_argument("--rounds", type=int, default=rounds, help=f"interleaved rounds, {rounds} by default")
    options.add_argument("--json", type=Path, help="also write the section to this file")
    return options


def finish(section: Section, options: argparse.Namespace) -> int:
    """Print a section, write it where asked, and return the exit code: 1 if a gate is missed."""
    print(f"## {section.title}\n\n{section.markdown()}\n", flush=True)
    if options.json is not None:
        options.json.write_text(section.to_json())
    return int(not section.passed)
