"""The commands of `mvc` that are about CLIPs; `cli.py` adds them to the others."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer

from mvc import processes
from mvc.options import num_processes


def clip(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT] [KEY=VALUE]...",
            help="An experiment file, a shipped name or a run folder; then changes such as train.seeds=3.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="PAIRS", help="Captioned images: a folder, file or pattern.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved experiment and stop.")] = False,
    number: Annotated[
        int | None, num_processes("Train in N processes on this machine, one a GPU; the batch is shared.")
    ] = None,
) -> None:
    """Train a CLIP on captioned images, with and without paired augmentation, and compare retrieval."""
    from mvc.clip_arguments import resolve_clip
    from mvc.config_file import to_yaml

    experiment = resolve_clip(list(arguments or []), data)
    if dry_run:
        print(to_yaml(experiment), end="")
        return
    if number is not None and number > 1 and not processes.several():
        from mvc.launch import launch

        raise typer.Exit(launch(number, sys.argv[1:]))
    from mvc.stopping import watching

    run = Path(experiment.run.dir)
    with watching():
        import_module("mvc.train.clip_stage").run_clip(run, experiment)  # by name: the library imports no app
    import_module("mvc.train.clip_table").print_clips(run)
    print(f"results: {run / 'results' / 'table.csv'}")


def clip_evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A CLIP: folder, hub id or open_clip architecture.")],
    data: Annotated[
        str | None, typer.Option("--data", metavar="PAIRS", help="Captioned images to retrieve among.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="Of the captioned images.")] = "test",
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FOLDER", help="Class folders to classify without training.")
    ] = None,
    template: Annotated[
        list[str] | None, typer.Option("--template", metavar="TEXT", help="Prompt with {} for the class; repeatable.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Safetensors file for an architecture.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images or captions at once.")] = 64,
    device: Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where to compute.")] = "auto",
) -> None:
    """Measure a CLIP: retrieval among captioned images, zero-shot classification of class folders."""
    from mvc.stopping import watching

    module = import_module("mvc.train.clip_evaluation")
    with watching():
        module.print_evaluation(model, weights, data, split, classes, template, batch_size, device)


def join(word: Mapping[str, Any]) -> None:
    """Any process but 0: train with it."""
    import_module("mvc.train.clip_stage").join_clip(word)
