"""Arguments and options that several commands of `mvc` share."""

from __future__ import annotations

from typing import Annotated, Any

import typer

Arguments = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[EXPERIMENT] [KEY=VALUE]...",
        help="An experiment file, a shipped name or a run folder; then changes such as train.learning_rate=5e-5.",
        show_default=False,
    ),
]
Data = Annotated[str | None, typer.Option("--data", metavar="FOLDER", help="Folder of class folders with images.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the resolved experiment and stop.")]
Redo = Annotated[
    bool,
    typer.Option("--redo", help="Make stages whose settings or inputs changed again, and all after them."),
]
DataSeeds = Annotated[
    int | None,
    typer.Option(
        "--data-seeds", metavar="N", min=1, help="Whole runs with data.seed and the next ones, concluded together."
    ),
]
Folds = Annotated[
    int | None,
    typer.Option("--folds", metavar="K", min=2, help="Whole runs, each tested on one of K stratified folds."),
]


def num_processes(what: str) -> Any:
    """The option --num-processes, with help that says what the processes do."""
    return typer.Option("--num-processes", metavar="N", min=1, help=what, show_default=False)
