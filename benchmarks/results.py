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
        aim_low, aim_high: narrower bounds that it is meant to keep. Between the two it is `short` of that, as on a busy
            machine, but passes.
    """

    what: str
    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    aim_low: float | None = None
    aim_high: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the figure is finite and within its bounds."""
        return _within(self.value, self.low, self.high)

    @property
    def bounds(self) -> str:
        """The bounds in words."""
        allowed = _in_words(self.low, self.high)
        aim = (
            "" if self.aim_low is None and self.aim_high is None else f" (aim {_in_words(self.aim_low, self.aim_high)})"
        )
        return f"{allowed}{self.unit}{aim}"

    @property
    def verdict(self) -> str:
        """`FAIL`, `short` of the aim, or `ok`."""
        if not self.passed:
            return "FAIL"
        return "ok" if _within(self.value, self.aim_low, self.aim_high) else "short"

    def row(self) -> tuple[str, str, str, str]:
        """Cells for a table of gates."""
        return self.what, f"{self.value:.4g}{self.unit}", self.bounds, self.verdict


def _within(value: float, low: float | None, high: float | None) -> bool:
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    return math.isfinite(value) and least <= value <= most


def _in_words(low: float | None, high: float | None) -> str:
    if low is not None and high is not None:
        return f"{low:g} to {high:g}"
    return f"at least {low:g}" if low is not None else f"at most {high:g}"


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
