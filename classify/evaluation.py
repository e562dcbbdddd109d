"""The final evaluation: once all classifiers are trained, open the test split and measure each of them on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mvc.arms import Arm
from mvc.errors import DataError, MvcError
from mvc.progress import meter
from mvc.storage import read_json, write_json

from .comparison import Comparison
from .images import Images
from .leaks import leaked
from .loop import probabilities
from .metrics import measure
from .sealed import open_test
from .training import Task

LEAKS = "leaks.json"


def result_path(folder: Path, arm: Arm, seed: int) -> Path:
    """<arm>-seed<k>.json in a folder of results, with words for "@", ":" and "+"."""
    return folder / f"{arm.file_stem}-seed{seed}.json"


def result_rows(folder: Path, arms: Sequence[Arm], seeds: Sequence[int]) -> dict[Arm, list[dict[str, Any]]]:
    """The rows of a finished comparison, of each arm in the order of the seeds.

    Raises:
        DataError: one is missing or damaged.
    """
    found: dict[Arm, list[dict[str, Any]]] = {arm: [] for arm in arms}
    for arm in arms:
        for seed in seeds:
            row = read_json(result_path(folder, arm, seed))
            if not isinstance(row, dict) or "test" not in row:
                raise DataError(f"{result_path(folder, arm, seed)} is not a finished result", do="run `mvc classify`")
            found[arm].append(row)
    return found


def finished(path: Path, key: str) -> dict[str, Any] | None:
    """The result of an earlier run if it is whole and was made from the same things."""
    try:
        row = read_json(path)
    except MvcError:
        return None
    return row if isinstance(row, dict) and row.get("key") == key and "test" in row else None


def evaluate(
    comparison: Comparison, tasks: Mapping[Arm, Sequence[Task]], keys: Mapping[str, Sequence[str]]
) -> dict[Arm, list[dict[str, Any]]]:
    """Measure every classifier on the test split and write a result file each; those that have one are not repeated.

    Test images whose pixels are also among training, validation or synthetic images do not count; results/leaks.json
    names them.

    Args:
        comparison: what they share.
        tasks: the classifiers of each arm, one a seed, all trained or finished.
        keys: of all classifiers of the run, those of other backbones too, by a name: one opening serves them all.

    Returns:
        The rows of each arm, in the order of the seeds.

    Raises:
        DataError: a classifier is not trained, a test image has changed, or none is left that was not learnt from.
        EnvironmentFault: a result cannot be written.
    """
    places = {task: result_path(comparison.folder, arm, task.seed) for arm, own in tasks.items() for task in own}
    rows = {task: finished(path, task.key) for task, path in places.items()}
    due = [task for task, row in rows.items() if row is None]
    if due:
        untrained = {task.arm.name for task in due if not task.is_trained()}
        test = open_test(comparison.test, {**keys, **{name: [] for name in untrained}})
        kept = _without_leaks(comparison, test)
        with meter("final evaluation", len(due), "classifiers") as shown:
            for task in due:
                rows[task] = _measured(task, test, kept)
                write_json(places[task], rows[task])
                shown.advance(1)
    return {arm: [row for task in own if (row := rows[task]) is not None] for arm, own in tasks.items()}


def _without_leaks(comparison: Comparison, test: Images) -> Tensor:
    """Rows of the test split that no classifier could have learnt; the others are written down."""
    seen = {"training": comparison.train, "validation": comparison.validation}
    if comparison.synthetic is not None:
        seen["synthetic"] = comparison.synthetic
    found = leaked(test, seen)
    path = comparison.folder / LEAKS
    path.unlink(missing_ok=True)
    kept = torch.ones(len(test), dtype=torch.bool)
    for rows in found.values():
        kept[rows] = False
    if not bool(kept.any()):
        raise DataError(
            "every test image is also among the training, validation or synthetic images",
            why="accuracy on them would say nothing",
            do="give a test folder with other images",
        )
    if found:
        ids = comparison.test.ids
        write_json(path, {name: [ids[row] for row in rows.tolist()] for name, rows in found.items()})
    return kept.nonzero().flatten()


def _measured(task: Task, test: Images, kept: Tensor) -> dict[str, Any]:
    comparison = task.comparison
    shares = probabilities(task.network(), test)
    measured = measure(shares[kept], test.labels[kept], comparison.classes)
    predicted = shares.argmax(dim=1)[kept]
    return {
        **task.row(),
        "images_test": len(kept),
        "images_test_left_out": len(test) - len(kept),
        "test_accuracy": measured["accuracy"],
        "per_class": {name: values["recall"] for name, values in measured["per_class"].items()},
        "test": measured,
        "test_labels": test.labels[kept].tolist(),
        "test_correct": (predicted == test.labels[kept]).int().tolist(),
        "test_predicted": predicted.tolist(),
    }
