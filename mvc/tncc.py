"""TNCC, textual entailment from Crisscrossed Captions (Back-Modality, appendix), built from the published files.

`python -m mvc.tncc --scores sts_val.csv --captions captions_val2014.json --out FOLDER`; `mvc.tncc_files` says what the
files hold.

The paper: pairs with a score above 4 are entailment (label 1), those below 1 are not (label 0), others are dropped;
3,600 pairs to train with, 1,200 to validate, 1,560 to test. How they were chosen and parted it does not say. Here: all
pairs of the rarer label and as many of the other, in the paper's proportions, and pairs that are linked by an image,
directly or through others, are in one split.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.errors import ConfigError, DataError, MvcError
from mvc.linked_splits import linked_groups, part_groups, whole_shares
from mvc.randomness import numpy_generator
from mvc.storage import publish_folder, sha256_file
from mvc.table_writer import RowWriter
from mvc.tncc_files import Caption, Pair, read_captions, read_scores
from mvc.walk import counted, printable

SPLITS = ("train", "validation", "test")
PAPER_SIZES = (3600, 1200, 1560)
LABELS = {1: "entailment", 0: "not entailment"}
ABOVE, BELOW = 4.0, 1.0
"""Scores above the one are label 1, those below the other label 0; the two themselves are dropped."""

COLUMNS = (
    "sentence1",
    "sentence2",
    "label",
    "score",
    "sampling_method",
    "caption1_id",
    "caption2_id",
    "image1_id",
    "image2_id",
)


@dataclass(frozen=True)
class Built:
    """The data set.

    Attributes:
        splits: rows with `COLUMNS` by the names of `SPLITS`.
        counts: what became of the pairs that were read: "read", "between" the thresholds, "repeated", "without text",
            "balanced away" and, with exact sizes, "not needed".
        exact: whether the sizes are those asked for, and not just their proportions.
    """

    splits: dict[str, list[dict[str, Any]]]
    counts: dict[str, int]
    exact: bool


def label_of(score: float) -> int | None:
    """1 above a score of 4, 0 below 1, else None: the pair is dropped."""
    return 1 if score > ABOVE else 0 if score < BELOW else None


def build(
    pairs: Sequence[Pair], captions: Mapping[int, Caption], seed: int, sizes: tuple[int, int, int] | None
) -> Built:
    """Choose, balance and part the pairs; their order and that of the captions do not matter.

    Args:
        pairs: of `read_scores`; of a pair that comes twice, in either order, the first counts.
        captions: of `read_captions`.
        seed: of the draws below.
        sizes: pairs of each split; where there are fewer pairs than that, proportions. None is proportions of
            `PAPER_SIZES`.

    Returns:
        The data set; randomness: (seed, "tncc balance", label), (seed, "tncc groups") and (seed, "tncc order", split).

    Raises:
        ConfigError: a size is below 1.
        DataError: a label has no pair, links do not allow the sizes, or a split would be empty.
    """
    if sizes is not None and min(sizes) < 1:
        raise ConfigError(
            f"--sizes {' '.join(map(str, sizes))}: a size is below 1", do="give three whole numbers from 1"
        )
    chosen, counts = _usable(pairs, captions)
    fewest = min(map(len, chosen.values()))
    counts["balanced away"] = sum(map(len, chosen.values())) - 2 * fewest
    exact = sizes is not None and sum(sizes) <= 2 * fewest
    total = sum(sizes) if sizes is not None and exact else 2 * fewest
    counts["not needed"] = 2 * fewest - total
    kept = [
        pair
        for label, count in ((0, total - total // 2), (1, total // 2))
        for pair in _drawn(sorted(chosen[label]), count, seed, label)
    ]
    parts = _part(kept, captions, seed, sizes or PAPER_SIZES, exact)
    splits = {}
    for number, (name, places) in enumerate(zip(SPLITS, parts, strict=True)):
        order = numpy_generator(seed, "tncc order", number).permutation(len(places))
        splits[name] = [_row(kept[places[place]], captions) for place in order]
    return Built(splits, counts, exact)


def _usable(pairs: Sequence[Pair], captions: Mapping[int, Caption]) -> tuple[dict[int, list[Pair]], dict[str, int]]:
    """The pairs by label that have a label and texts, each once, and what became of the others."""
    chosen: dict[int, list[Pair]] = {label: [] for label in LABELS}
    counts = {"read": len(pairs), "between": 0, "repeated": 0, "without text": 0}
    seen = set()
    for pair in pairs:
        label, both = label_of(pair.score), frozenset((pair.caption1, pair.caption2))
        if label is None:
            counts["between"] += 1
            continue
        if both in seen:
            counts["repeated"] += 1
        elif not both <= captions.keys():
            counts["without text"] += 1
        else:
            chosen[label].append(pair)
        seen.add(both)
    for label, found in chosen.items():
        if not found:
            raise DataError(
                f"no pair is left with label {label} ({LABELS[label]})",
                why=f"of {counted(len(pairs), 'pair')}, {counts['between']} have scores from {BELOW:g} to {ABOVE:g}, "
                f"and captions of {counts['without text']} others are in no file",
                do="give the captions that CxC was made of: captions_val2014.json of COCO",
            )
    return chosen, counts


def _drawn(pairs: Sequence[Pair], count: int, seed: int, label: int) -> list[Pair]:
    order = numpy_generator(seed, "tncc balance", label).permutation(len(pairs))
    return [pairs[place] for place in sorted(order[:count])]


def _part(
    kept: Sequence[Pair], captions: Mapping[int, Caption], seed: int, sizes: Sequence[int], exact: bool
) -> list[list[int]]:
    """Places of the pairs of each split."""
    groups = linked_groups([(captions[pair.caption1].image, captions[pair.caption2].image) for pair in kept])
    order = numpy_generator(seed, "tncc groups").permutation(len(groups))
    wanted = list(sizes) if exact else whole_shares(len(kept), sizes)
    why = (
        f"images link the {len(kept)} pairs to {counted(len(groups), 'group')} of 1 to {max(map(len, groups))}, and a "
        f"group is not cut"
    )
    labels = [label_of(pair.score) or 0 for pair in kept]
    parts = part_groups([groups[place] for place in order], labels, wanted) if min(wanted) else [[]]
    if not all(parts):
        raise DataError("a split would be empty", why=why, do="give more files of captions, or other --sizes")
    if exact and list(map(len, parts)) != wanted:
        nearest = " ".join(str(len(part)) for part in parts)
        raise DataError(
            f"--sizes {' '.join(map(str, sizes))} cannot be met; the nearest is {nearest}",
            why=why,
            do="give smaller --sizes or another --seed, or leave --sizes out for the paper's proportions of all pairs",
        )
    return parts


def _row(pair: Pair, captions: Mapping[int, Caption]) -> dict[str, Any]:
    one, other = captions[pair.caption1], captions[pair.caption2]
    values = (one.text, other.text, label_of(pair.score), pair.score, pair.sampling_method)
    return dict(zip(COLUMNS, (*values, pair.caption1, pair.caption2, one.image, other.image), strict=True))


def write(folder: Path, built: Built, facts: dict[str, Any]) -> None:
    """Write train.tsv, validation.tsv and test.tsv, without quoting, and a manifest: the whole folder or nothing.

    Raises:
        ConfigError: the folder exists and is not empty.
        EnvironmentFault: the disk is full or the place cannot be written.
    """
    _require_free(folder)
    with publish_folder(folder, {**facts, "counts": built.counts}) as inside:
        for name, rows in built.splits.items():
            with RowWriter(inside / f"{name}.tsv", "tsv", COLUMNS) as writer:
                writer.write(rows)


def _require_free(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ConfigError(f"{printable(str(folder))} exists", why="it would be replaced", do="give another --out")


def summary(built: Built) -> str:
    """What was read, dropped and kept, in lines."""
    counts = built.counts
    lines = [
        f"{counts['read']:,} pairs read",
        f"{counts['between']:,} dropped: score from {BELOW:g} to {ABOVE:g}",
        f"{counts['repeated']:,} dropped: the same two captions again",
        f"{counts['without text']:,} dropped: a caption is in no file",
        f"{counts['balanced away']:,} dropped: more than the rarer label has",
        f"{counts['not needed']:,} dropped: more than --sizes asks for",
        f"{sum(map(len, built.splits.values())):,} pairs kept",
    ]
    for name, rows in built.splits.items():
        found = Counter(row["label"] for row in rows)
        lines.append(
            f"  {name}: {len(rows):,}, " + ", ".join(f"{words} {found[key]:,}" for key, words in LABELS.items())
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Build the data set and say what became of the pairs; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m mvc.tncc", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--scores", type=Path, required=True, help="sts_val.csv of Crisscrossed Captions")
    parser.add_argument("--captions", type=Path, required=True, action="append", help="COCO's JSON; may come again")
    parser.add_argument("--out", type=Path, required=True, help="new folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--sizes", type=int, nargs=3, help="pairs to train, validate and test with, if there are enough"
    )
    given = parser.parse_args(arguments)
    sizes = tuple(given.sizes) if given.sizes else None
    try:
        _require_free(given.out)
        pairs, captions = read_scores(given.scores), read_captions(given.captions)
        built = build(pairs, captions, given.seed, sizes)
        digests = {"scores": sha256_file(given.scores), "captions": [sha256_file(path) for path in given.captions]}
        write(given.out, built, {"seed": given.seed, "sizes": given.sizes, "sha256_of": digests})
    except MvcError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(summary(built))
    if sizes and not built.exact:
        print(f"fewer pairs than --sizes asks for ({sum(sizes):,}): its proportions were kept")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
