"""Rows of texts through a chain: each text column for itself, and the augmented rows with where they come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mvc.modality.chain import Augmented, Chain, Leaf
from mvc.modality.nodes import Sample
from mvc.modality.store import FILE, Store


@dataclass(frozen=True)
class TextRow:
    """What is augmented of a row.

    Attributes:
        index: number of the row in the whole table, from 0, which its draws depend on.
        texts: by column.
    """

    index: int
    texts: Mapping[str, str]


@dataclass(frozen=True)
class NewRow:
    """An augmentation of a row.

    Attributes:
        texts: by column; the original where that column has fewer augmentations than others.
        provenance: JSON values: how each new text was made.
    """

    texts: dict[str, str]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a row.

    Attributes:
        row: itself.
        new: its augmentations.
        refusals: why texts of it could not be augmented at all, by column.
    """

    row: TextRow
    new: list[NewRow]
    refusals: dict[str, str]


@dataclass
class Totals:
    """Counts over rows.

    Attributes:
        rows: rows in.
        augmented: rows with one augmentation at least.
        new: augmentations out.
        looked_at: augmentations that were asked for, the dropped ones included.
        dropped: of those, by what spoke against them.
        refused: number and reason of rows of which a text could not be augmented, in their order.
        seconds: that it took.
    """

    rows: int = 0
    augmented: int = 0
    new: int = 0
    looked_at: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, str]] = field(default_factory=list)
    seconds: float = 0.0

    def facts(self) -> dict[str, Any]:
        """As JSON values; shares are of the augmentations that were asked for."""
        return {
            "rows": self.rows,
            "augmented rows": self.augmented,
            "augmentations": self.new,
            "looked at": self.looked_at,
            "dropped": dict(self.dropped),
            "share dropped": {why: round(count / self.looked_at, 4) for why, count in self.dropped.items()},
            "rows not augmented": [[number, why] for number, why in self.refused],
            "seconds": round(self.seconds, 2),
            "seconds an augmentation": round(self.seconds / max(self.new, 1), 4),
        }


def augment_rows(
    chain: Chain, rows: Sequence[TextRow], method: str, seed: int, max_characters: int, store: Store, totals: Totals
) -> list[Outcome]:
    """Augment some rows of a table.

    A row with several text columns gets as many augmentations as the column that has most of them: in the j-th each
    column has its own j-th augmentation, and columns that have run out keep their text.

    Args:
        chain: text -> text.
        rows: some rows; what is made of one does not depend on the others.
        method: name for the provenance.
        seed: randomness as in `Chain.augment`; the part of a sample is its column.
        max_characters: longer texts are refused.
        store: where intermediate outputs are kept.
        totals: counted up.

    Raises:
        EnvironmentFault: a step lacks what it needs.
        Stopped: a signal asked for a stop; finished batches are in the store.
    """
    refusals = {row.index: _refusals(row, max_characters) for row in rows}
    samples = [
        Sample(row.index, text, column)
        for row in rows
        for column, text in row.texts.items()
        if column not in refusals[row.index]
    ]
    found = {(one.sample.index, one.sample.part): one for one in chain.augment(samples, seed, store)}
    names = [level.step.name for level in chain.levels]
    outcomes = []
    for row in rows:
        own = {column: found[row.index, column] for column in row.texts if (row.index, column) in found}
        why = refusals[row.index]
        why |= {column: one.refusal for column, one in own.items() if one.refusal is not None}
        outcomes.append(Outcome(row, _new_rows(row, own, names, method, seed), why))
        _count(totals, outcomes[-1], own)
    return outcomes


def _refusals(row: TextRow, max_characters: int) -> dict[str, str]:
    """Why texts of a row are not even begun with, by column."""
    found = {}
    for column, text in row.texts.items():
        if not text.strip():
            found[column] = "the text is empty"
        elif len(text) > max_characters:
            found[column] = f"the text has {len(text):,} characters, more than max_characters={max_characters:,}"
    return found


def _new_rows(row: TextRow, own: Mapping[str, Augmented], names: Sequence[str], method: str, seed: int) -> list[NewRow]:
    made = []
    for number in range(max((len(one.leaves) for one in own.values()), default=0)):
        leaves = {column: one.leaves[number] for column, one in own.items() if number < len(one.leaves)}
        texts = {column: str(leaves[column].value) if column in leaves else text for column, text in row.texts.items()}
        columns = {column: _steps(leaf, names) for column, leaf in leaves.items()}
        made.append(
            NewRow(texts, {"method": method, "row": row.index + 1, "number": number + 1, "seed": seed, "made": columns})
        )
    return made


def _steps(leaf: Leaf, names: Sequence[str]) -> dict[str, Any]:
    """The way to a new text: which branch, and what each step did; texts on the way stand there as they were."""
    steps = []
    for place, (name, output) in enumerate(zip(names, leaf.trail, strict=True)):
        between = {"text": output.value} if isinstance(output.value, str) and place + 1 < len(names) else {}
        facts = {key: value for key, value in output.facts.items() if key != FILE}
        steps.append(
            {"step": name, **facts, **between, **{key: output.facts[key] for key in (FILE,) if key in output.facts}}
        )
    return {"branch": list(leaf.path), "steps": steps}


def _count(totals: Totals, outcome: Outcome, own: Mapping[str, Augmented]) -> None:
    totals.rows += 1
    totals.augmented += bool(outcome.new)
    totals.new += len(outcome.new)
    for one in own.values():
        if one.refusal is None:
            totals.looked_at += one.looked_at
            totals.dropped.update(one.dropped)
    several = len(outcome.row.texts) > 1
    totals.refused += [
        (outcome.row.index + 1, f"{column}: {why}" if several else why) for column, why in outcome.refusals.items()
    ]
