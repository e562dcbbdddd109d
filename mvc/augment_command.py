"""`mvc augment`: a table of texts in, the same with augmented rows out, as files or in a shell pipe."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from mvc.augment_rows import TextRow, Totals, augment_rows
from mvc.config_augment import METHODS, AugmentSection
from mvc.config_file import Marks, apply_overrides
from mvc.config_schema import build
from mvc.errors import ConfigError, DataError
from mvc.modality.chain import Chain
from mvc.modality.methods import say_estimate
from mvc.modality.store import Store
from mvc.progress import Meter, meter, say
from mvc.storage import exclusive, write_json
from mvc.table_writer import RowWriter
from mvc.tables import Form, Row, Rows, form_of, read_rows, require_columns, text_of
from mvc.walk import printable

PROVENANCE = "mvc_provenance"
"""Column that is added: where a row comes from."""
IMAGES = "back_captioning"
SHOWN = 3
"""Rows that could not be augmented whose reasons are shown."""


@dataclass(frozen=True)
class Job:
    """What the command was asked for.

    Attributes:
        settings: the method and its settings.
        source: the table; None for standard input.
        target: where to write; None for standard output.
        text_columns: columns to augment.
        form_in, form_out: csv, tsv or jsonl; None takes that of the file's name, or the input's.
        seed: of all draws.
        work: folder of intermediate outputs; None keeps none.
        limit: first rows only; None for all.
        originals: write the rows themselves too, before their augmentations.
        overwrite: replace an output that is there.
        summary: JSON file for the counts; None writes none.
    """

    settings: AugmentSection
    source: Path | None
    target: Path | None
    text_columns: Sequence[str]
    form_in: str | None = None
    form_out: str | None = None
    seed: int = 0
    work: Path | None = None
    limit: int | None = None
    originals: bool = True
    overwrite: bool = False
    summary: Path | None = None


def settings_of(method: str, overrides: Sequence[str]) -> AugmentSection:
    """The settings that a command line describes.

    Args:
        method: one of METHODS.
        overrides: such as "speech.voice=slt".

    Raises:
        ConfigError: the method is not known or is for images, or a key or value is wrong.
    """
    if method == IMAGES:
        raise ConfigError(
            f"{IMAGES} is for images",
            why="this command augments tables of texts",
            do="mvc generate --data FOLDER 'generate.sources={back_captioning: 1.0}'",
        )
    if method not in METHODS:
        raise ConfigError(f"there is no method {printable(method)}", do=f"give one of {', '.join(METHODS)}")
    content: dict[str, Any] = {}
    marks: Marks = {}
    apply_overrides(content, marks, list(overrides))
    if "method" in content:
        raise ConfigError("the method is given twice", do="leave method=... out")
    return build(AugmentSection, {**content, "method": method}, marks, "command line")


def run_augment(job: Job, chain: Chain) -> Totals:
    """Augment a table.

    A file appears whole or not at all; standard output gets each batch as it is made. Rows that cannot be augmented
    are told and kept.

    Args:
        job: what to do.
        chain: of its settings.

    Raises:
        ConfigError: a form is not known, or the output is there.
        DataError: the table or its columns cannot be used, or not one row could be augmented.
        EnvironmentFault: a model, program or package is missing, or the disk is full.
        Stopped: a signal asked for a stop; with a work folder the same command goes on where it was.
    """
    form_in = form_of(job.source, job.form_in)
    form_out = form_of(job.target, job.form_out or (form_in if job.target is None else None))
    count = None if job.source is None else _counted(job, form_in)
    rows = read_rows(job.source or sys.stdin.buffer, form_in)
    columns = _columns_out(rows, job)
    totals, start = Totals(), time.monotonic()
    with (
        _working(job.work) as store,
        RowWriter(job.target or sys.stdout.buffer, form_out, columns, job.overwrite) as writer,
        _shown(count) as shown,
    ):
        for chunk in _chunks(islice(rows, job.limit), job.settings.batch_size):
            writer.write(_written(job, chain, chunk, store, totals))
            if shown is not None:
                shown.advance(len(chunk))
            if writer.reader_gone:
                return totals
        totals.seconds = time.monotonic() - start
        if totals.rows and not totals.new:
            raise DataError(f"not one of {totals.rows} rows could be augmented", why=_reason(totals), do="see above")
    _tell(job, totals)
    return totals


def _counted(job: Job, form: Form) -> int:
    """Rows of a file, all of which are looked at before the first is augmented: a wrong line is said now."""
    assert job.source is not None
    rows = read_rows(job.source, form)
    if rows.columns is not None:
        require_columns(rows.columns, job.text_columns)
    count, asks = 0, job.settings.method == "rewriting" and job.settings.rewriting.rewriter == "chat"
    texts: list[str] = []
    for row in islice(rows, job.limit):
        count += 1
        own = _texts(row, job.text_columns) if asks else {}
        texts += [text for text in own.values() if text.strip()] if not isinstance(own, str) else []
    if not count:
        raise DataError(f"{job.source} has no rows", do="give a table with rows")
    if asks:
        say_estimate("chat", job.settings.chat, texts, job.settings.rewriting.rewrites)
    return count


def _columns_out(rows: Rows, job: Job) -> list[str] | None:
    """Columns of the output, where the input has any; those of JSON Lines differ from row to row."""
    if rows.columns is None:
        return None
    require_columns(rows.columns, job.text_columns)
    _require_new(rows.columns)
    return [*rows.columns, PROVENANCE]


def _require_new(columns: Iterable[str]) -> None:
    if PROVENANCE in columns:
        raise DataError(
            f"the table has a column {PROVENANCE}",
            why="it was augmented before, and what is made of augmentations is no longer of a real text",
            do="give the table as it was, or rename the column",
        )


def _working(folder: Path | None) -> AbstractContextManager[Store]:
    """The store of intermediate outputs, locked."""
    if folder is None:
        return nullcontext(Store(None))
    return _Locked(folder)


class _Locked(AbstractContextManager[Store]):
    def __init__(self, folder: Path) -> None:
        self._folder, self._lock = folder, exclusive(folder)

    def __enter__(self) -> Store:
        self._lock.__enter__()
        return Store(self._folder)

    def __exit__(self, *given: Any) -> None:
        self._lock.__exit__(*given)


def _shown(count: int | None) -> AbstractContextManager[Meter | None]:
    return nullcontext() if count is None else meter("augmenting", count, "rows")


def _chunks(rows: Iterable[Row], size: int) -> Iterator[list[tuple[int, Row]]]:
    numbered = enumerate(rows)
    while chunk := list(islice(numbered, size)):
        yield chunk


def _written(
    job: Job, chain: Chain, chunk: Sequence[tuple[int, Row]], store: Store, totals: Totals
) -> list[dict[str, Any]]:
    """The rows to write for a chunk: each row itself, if wished, and its augmentations."""
    texts = {number: _texts(row, job.text_columns) for number, row in chunk}
    usable = [TextRow(number, own) for number, own in texts.items() if not isinstance(own, str)]
    settings = job.settings
    done = augment_rows(chain, usable, settings.method, job.seed, settings.max_characters, store, totals)
    outcomes = {outcome.row.index: outcome for outcome in done}
    written: list[dict[str, Any]] = []
    for number, row in chunk:
        _require_new(row.values)
        if job.originals:
            written.append({**row.values, PROVENANCE: {"method": "original", "row": number + 1}})
        if number in outcomes:
            written += [{**row.values, **new.texts, PROVENANCE: new.provenance} for new in outcomes[number].new]
        else:
            totals.rows += 1
            totals.refused.append((number + 1, str(texts[number])))
    return written


def _texts(row: Row, columns: Sequence[str]) -> dict[str, str] | str:
    """The texts of a row by column, or in words why it has none."""
    try:
        return {column: text_of(row, column) for column in columns}
    except DataError as error:
        return error.what


def _reason(totals: Totals) -> str:
    if totals.refused:
        return f"of row {totals.refused[0][0]}, {totals.refused[0][1]}"
    most = totals.dropped.most_common(1)
    return f"{most[0][1]} of {totals.looked_at} new texts were dropped as '{most[0][0]}'" if most else ""


def _tell(job: Job, totals: Totals) -> None:
    """Say what was made, what was dropped and which rows could not be augmented."""
    rate = totals.seconds / max(totals.new, 1)
    say(
        f"augment: {totals.new} augmentations of {totals.augmented} of {totals.rows} rows by {job.settings.method} "
        f"in {totals.seconds:.1f} s, {rate:.2g} s each"
    )
    for why, count in totals.dropped.most_common():
        say(f"augment: {count} of {totals.looked_at} new texts ({count / totals.looked_at:.0%}) dropped: {why}")
    for number, why in totals.refused[:SHOWN]:
        say(f"augment: row {number} was not augmented: {printable(why)}")
    if len(totals.refused) > SHOWN:
        say(f"augment: and {len(totals.refused) - SHOWN} more rows were not")
    if job.work is not None:
        say(f"augment: intermediate outputs are kept in {job.work}; remove it if you do not need them")
    if job.summary is not None:
        write_json(job.summary, {"method": job.settings.method, "seed": job.seed, **totals.facts()})
