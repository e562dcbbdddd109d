"""What the filters refused, and would refuse of real images: counts as texts, and refused images to look at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from mvc.dataset import load_index
from mvc.errors import DataError
from mvc.storage import read_json
from mvc.synthetic import REJECTED, SUMMARY, SyntheticRow, read_rejected, rejected_folder

from .pictures import BLOCKS, GAP, data_uri, square_sides, strip
from .sections import class_words, percent, reading, require

COLUMNS = 12
"""Refused images shown for each reason."""
SURPLUS = "surplus"
"""Reason of images that nothing is wrong with: an earlier draw filled their place."""
ANY = "any"
"""All filters together, among the shares of real images that they would refuse."""

_ABSENT = "No filters yet: no synthetic set has been judged."
_COPY = "copy of a training image"


@dataclass(frozen=True)
class Filters:
    """Counts of a judged set.

    Attributes:
        sentence: images wanted, drawn and accepted.
        lacking: what could not be filled, in words; empty if nothing.
        reasons: (reason, images refused, their share of those drawn, share of held-out real images refused).
        sources: (source, wanted, drawn, accepted); empty for a single source.
        held_out: real images that the last column of `reasons` was counted on.
    """

    sentence: str
    lacking: str
    reasons: list[tuple[str, str, str, str]]
    sources: list[tuple[str, str, str, str]]
    held_out: int


@dataclass(frozen=True)
class Refused:
    """Images that were refused for one reason first.

    Attributes:
        reason: the first one.
        note: how many there are, and what else was wrong with them.
        uri: the first of them as a data: address; empty where none has a picture. For copies of training images
            there is a second row, with what they are copies of.
        alt: what the picture shows.
        width, height: of the picture, in pixels.
    """

    reason: str
    note: str
    uri: str
    alt: str
    width: int
    height: int


def read_filters(run: Path) -> Filters:
    """The counts of run/synthetic/summary.json.

    Raises:
        DataError: no set has been judged, or the file cannot be used.
    """
    path = run / "synthetic" / SUMMARY
    require(path, _ABSENT)
    summary, words = read_json(path), class_words(run)
    with reading(path):
        lacking = [f"{count} of {words.get(name, name)}" for name, count in summary["shortfall"].items()]
        by_source = summary["by_source"]
        return Filters(
            sentence=_sentence(summary),
            lacking=f"Images that are lacking, after all attempts: {', '.join(lacking)}." if lacking else "",
            reasons=_reasons(summary),
            sources=[
                (BLOCKS.get(source, source), *(str(said[key]) for key in ("wanted", "drawn", "accepted")))
                for source, said in (by_source.items() if len(by_source) > 1 else ())
            ],
            held_out=int(summary["held_out"]),
        )


def _sentence(summary: dict[str, Any]) -> str:
    text = f"{summary['accepted']} of {summary['wanted']} images wanted are accepted; {summary['drawn']} were drawn"
    spare = summary["rejected"].get(SURPLUS, 0)
    return f"{text}, {spare} of them to spare." if spare else f"{text}."


def _reasons(summary: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """Most frequent reasons first, then filters that refused nothing, last all of them together."""
    counts = {reason: int(count) for reason, count in summary["rejected"].items() if reason != SURPLUS}
    shares: dict[str, float] = summary["false_rejects"]
    order = sorted({*counts, *shares} - {ANY}, key=lambda reason: (-counts.get(reason, 0), reason))
    counts[ANY] = sum(counts.values())
    rows = []
    for reason in (*order, ANY) if order else ():
        count = counts.get(reason, 0)
        real = percent(float(shares[reason])) if reason in shares else "–"
        rows.append((reason, str(count), percent(count / max(1, int(summary["drawn"]))), real))
    return rows


def read_refused(run: Path, background: str) -> list[Refused]:
    """The first refused images of each reason, most frequent reasons first; images to spare are not among them.

    Args:
        run: the run folder.
        background: colour behind transparent pixels of real images.

    Raises:
        DataError: no set has been judged, or a file cannot be used.
    """
    require(run / "synthetic" / SUMMARY, _ABSENT)
    rows = read_rejected(run)
    with reading(run / "synthetic" / REJECTED):
        groups: dict[str, list[SyntheticRow]] = {}
        for row in rows:
            groups.setdefault(row["reasons"][0], []).append(row)
        groups.pop(SURPLUS, None)
        order = sorted(groups, key=lambda reason: (-len(groups[reason]), reason))
        return [_refused(run, reason, groups[reason], background) for reason in order]


def _refused(run: Path, reason: str, rows: Sequence[SyntheticRow], background: str) -> Refused:
    there = [row for row in rows if (rejected_folder(run) / row["file_name"]).is_file()][:COLUMNS]
    also = Counter(other for row in rows for other in row["reasons"][1:])
    more = f"; also {', '.join(f'{other}: {count}' for other, count in also.most_common())}" if also else ""
    counted = f"{len(rows)} image{'s' if len(rows) != 1 else ''}"
    note = f"{counted}{more}" if there else f"{counted} without a picture{more}"
    if not there:
        return Refused(reason, note, "", "", 0, 0)
    shown = [[rejected_folder(run) / row["file_name"] for row in there]]
    alt = f"{len(there)} refused: {reason}"
    if reason == _COPY and (originals := _originals(run, there)):
        shown.append(originals)
        alt += ", and the training images below them"
    sides = square_sides(shown[0][0])
    lines = [strip(paths, len(there), sides, background) for paths in shown]
    height = len(lines) * (sides[1] + GAP) - GAP
    picture = Image.new("RGBA", (lines[0].width, height))
    for number, line in enumerate(lines):
        picture.paste(line, (0, number * (sides[1] + GAP)))
    return Refused(reason, note, data_uri(picture), alt, picture.width, height)


def _originals(run: Path, rows: Sequence[SyntheticRow]) -> list[Path]:
    """The nearest training image of each row; none if one of them is not known or gone."""
    try:
        dataset = load_index(run)
        paths = {record.id: dataset.image_path(record) for record in dataset.split("train")}
        found = [paths[row["scores"]["nearest_train_id"]] for row in rows]
    except (DataError, KeyError):
        return []
    return found if all(path.is_file() for path in found) else []
