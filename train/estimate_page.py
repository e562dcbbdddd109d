"""How an estimate is printed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvc.disk import size_text

if TYPE_CHECKING:
    from .estimate import Estimate


def duration_text(seconds: float) -> str:
    """Seconds in words: "0.25 s", "41 s", "12 min 5 s", "3 h 20 min"."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _table(title: str) -> Table:
    table = Table(title=escape(title), title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    return table


def print_estimate(estimate: Estimate, console: Console | None = None) -> None:
    """Print the tables of parameters, memory, disk and time.

    Args:
        estimate: what to print.
        console: where; standard output when absent.
    """
    screen = console or Console()
    for table in (_counts(estimate), _memory(estimate), _disk(estimate), _time(estimate)):
        screen.print(table)


def _counts(estimate: Estimate) -> Table:
    table = _table(str(estimate.run))
    table.add_row("parameters of the UNet", f"{estimate.parameters:,}")
    table.add_row("of them trained", f"{estimate.learnt:,} ({estimate.learnt / estimate.parameters:.1%})")
    table.add_row("training images", f"{estimate.training:,}")
    table.add_row("synthetic images, previews included", f"{estimate.synthetic:,}")
    return table


def _memory(estimate: Estimate) -> Table:
    memory, table = estimate.memory, _table(f"memory on {estimate.device}")
    for name, size in vars(memory).items():
        table.add_row({"average": "moving average"}.get(name, name), size_text(size))
    table.add_row("together, by formula", size_text(memory.total))
    table.add_section()
    whole = "" if estimate.device.startswith("cuda") else ", whole process"
    peak = "does not fit" if estimate.pace is None else f"{estimate.pace.peak:.1f} GiB"
    table.add_row(f"peak of {_steps(estimate)} steps{whole}", peak)
    if estimate.available is not None:
        table.add_row("available", size_text(estimate.available))
    return table


def _steps(estimate: Estimate) -> str:
    return "the" if estimate.pace is None else str(len(estimate.pace.steps))


def _disk(estimate: Estimate) -> Table:
    table = _table("disk")
    for name, size in estimate.disk.items():
        table.add_row(name, size_text(size))
    table.add_section()
    table.add_row("together", size_text(sum(estimate.disk.values())))
    table.add_row("in the run folder already", size_text(estimate.there))
    enough = "" if estimate.to_come <= estimate.free else " (too little)"
    table.add_row("free", f"{size_text(estimate.free)}{enough}")
    return table


def _time(estimate: Estimate) -> Table:
    table = _table("time (without captions and classifiers)")
    if estimate.pace is not None:
        steps = estimate.pace.steps
        table.add_row("first step", duration_text(estimate.pace.first))
        spread = f"{duration_text(min(steps))} to {duration_text(max(steps))}"
        table.add_row(f"a step (median of {len(steps)}; {spread})", duration_text(estimate.pace.step))
    if estimate.images is not None:
        table.add_row("a synthetic image", duration_text(estimate.images.draw))
    elif estimate.pace is not None:
        table.add_row("a synthetic image", "does not fit; lower generate.batch_size")
    table.add_section()
    for name, seconds in estimate.seconds.items():
        table.add_row(name, duration_text(seconds))
    table.add_row("together", duration_text(sum(estimate.seconds.values())))
    return table
