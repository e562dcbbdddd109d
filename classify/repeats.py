"""The conclusion over several runs of one experiment: other training images in each, by data seed or by fold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mvc.arms import Arm, parse_arm
from mvc.config import Experiment
from mvc.config_file import read_yaml
from mvc.config_schema import build_experiment
from mvc.dataset import load_index
from mvc.errors import DataError
from mvc.storage import read_json

from .affinity import AFFINITY
from .comparison import RESULTS
from .conclude import Outcome, conclude
from .evaluation import result_rows
from .stage import outcome, warnings_of, write_conclusion


def conclude_repeats(run_dir: Path, sub_runs: Sequence[Path]) -> None:
    """Compare the arms over all runs, and write results/table.csv and results/verdict.json of the folder above them.

    Every backbone has its own conclusion, as in a single run.

    Args:
        run_dir: the folder that holds the runs.
        sub_runs: finished runs, at least one, in the order of their data seeds or folds.

    Raises:
        DataError: a run is not finished, or the runs do not have the same arms, seeds or classes.
    """
    experiments = [_experiment(run) for run in sub_runs]
    first, classes = experiments[0], load_index(sub_runs[0]).classes
    for run, experiment in zip(sub_runs, experiments, strict=True):
        _require_alike(run, experiment, first)
        if load_index(run).classes != classes:
            raise DataError(f"{run} has other classes than {sub_runs[0]}", do="run it again with --redo")
    for name in _backbones(sub_runs[0]):
        _conclude_one(run_dir, sub_runs, first, classes, name)


def _conclude_one(
    run_dir: Path, sub_runs: Sequence[Path], experiment: Experiment, classes: list[str], backbone: str
) -> None:
    folders = [run / RESULTS / backbone for run in sub_runs]
    settings = experiment.classify
    arms = [parse_arm(text) for text in settings.arms]
    rows = [result_rows(folder, arms, settings.seed_list) for folder in folders]
    affinity = [_affinity(folder) for folder in folders]
    outcomes = []
    for arm in arms:
        parts = [
            outcome(arm, own[arm], place, values.get(arm.name))
            for place, (own, values) in enumerate(zip(rows, affinity, strict=True))
        ]
        outcomes.append(_joined(arm, parts))
    firsts = [own[arms[0]][0] for own in rows]
    warnings = [text for run, folder in zip(sub_runs, folders, strict=True) for text in warnings_of(run, [folder])]
    conclusion = conclude(
        outcomes,
        classes,
        sum(int(row["images_validation"]) for row in firsts),
        min(int(row["images_test"]) for row in firsts),
        settings.augmentation,
        list(dict.fromkeys(warnings)),
        folds=experiment.data.folds is not None,
    )
    write_conclusion(run_dir / RESULTS / backbone, conclusion)


def _experiment(run: Path) -> Experiment:
    path = run / "experiment.yaml"
    return build_experiment(*read_yaml(path), str(path))


def _joined(arm: Arm, parts: Sequence[Outcome]) -> Outcome:
    """One outcome of those of several runs."""
    validation = [part.validation for part in parts if part.validation is not None]
    return Outcome(
        arm=arm,
        units=[unit for part in parts for unit in part.units],
        validation=[value for own in validation for value in own] if len(validation) == len(parts) else None,
        test=[row for part in parts for row in part.test],
        correct=[row for part in parts for row in part.correct],
        ratio=sum(part.ratio for part in parts) / len(parts),
        diversity=_mean([part.diversity for part in parts]),
        affinity=_mean([part.affinity for part in parts]),
        labels=[row for part in parts for row in part.labels or []],
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _require_alike(run: Path, experiment: Experiment, first: Experiment) -> None:
    own, wanted = experiment.classify, first.classify
    if (own.arms, own.seed_list, own.backbones) != (wanted.arms, wanted.seed_list, wanted.backbones):
        raise DataError(
            f"{run} compared other arms, seeds or backbones than the first run",
            do="give the same command again, so that it goes on with the same ones",
        )


def _backbones(run: Path) -> list[str]:
    """The folders of results: "" is the first backbone's."""
    return ["", *sorted(path.parent.name for path in (run / RESULTS).glob("*/verdict.json"))]


def _affinity(folder: Path) -> dict[str, float]:
    path = folder / AFFINITY
    return dict(read_json(path)["affinity"]) if path.exists() else {}
