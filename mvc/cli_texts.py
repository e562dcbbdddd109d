"""The commands of `mvc` that are about texts; `cli.py` adds them to the others."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Annotated

import typer

from mvc.errors import ConfigError


def augment(
    method: Annotated[
        str,
        typer.Argument(metavar="METHOD", help="back_speech, back_imagination, back_translation, eda or rewriting."),
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE] [KEY=VALUE]...",
            help="A .csv, .tsv or .jsonl table (standard input when absent); then settings such as speech.voice=slt.",
            show_default=False,
        ),
    ] = None,
    text: Annotated[
        list[str] | None, typer.Option("--text", metavar="COLUMN", help="Column to augment (default text); repeatable.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write there; else to standard output.")
    ] = None,
    form_in: Annotated[str | None, typer.Option("--from", metavar="csv|tsv|jsonl", help="Form of the input.")] = None,
    form_out: Annotated[str | None, typer.Option("--to", metavar="csv|tsv|jsonl", help="Form of the output.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Another seed gives other augmentations.")] = 0,
    only_new: Annotated[bool, typer.Option("--only-new", help="Leave the rows themselves out.")] = False,
    limit: Annotated[int | None, typer.Option("--limit", metavar="N", min=1, help="Only the first N rows.")] = None,
    work: Annotated[
        Path | None,
        typer.Option(
            "--work", metavar="FOLDER", help="Keeps intermediate outputs, to go on from; OUT.work with --out."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")] = False,
    summary: Annotated[Path | None, typer.Option("--summary", metavar="FILE", help="Write the counts there.")] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="auto|cpu|cuda|mps", help="Where models compute.")
    ] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the settings and stop.")] = False,
) -> None:
    """Augment a table of texts: through speech, images, another language, or by editing words."""
    from mvc.augment_command import Job, run_augment, settings_of
    from mvc.config_file import to_yaml

    given = arguments or []
    files = [one for one in given if "=" not in one or Path(one).is_file()]
    if len(files) > 1:
        raise ConfigError(f"two tables were given: {files[0]} and {files[1]}", do="give one; settings are KEY=VALUE")
    settings = settings_of(method, [one for one in given if one not in files])
    if dry_run:
        print(to_yaml(settings), end="")
        return
    from mvc.devices import pick_device
    from mvc.modality.methods import text_chain
    from mvc.stopping import watching

    source = None if not files or files[0] == "-" else Path(files[0])
    kept = work or (None if out is None else out.with_name(f"{out.name}.work"))
    columns = text or ["text"]
    job = Job(settings, source, out, columns, form_in, form_out, seed, kept, limit, not only_new, overwrite, summary)
    with watching():
        run_augment(job, text_chain(settings, pick_device(device)))


def texts(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[EXPERIMENT] [KEY=VALUE]...",
            help="An experiment file, a shipped name or a run folder; then changes such as data.shots=10.",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="FOLDER", help="Folder with train, validation and test tables.")
    ] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Classifiers trained at once; sets classify.jobs.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the resolved experiment and stop.")] = False,
) -> None:
    """Compare classifiers of texts, with and without augmented texts, and say whether those helped."""
    from mvc.config_file import to_yaml
    from mvc.text_arguments import resolve_texts

    given = [*(arguments or []), *([] if jobs is None else [f"classify.jobs={jobs}"])]
    experiment = resolve_texts(given, data)
    if dry_run:
        print(to_yaml(experiment), end="")
        return
    from mvc.stopping import watching

    stage = import_module("mvc.classify.text_stage")  # by name, because the library imports no app
    with watching():
        stage.run_texts(Path(experiment.run.dir), experiment)
    stage.print_texts(Path(experiment.run.dir))
    print(f"results: {Path(experiment.run.dir) / 'results' / 'table.csv'}")
