"""The classify stage: train every arm with every seed, choose by validation, open the test split once, conclude."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mvc import processes
from mvc.arms import Arm
from mvc.config import Experiment
from mvc.progress import meter, say
from mvc.storage import read_json, sha256_json, write_json

from .affinity import AFFINITY, affinities, clean_tasks
from .classifier import publish_classifier
from .comparison import Comparison, prepare
from .conclude import Conclusion, Outcome, conclude
from .evaluation import LEAKS, evaluate, finished, result_path
from .launched import announce, help_out, own_device, train_together
from .sealed import openings
from .sweep import choose, passed_over, tasks_of
from .table import write_table
from .training import FOLDER, Task
from .workers import crew, train_all

VERDICT = "verdict.json"


def run_classify(run: Path, experiment: Experiment) -> None:
    """Train each arm with each seed, compare them, and write results/ of the run.

    Classifiers made from the same settings and images are not repeated; one that was interrupted is repeated from its
    start, being short. The test split is opened when all are trained.

    Args:
        run: the run folder, with data/ and, for arms that need them, synthetic images.
        experiment: the resolved experiment.

    Raises:
        ConfigError: an arm needs synthetic images that are not there, a backbone does not fit, or weights are missing.
        DataError: a split is empty, there is one class, or an image cannot be decoded.
        NumericError: a loss is not finite.
        Stopped: a signal asked for a stop; finished classifiers are kept.
    """
    if processes.rank():
        help_out(run, experiment)
        return
    comparisons = prepare(run, experiment, own_device(experiment))
    for comparison in comparisons:
        # Its presence says that the comparison is complete.
        (comparison.folder / VERDICT).unlink(missing_ok=True)
    wanted = {one: {arm: tasks_of(one, arm) for arm in one.arms} for one in comparisons}
    known = {key for one in comparisons for key in passed_over(one)}
    _train(run, experiment, [task for task in _all(wanted) if not (_is_measured(task) or task.key in known)])
    chosen = {one: choose(one, own) for one, own in wanted.items()}
    # Another ratio than last time may be the best one, whose classifiers were not kept.
    _train(run, experiment, [task for task in _all(chosen) if not _is_measured(task)])
    announce(None)
    # All training and every choice is done before the first test image is decoded.
    keys = {
        f"{arm.name}, {one.backbone}": [task.key for task in own]
        for one, arms in chosen.items()
        for arm, own in arms.items()
    }
    for comparison in reversed(comparisons):
        _conclude(comparison, chosen[comparison], keys)
    _forget_weights(run, [task for one in comparisons for task in clean_tasks(one, chosen[one])])


def _all(tasks: Mapping[Comparison, Mapping[Arm, Sequence[Task]]]) -> list[Task]:
    """Seed by seed, so that a stopped comparison holds whole rows of arms."""
    every = [task for arms in tasks.values() for own in arms.values() for task in own]
    return sorted(every, key=lambda task: task.comparison.settings.seed_list.index(task.seed))


def _is_measured(task: Task) -> bool:
    return finished(result_path(task.comparison.folder, task.arm, task.seed), task.key) is not None


def _train(run: Path, experiment: Experiment, tasks: Sequence[Task]) -> None:
    """Train those that are not trained yet, each key once."""
    unlike = list({task.key: task for task in tasks}.values())
    due = [task for task in unlike if not task.is_trained()]
    if not due:
        return
    if len(due) < len(unlike):
        say(f"{len(unlike) - len(due)} of {len(unlike)} classifiers were trained before and are kept")
    settings, several = experiment.classify, processes.several()
    count = 1 if several else min(settings.jobs, len(due))
    names = ", ".join(dict.fromkeys(task.comparison.backbone for task in due))
    announce(due)
    with (
        crew(run, experiment, due, count),
        meter(f"classifiers ({names})", len(due) * settings.max_train_steps, "steps") as shown,
    ):
        if several and settings.split_batches:
            train_together(due, shown)
        else:
            train_all(due, shown, alone=count == 1 and not several)


def _conclude(comparison: Comparison, tasks: Mapping[Arm, Sequence[Task]], keys: Mapping[str, Sequence[str]]) -> None:
    rows = evaluate(comparison, tasks, keys)
    found = _affinities(comparison, tasks)
    data_seed = 0
    outcomes = [outcome(arm, own, data_seed, found.get(arm.name)) for arm, own in rows.items()]
    test_images = next(iter(rows.values()))[0]["images_test"]
    conclusion = conclude(
        outcomes,
        comparison.classes,
        len(comparison.validation),
        test_images,
        comparison.settings.augmentation,
        warnings_of(comparison.run, [comparison.folder]),
    )
    write_conclusion(comparison.folder, conclusion)
    _publish_best(comparison, tasks, rows, conclusion)


def outcome(arm: Arm, rows: Sequence[Mapping[str, Any]], data_seed: int, affinity: float | None) -> Outcome:
    """What `conclude` needs of an arm, from its result rows.

    Args:
        arm: which one.
        rows: one a model seed.
        data_seed: of the run, or number of its fold.
        affinity: None where there is none.
    """
    validation = [row["validation_accuracy"] for row in rows]
    return Outcome(
        arm=arm,
        units=[(data_seed, int(row["seed"])) for row in rows],
        validation=None if None in validation else [float(value) for value in validation],
        test=[row["test"] for row in rows],
        correct=[np.array(row["test_correct"], dtype=bool) for row in rows],
        ratio=float(rows[0]["ratio"]) if arm.strategy != "real" else 0.0,
        diversity=float(np.mean([row["training_loss"] for row in rows])),
        affinity=affinity,
        labels=[np.array(row["test_labels"], dtype=np.int64) for row in rows],
    )


def warnings_of(run: Path, folders: Sequence[Path]) -> list[str]:
    """What should make one doubt the figures beyond their statistics.

    Args:
        run: the run folder, for how often the test split was opened.
        folders: of results, for test images that were left out.
    """
    found = []
    for folder in folders:
        if (folder / LEAKS).exists():
            for name, ids in read_json(folder / LEAKS).items():
                are = "image is" if len(ids) == 1 else "images are"
                found.append(f"{len(ids)} test {are} also among the {name} images and left out, such as {ids[0]}")
    opened = openings(run)
    if opened > 1:
        found.append(
            f"the test split was opened {opened} times, with different arms or settings: choosing among those by its "
            "figures makes them too good"
        )
    return found


def write_conclusion(folder: Path, conclusion: Conclusion) -> None:
    """Write table.csv, and verdict.json last, because its presence says that the comparison is complete."""
    folder.mkdir(parents=True, exist_ok=True)
    write_table(folder / "table.csv", conclusion.summaries)
    write_json(folder / VERDICT, asdict(conclusion.verdict))


def _affinities(comparison: Comparison, tasks: Mapping[Arm, Sequence[Task]]) -> dict[str, float]:
    """From the file where it is of the same classifiers."""
    path = comparison.folder / AFFINITY
    key = sha256_json([[arm.name, [task.key for task in own]] for arm, own in tasks.items()])
    if path.exists() and (earlier := read_json(path)).get("key") == key:
        return dict(earlier["affinity"])
    found = affinities(comparison, tasks)
    write_json(path, {"key": key, "affinity": found})
    return found


def _publish_best(
    comparison: Comparison,
    tasks: Mapping[Arm, Sequence[Task]],
    rows: Mapping[Arm, Sequence[Mapping[str, Any]]],
    conclusion: Conclusion,
) -> None:
    """The classifier to use: of the arm with the best mean validation accuracy, the seed with the best one."""

    def merit(row: Mapping[str, Any]) -> float:
        return -1.0 if row["validation_accuracy"] is None else float(row["validation_accuracy"])

    def mean(arm: Arm) -> float:
        return sum(map(merit, rows[arm])) / len(rows[arm])

    arm = max(rows, key=mean)
    best = max(range(len(rows[arm])), key=lambda place: merit(rows[arm][place]))
    if tasks[arm][best].is_trained():
        publish_classifier(comparison, tasks[arm][best])


def _forget_weights(run: Path, keep: Sequence[Task]) -> None:
    """Free the disk of classifiers that are measured, but for the clean ones, which new arms are held against.

    The one to use lies in results/classifier.
    """
    kept = {task.folder for task in keep}
    for path in (run / FOLDER).glob("*"):
        if path.is_dir() and path not in kept:
            shutil.rmtree(path, ignore_errors=True)
