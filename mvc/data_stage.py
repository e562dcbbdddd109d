"""The first stage: the user's folder is checked, split and frozen into run/data, and never changed."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.class_names import class_words, codes
from mvc.config import DataSection, Experiment
from mvc.dataset import CLASSES, INDEX
from mvc.duplicates import across, equal_files
from mvc.errors import ConfigError, DataError
from mvc.groups import find_groups
from mvc.layout import LAYOUT, SPLITS, Layout, class_problems, find_layout
from mvc.probe import ImageFacts, probe_all
from mvc.progress import say
from mvc.splits import Splits, make_splits, require_folds
from mvc.storage import write_json, write_json_lines
from mvc.walk import counted, listing, printable

DIGITS = "data/digits"
SKIPPED = "data/skipped.jsonl"
SUMMARY = "data/summary.json"


@dataclass(frozen=True)
class _Frozen:
    """What the stage found and decided, before it is written."""

    layout: Layout
    facts: dict[str, ImageFacts]
    bad: dict[str, str]
    splits: Splits
    groups: dict[str, str] | None
    words: list[str]
    warnings: list[str]


def run_data(run: Path, experiment: Experiment) -> None:
    """Check the images, make missing splits, folds and few-shot subsets, and write run/data.

    Randomness: (data.seed, "split <sha256>"), "split group <name>", "fold <class>" and "shots <sha256>".

    Args:
        run: the run folder.
        experiment: its `data` section, and train.pairing for how many images a class needs.

    Raises:
        ConfigError: data.path, data.class_names, data.group_pattern, data.folds or data.fold cannot be used.
        DataError: folder, classes, groups or images cannot be used; lists all offenders.
    """
    data = experiment.data
    root, stored = _resolve(run, data.path)
    layout = find_layout(root)
    # Before all images are read, which can take long.
    require_folds(layout.given, data.folds, data.fold)
    groups = find_groups(root, layout.images, data.group_pattern, data.group_column)
    words = class_words(layout.classes, data.class_names)
    facts, bad = probe_all(root, [image.path for image in layout.images], data.background)
    if bad and data.on_bad == "error":
        _refuse(root, bad)
    for problem in class_problems(layout, facts):
        raise problem
    splits = make_splits(
        [image for image in layout.images if image.path in facts],
        {path: fact.sha256 for path, fact in facts.items()},
        layout.given,
        data.seed,
        data.validation_share,
        data.test_share,
        data.shots,
        fewest=1 if experiment.train.pairing == "self" else 2,
        groups=groups,
        folds=data.folds,
        fold=data.fold,
    )
    warnings = _warnings(layout, facts, splits, groups, codes(layout.classes, data.class_names))
    summary = _write(run, stored, _Frozen(layout, facts, bad, splits, groups, words, warnings))
    _report(data, summary)


def _resolve(run: Path, path: str) -> tuple[Path, str]:
    """The data folder, and how classes.json names it."""
    if not path:
        raise ConfigError(
            "no data was given", do=f"set data.path to a folder ({LAYOUT}), or to digits for the embedded images"
        )
    if path == "digits":
        if not (run / DIGITS).exists():
            from mvc.tiny.digits import write_digits

            write_digits(run / DIGITS)
        return run / DIGITS, DIGITS
    root = Path(os.path.abspath(Path(path).expanduser()))
    return root, str(root)


def _refuse(root: Path, bad: dict[str, str]) -> None:
    lines = [f"{path}: {reason}" for path, reason in bad.items()]
    raise DataError(
        f"{counted(len(bad), 'image')} in {root} cannot be used: {listing(lines)}",
        do="replace or remove them, or set data.on_bad=skip",
    )


def _warnings(
    layout: Layout, facts: dict[str, ImageFacts], splits: Splits, groups: dict[str, str] | None, coded: list[str]
) -> list[str]:
    warnings = list(layout.warnings)
    used = {path: split for path, split in splits.split.items() if path not in splits.left_out}
    copies = across(equal_files({path: facts[path].sha256 for path in used}), used)
    if copies:
        example = " = ".join(printable(path) for path in copies[0])
        warnings.append(f"{counted(len(copies), 'image')} in more than one split, which flatters results: {example}")
    if groups is not None:
        warnings += _parted(groups, used)
    warnings += splits.warnings
    for note, count in Counter(fact.note for fact in facts.values() if fact.note).items():
        example = next(path for path, fact in facts.items() if fact.note == note)
        warnings.append(f"{counted(count, 'image')} ({printable(example)}): {note}")
    if coded:
        shown = ", ".join(map(printable, coded[:3]))
        warnings.append(
            f"{counted(len(coded), 'class folder')} named like a code ({shown}): give words by data.class_names"
        )
    return warnings


def _parted(groups: dict[str, str], used: dict[str, str]) -> list[str]:
    """A warning about groups that the user's own split folders part; those that are made here part none."""
    members = defaultdict(list)
    for path in used:
        members[groups[path]].append(path)
    parted = {groups[paths[0]]: {used[path] for path in paths} for paths in across(list(members.values()), used)}
    if not parted:
        return []
    name = min(parted)
    shown = f"{printable(name)} in {' and '.join(split for split in SPLITS if split in parted[name])}"
    what = "1 group lies" if len(parted) == 1 else f"{len(parted)} groups lie"
    return [f"{what} in more than one split, which flatters results: {shown}"]


def _write(run: Path, stored: str, frozen: _Frozen) -> dict[str, Any]:
    """Write run/data; the index comes last, as the sign that the stage is complete."""
    layout, splits = frozen.layout, frozen.splits
    label = {name: number for number, name in enumerate(layout.classes)}
    rows: list[dict[str, Any]] = []
    for image in layout.images:
        if (fact := frozen.facts.get(image.path)) is None:
            continue
        rows.append(
            {
                "id": image.path,
                "path": image.path,
                "class_name": image.class_name,
                "label": label[image.class_name],
                "split": splits.split[image.path],
                "sha256": fact.sha256,
                "width": fact.width,
                "height": fact.height,
                "mode": fact.mode,
                "phash": fact.phash,
                "note": fact.note,
                "used": image.path not in splits.left_out,
                "group": frozen.groups[image.path] if frozen.groups is not None else None,
            }
        )
    summary = _summary(stored, rows, frozen)
    (run / SKIPPED).unlink(missing_ok=True)
    if frozen.bad:
        skipped = [{"path": printable(path), "reason": reason} for path, reason in frozen.bad.items()]
        write_json_lines(run / SKIPPED, skipped)
    classes = [
        {"folder": name, "words": words, "label": number}
        for number, (name, words) in enumerate(zip(layout.classes, frozen.words, strict=True))
    ]
    write_json(run / CLASSES, {"root": stored, "classes": classes})
    write_json(run / SUMMARY, summary)
    write_json_lines(run / INDEX, rows)
    return summary


def _summary(stored: str, rows: list[dict[str, Any]], frozen: _Frozen) -> dict[str, Any]:
    used = [row for row in rows if row["used"]]
    return {
        "root": stored,
        "classes": len(frozen.layout.classes),
        "images": len(rows),
        "used": {split: sum(row["split"] == split for row in used) for split in SPLITS},
        "used_per_class": {
            name: dict(Counter(row["split"] for row in used if row["class_name"] == name))
            for name in frozen.layout.classes
        },
        "groups": len({row["group"] for row in used}) if frozen.groups is not None else None,
        "left_out": len(rows) - len(used),
        "made": sorted(frozen.splits.made),
        "skipped": len(frozen.bad),
        "ignored_files": dict(sorted(frozen.layout.others.items())),
        "warnings": frozen.warnings,
    }


def _report(data: DataSection, summary: dict[str, Any]) -> None:
    used = ", ".join(f"{count} {split}" for split, count in summary["used"].items())
    say(f"data: {summary['images']} images in {summary['classes']} classes from {data.path}")
    left = f"; {summary['left_out']} left out by data.shots={data.shots}" if summary["left_out"] else ""
    made = f" ({' and '.join(summary['made'])} made by rule)" if summary["made"] else ""
    say(f"data: uses {used} images{made}{left}")
    if data.folds is not None:
        say(f"data: the test split is fold {data.fold} of 0 to {data.folds - 1}")
    if summary["groups"] is not None:
        say(f"data: {counted(summary['groups'], 'group')}; splits that are made part none")
    ignored = sum(summary["ignored_files"].values())
    skipped = (
        f"{counted(summary['skipped'], 'image')} skipped, see {SKIPPED}" if summary["skipped"] else "no image skipped"
    )
    say(f"data: {skipped}; {counted(ignored, 'other file')} ignored")
    warnings = summary["warnings"]
    for text in warnings[:3] if len(warnings) <= 3 else warnings[:2]:
        say(f"data: warning: {text}")
    if len(warnings) > 3:
        say(f"data: and {len(warnings) - 2} more warnings in {SUMMARY}")
