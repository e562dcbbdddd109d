"""What `mvc doctor` says of one thing, and how all of it is printed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLOURS = {"ok": "green", "missing": "dim", "warning": "yellow", "broken": "red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what.
        found: version, size or reason.
        state: `missing` is optional and not there; `broken` is needed and unusable.
        do: what the user can do about it; empty if nothing has to be done.
    """

    subject: str
    found: str
    state: Literal["ok", "missing", "warning", "broken"] = "ok"
    do: str = ""


def is_broken(findings: dict[str, list[Finding]]) -> bool:
    """Whether something that is needed cannot be used."""
    return any(finding.state == "broken" for group in findings.values() for finding in group)


def print_findings(findings: dict[str, list[Finding]], console: Console) -> None:
    """Print findings as one table a heading, and a last line."""
    for heading, group in findings.items():
        table = Table(title=heading, title_justify="left", show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for finding in group:
            state = f"[{_COLOURS[finding.state]}]{finding.state}[/{_COLOURS[finding.state]}]"
            text = finding.found + (f"\ndo: {finding.do}" if finding.do else "")
            table.add_row(escape(finding.subject), state, escape(text))
        console.print(table)
    broken = [finding.subject for group in findings.values() for finding in group if finding.state == "broken"]
    if broken:
        console.print(f"[red]broken:[/red] {escape(', '.join(broken))}", highlight=False)
    else:
        console.print("[green]everything that is needed works[/green]")
