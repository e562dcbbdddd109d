"""Augmentations of labelled texts: made once for all subsets and arms of a comparison, and kept to be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.augment_rows import TextRow, Totals, augment_rows
from mvc.modality.chain import Chain
from mvc.modality.store import Store
from mvc.progress import meter
from mvc.storage import read_json, read_json_lines, sha256_json, write_json, write_json_lines

from .text_data import Texts

FOLDER, CACHE = "augmented", "cache/augmentations"
_CHUNK = 32


@dataclass(frozen=True)
class Extra:
    """Augmentations of some texts.

    Attributes:
        texts: of each text by its id, in the order in which they were chosen.
        facts: counts, shares dropped and seconds (`mvc.augment_rows.Totals.facts`).
        key: digest of all that they depend on.
    """

    texts: dict[int, list[tuple[str, ...]]]
    facts: dict[str, Any]
    key: str

    def of(self, texts: Texts, most: int | None = None) -> Texts:
        """The augmentations of some texts, with their labels; at most so many of each."""
        rows = [
            (new, label, own)
            for own, label in zip(texts.ids, texts.labels, strict=True)
            for new in self.texts.get(own, [])[:most]
        ]
        return Texts([new for new, _, _ in rows], [label for _, label, _ in rows], [own for _, _, own in rows])


def augmented(
    run: Path,
    name: str,
    split: str,
    chain: Chain,
    texts: Texts,
    columns: Sequence[str],
    method: str,
    seed: int,
    max_characters: int,
) -> Extra:
    """Take the augmentations of some texts from the run, or make them.

    run/augmented/NAME-SPLIT.jsonl has a row for each, with its provenance. What the steps made is kept by content, so
    that a killed run goes on where it was, and one more text costs that text.

    Args:
        run: the run folder.
        name: of the augmentation.
        split: of the texts.
        chain: text -> text.
        texts: what to augment.
        columns: names of their columns.
        method: for the provenance.
        seed: of the draws, which do not depend on which other texts are there.
        max_characters: longer texts are not augmented.

    Raises:
        EnvironmentFault: a model, program or package is missing, or the disk is full.
        Stopped: a signal asked for a stop.
    """
    path = run / FOLDER / f"{name}-{split}.jsonl"
    key = _key(chain, texts, columns, seed, max_characters)
    summary = path.with_suffix(".json")
    if not (summary.exists() and path.exists() and read_json(summary).get("key") == key):
        rows, totals = _make(run, name, chain, texts, columns, method, seed, max_characters)
        summary.unlink(missing_ok=True)
        write_json_lines(path, rows)
        write_json(summary, {"key": key, **totals.facts()})
    found: dict[int, list[tuple[str, ...]]] = {}
    for row in read_json_lines(path):
        found.setdefault(int(row["row"]), []).append(tuple(row["texts"]))
    return Extra(found, dict(read_json(summary)), key)


def _key(chain: Chain, texts: Texts, columns: Sequence[str], seed: int, max_characters: int) -> str:
    levels = [
        [level.step.identity, level.count, [one.name for one in level.filters], level.attempts]
        for level in chain.levels
    ]
    return sha256_json(
        [levels, chain.augmentations_per_sample, max_characters, seed, list(columns), texts.ids, texts.texts]
    )


def _make(
    run: Path,
    name: str,
    chain: Chain,
    texts: Texts,
    columns: Sequence[str],
    method: str,
    seed: int,
    max_characters: int,
) -> tuple[list[dict[str, Any]], Totals]:
    totals, store = Totals(), Store(run / CACHE)
    rows: list[dict[str, Any]] = []
    with meter(f"augmenting ({name})", len(texts), "texts") as shown:
        for chunk in _chunks(texts, columns):
            for outcome in augment_rows(chain, chunk, method, seed, max_characters, store, totals):
                rows += [
                    {
                        "row": outcome.row.index,
                        "texts": [new.texts[column] for column in columns],
                        "provenance": new.provenance,
                    }
                    for new in outcome.new
                ]
            shown.advance(len(chunk))
        totals.seconds = shown.seconds
    return rows, totals


def _chunks(texts: Texts, columns: Sequence[str]) -> Iterator[list[TextRow]]:
    rows = [
        TextRow(own, dict(zip(columns, text, strict=True))) for own, text in zip(texts.ids, texts.texts, strict=True)
    ]
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]
