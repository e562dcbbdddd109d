"""Back-imagination on the embedded models' own little world: how much of a caption survives text -> image -> text.

    python -m benchmarks.back_imagination [--captions 200] [--out FOLDER]

Captions of printed characters that no training saw are drawn and captioned again, by the embedded models with the
settings that a user would give. It prints, as Markdown, the share of new captions in which each attribute is still the
same, what was dropped, and a few examples; for the whole method and for each of its ablations (Back-Modality, Table 5).
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from mvc.augment_rows import Outcome, TextRow, Totals, augment_rows
from mvc.config_augment import AugmentSection
from mvc.modality.methods import text_chain
from mvc.modality.store import Store
from mvc.tiny.evaluate import ATTRIBUTES, HELD_OUT_SEED, full_caption, read_attributes
from mvc.tiny.world import Character, draw_character

SETTINGS: dict[str, Any] = {"guidance_scale": 3.0, "images": 3, "captions": 3, "max_new_tokens": 24}
"""Guidance as the embedded model was measured with; 3 x 3 leaves, of which 5 are chosen."""
ARMS: dict[str, dict[str, Any]] = {
    "whole": {},
    "without multi-imagination": {"images": 1, "captions": 9},
    "without multi-captioning": {"images": 9, "captions": 1},
    "black and white kept": {"colour": False},
}


def characters(count: int) -> list[Character]:
    """Held-out characters, in their order."""
    return [draw_character(HELD_OUT_SEED, index) for index in range(count)]


def augment(own: Sequence[Character], changes: dict[str, Any], store: Store) -> tuple[list[Outcome], Totals]:
    """The round trip of the characters' captions."""
    settings = AugmentSection.model_validate({"method": "back_imagination", "imagination": {**SETTINGS, **changes}})
    chain, totals, outcomes = text_chain(settings, torch.device("cpu")), Totals(), list[Outcome]()
    rows = [TextRow(index, {"text": full_caption(character)}) for index, character in enumerate(own)]
    start = time.monotonic()
    for place in range(0, len(rows), 32):
        outcomes += augment_rows(chain, rows[place : place + 32], "back_imagination", 0, 1000, store, totals)
    totals.seconds = time.monotonic() - start
    return outcomes, totals


def kept(own: Sequence[Character], outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Share of new captions in which each attribute is that of the character."""
    right: Counter[str] = Counter()
    count = 0
    for character, outcome in zip(own, outcomes, strict=True):
        for new in outcome.new:
            count += 1
            said = read_attributes(new.texts["text"])
            for name in ATTRIBUTES:
                right[name] += said[name] == (character.word if name == "digit" else getattr(character, name))
    return {name: right[name] / max(count, 1) for name in ATTRIBUTES}


def row_of(name: str, own: Sequence[Character], outcomes: Sequence[Outcome], totals: Totals) -> str:
    """A line of the table."""
    shares = kept(own, outcomes)
    grey = totals.dropped["black and white"] / totals.looked_at
    repeats = (totals.dropped["same as another one"] + totals.dropped["same as the original"]) / totals.looked_at
    cells = [f"{100 * shares[one]:.1f} %" for one in ATTRIBUTES]
    counts = [f"{totals.augmented} of {totals.rows}", str(totals.new), f"{100 * grey:.0f} %", f"{100 * repeats:.0f} %"]
    return f"| {' | '.join([name, *cells, *counts, f'{totals.seconds / max(totals.new, 1):.2f}'])} |"


def main(arguments: list[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.back_imagination", description=__doc__)
    parser.add_argument("--captions", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder that keeps the images")
    given = parser.parse_args(arguments)
    own, examples = characters(given.captions), list[str]()
    print(
        f"| | {' | '.join(ATTRIBUTES)} | captions augmented | new | dropped: black and white | dropped: repeats "
        f"| s each |\n|{'---|' * (len(ATTRIBUTES) + 6)}"
    )
    for name, changes in ARMS.items():
        outcomes, totals = augment(own, changes, Store(given.out))
        print(row_of(name, own, outcomes, totals), flush=True)
        if not changes:
            examples = [
                f"- {outcome.row.texts['text']}\n  -> {'; '.join(new.texts['text'] for new in outcome.new[:2])}"
                for outcome in outcomes[:8]
            ]
    print("\n" + "\n".join(examples))


if __name__ == "__main__":
    main()
