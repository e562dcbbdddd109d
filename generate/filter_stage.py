"""The filter stage: judge the pool, put every image where it belongs, and say what was refused and what is lacking."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mvc.candidates import (
    CANDIDATES,
    Pool,
    find_image,
    open_pool,
    pool_of,
    put_in_place,
    read_candidates,
    whole_rows,
)
from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.errors import DataError
from mvc.progress import say
from mvc.storage import read_json, write_json, write_text
from mvc.synthetic import METADATA, REJECTED, SUMMARY, WANTED, Candidate, write_rows
from mvc.walk import printable

from .card import CARD, card_text, origin_of
from .judging import Judging, judge_pool, prepare_judging, verdict_facts
from .verdicts import SURPLUS, Judged

Wanted = Mapping[str, Mapping[str, int]]
"""Images wanted by source and class."""


def run_filter(run: Path, experiment: Experiment) -> None:
    """Publish the synthetic set of a run from its pool; nothing is drawn.

    Writes beside the images: summary.json (counts, thresholds, false-reject rates), rejected.jsonl, the data card
    README.md, and last train/metadata.jsonl, whose presence says that the set is complete.

    Args:
        run: the run folder, with a closed pool.
        experiment: sections run, data and filter, and licence and base of section model, are used.

    Raises:
        DataError: there is no pool, an image of it is gone or damaged, or no image is accepted; what was published
            before stays as it is.
        ConfigError: a filter cannot be set up.
        EnvironmentFault: an extractor is missing, or the place cannot be written.
        Stopped: a signal asked for a stop; what was seen of the images is kept.
    """
    pool = pool_of(run)
    rows = _whole_pool(pool)
    dataset = load_index(run)
    judging = prepare_judging(run, experiment, dataset, next(iter(rows.values()))["image_size"])
    said = judge_pool(judging, pool, rows.values())
    summary = {**count_pool(rows, said, read_json(pool.folder / WANTED)), **_facts(judging)}
    if not summary["accepted"]:
        raise DataError(
            f"the filters refuse all {len(rows)} images of {pool.folder}",
            why=_listed(summary["rejected"]),
            do="look at the images; fine-tune longer, or less where they are copies; or loosen the filters",
        )
    accepted = [row for name, row in rows.items() if not said[name].reasons]
    origin = origin_of(
        run, experiment.data.path, experiment.data.licence, experiment.model.base, experiment.model.licence
    )
    card = card_text(origin, dataset, list(rows.values()), accepted, summary)
    _publish(pool, rows, said, summary, card)
    _tell(summary)


def _whole_pool(pool: Pool) -> dict[str, Candidate]:
    """All rows of a finished pool by file name.

    Raises:
        DataError: it is not finished, or files are gone or damaged; the pool is opened then, to be filled again.
    """
    rows = read_candidates(pool) if (pool.folder / CANDIDATES).exists() else {}
    if not rows:
        raise DataError(f"{pool.folder} holds no finished pool of images", do="run `mvc generate`")
    whole = whole_rows(pool, rows.values())
    damaged = [name for name in sorted(rows) if name not in whole]
    if not damaged:
        return rows
    found = find_image(pool, damaged[0])
    more = f", and {len(damaged) - 1} more" if len(damaged) > 1 else ""
    open_pool(pool, whole)
    raise DataError(
        f"{found or pool.accepted / damaged[0]} is {'damaged' if found else 'missing'}{more}",
        why=f"{CANDIDATES} names it",
        do="run `mvc generate`: only what is missing is made",
    )


def _facts(judging: Judging) -> dict[str, Any]:
    """What the filters are, as JSON values."""
    return {
        "false_rejects": judging.false_rejects(),
        "held_out": len(judging.dataset.split("validation")),
        "thresholds": judging.fitted.thresholds,
        "extractor": judging.extractor.name,
        "clip": None if judging.clip is None else judging.clip.name,
    }


def count_pool(rows: Mapping[str, Candidate], said: Mapping[str, Judged], wanted: Wanted) -> dict[str, Any]:
    """Counts of a judged pool as JSON values: wanted = accepted + shortfall, in all, by class and by source.

    Args:
        rows: the pool by file name.
        said: verdicts by file name; an image with several reasons is counted under the first.
        wanted: images wanted by source and class.
    """
    targets: Counter[str] = Counter()
    for own in wanted.values():
        targets.update(own)
    found = [(row["source"], row["class_name"], said[name].reasons) for name, row in rows.items()]
    by_class = {
        name: _count(targets[name], [reasons for _, own, reasons in found if own == name]) for name in sorted(targets)
    }
    by_source = {
        source: _count(sum(own.values()), [reasons for kind, _, reasons in found if kind == source])
        for source, own in wanted.items()
    }
    shortfall = {name: own["wanted"] - own["accepted"] for name, own in by_class.items()}
    return {
        **_count(targets.total(), [reasons for *_, reasons in found]),
        "shortfall": {name: lacking for name, lacking in shortfall.items() if lacking},
        "by_class": by_class,
        "by_source": by_source,
    }


def _count(wanted: int, said: Sequence[Sequence[str]]) -> dict[str, Any]:
    refused = Counter(reasons[0] for reasons in said if reasons)
    accepted = len(said) - refused.total()
    return {"wanted": wanted, "drawn": len(said), "accepted": accepted, "rejected": dict(sorted(refused.items()))}


def _publish(
    pool: Pool, rows: Mapping[str, Candidate], said: Mapping[str, Judged], summary: Mapping[str, Any], card: str
) -> None:
    (pool.accepted / METADATA).unlink(missing_ok=True)
    put_in_place(pool, {name: not verdict.reasons for name, verdict in said.items()})
    judged = [{**row, **verdict_facts(said[name])} for name, row in rows.items()]
    write_rows(pool.folder / REJECTED, [row for row in judged if not row["accepted"]])
    write_json(pool.folder / SUMMARY, summary)
    write_text(pool.folder / CARD, card)
    # Last, because its presence says that the set is complete; an empty list has no type for `datasets`.
    kept = [{key: value for key, value in row.items() if key != "reasons"} for row in judged if row["accepted"]]
    write_rows(pool.accepted / METADATA, kept)


def _tell(summary: Mapping[str, Any]) -> None:
    refused = {reason: count for reason, count in summary["rejected"].items() if reason != SURPLUS}
    text = f", {sum(refused.values())} refused ({_listed(refused)})" if refused else ""
    say(f"filter: {summary['accepted']} of {summary['wanted']} images accepted, {summary['drawn']} drawn{text}")
    if not summary["shortfall"]:
        return
    table = Table(title="Lacking after all attempts; nothing was put in their place")
    for heading in ("class", "wanted", "accepted", "lacking", "refused"):
        table.add_column(heading)
    for name, lacking in summary["shortfall"].items():
        own = summary["by_class"][name]
        wanted, accepted = str(own["wanted"]), str(own["accepted"])
        table.add_row(escape(printable(name)), wanted, accepted, str(lacking), _listed(own["rejected"]))
    Console(stderr=True).print(table)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
