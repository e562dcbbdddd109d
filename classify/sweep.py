"""How many synthetic images for each real one: ratios are tried on the validation images, and the best is used.

A classifier of a ratio is the very classifier of the arm once that ratio is chosen, so a sweep repeats nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.arms import Arm
from mvc.errors import ConfigError
from mvc.storage import read_json, write_json

from .comparison import Comparison
from .training import Task

FILE = "ratios.json"


@dataclass(frozen=True)
class Tried:
    """One ratio of one arm.

    Attributes:
        ratio: as asked for.
        effective: synthetic images for each real one that there were.
        accuracies: on the validation images, one a seed.
        keys: of the classifiers.
    """

    ratio: float
    effective: float
    accuracies: list[float]
    keys: list[str]


def swept(comparison: Comparison, arm: Arm) -> bool:
    """Whether the ratio of an arm is found by a sweep."""
    return arm.uses_synthetic and arm.ratio is None and bool(comparison.settings.ratios)


def tasks_of(comparison: Comparison, arm: Arm) -> list[Task]:
    """The classifiers that an arm needs before its ratio is known: of each ratio, or of its own one.

    Raises:
        ConfigError: ratios are to be tried without a validation image.
    """
    settings = comparison.settings
    if not swept(comparison, arm):
        ratio = None if arm.strategy == "real" else arm.ratio or settings.ratio
        return [Task(comparison, arm, ratio, seed) for seed in settings.seed_list]
    if not len(comparison.validation):
        raise ConfigError(
            "classify.ratios cannot be compared, as there is no validation image",
            do="set classify.ratio to one number, or give the data a validation split",
        )
    return [Task(comparison, arm, ratio, seed) for ratio in settings.ratios for seed in settings.seed_list]


def remembered(comparison: Comparison) -> dict[str, dict[str, Any]]:
    """What an earlier sweep wrote of each classifier, by key: its weights may be gone since."""
    path = comparison.folder / FILE
    if not path.exists():
        return {}
    return {
        key: {"validation_accuracy": accuracy, "ratio": row["effective"]}
        for rows in read_json(path).values()
        for row in rows["tried"]
        for key, accuracy in zip(row["keys"], row["accuracies"], strict=True)
    }


def passed_over(comparison: Comparison) -> set[str]:
    """Keys of classifiers that an earlier sweep left for another ratio: their accuracy is all that matters."""
    path = comparison.folder / FILE
    rows = read_json(path).values() if path.exists() else ()
    return {key for row in rows for one in row["tried"] if one["ratio"] != row["chosen"] for key in one["keys"]}


def choose(comparison: Comparison, tasks: Mapping[Arm, Sequence[Task]]) -> dict[Arm, list[Task]]:
    """Keep of each arm the classifiers of the ratio with the best mean validation accuracy, the smallest of equals.

    Writes ratios.json with all that was tried, and which one was chosen.

    Args:
        comparison: what they share.
        tasks: all trained classifiers of each arm.

    Returns:
        The classifiers of each arm, one a seed.
    """
    earlier, written = remembered(comparison), {}
    chosen: dict[Arm, list[Task]] = {}
    for arm, own in tasks.items():
        if not swept(comparison, arm):
            chosen[arm] = list(own)
            continue
        tried = [_tried(ratio, [task for task in own if task.ratio == ratio], earlier) for ratio in _ratios(own)]
        best = max(tried, key=lambda one: (sum(one.accuracies), -one.ratio))
        written[arm.name] = {"chosen": best.ratio, "tried": [vars(one) for one in tried]}
        chosen[arm] = [task for task in own if task.ratio == best.ratio]
    if written:
        write_json(comparison.folder / FILE, written)
    else:
        Path(comparison.folder / FILE).unlink(missing_ok=True)
    return chosen


def _ratios(tasks: Sequence[Task]) -> list[float]:
    return sorted({task.ratio for task in tasks if task.ratio is not None})


def _tried(ratio: float, tasks: Sequence[Task], earlier: Mapping[str, Mapping[str, Any]]) -> Tried:
    rows = [task.row() if task.is_trained() else earlier[task.key] for task in tasks]
    return Tried(
        ratio, rows[0]["ratio"], [float(row["validation_accuracy"]) for row in rows], [task.key for task in tasks]
    )
