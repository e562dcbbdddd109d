"""The commands of `mvc` that are about texts; `cli.py` adds them to the others."""

from __future__ import annotations

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
