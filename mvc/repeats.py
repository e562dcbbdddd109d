"""One experiment several times, on other splits of the same images: by data seeds, or by the folds of one partition.

Every repeat is a whole run in a folder of its own, run.dir/seed-0 or run.dir/fold-0 and so on, and can be looked at
and continued like any run. Only the data differ: data.seed, or data.fold. run.seed and the classifiers' seeds stay
the same, so that repeats differ by their images alone.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from mvc import processes
from mvc.config import Experiment
from mvc.errors import ConfigError, DataError
from mvc.pipeline import run_stages
from mvc.preflight import check_experiment, check_splits
from mvc.progress import say
from mvc.stages import STAGES
from mvc.stopping import flag
from mvc.storage import exclusive, read_json, write_json

REPEATS = "repeats.json"
CONCLUDE = "mvc.classify.repeats:conclude_repeats"
_OPTIONS = {"seed": "--data-seeds", "fold": "--folds"}


def run_repeats(
    experiment: Experiment,
    data_seeds: int | None,
    folds: int | None,
    until: str = "report",
    redo: bool = False,
) -> bool:
    """Do a run once for each data seed or fold, and conclude over all of them where classifiers are compared.

    The data stage of all repeats comes first: what one of them refuses is known before hours are spent on another.
    Finished stages are skipped, so that the same command goes on where it was, and more seeds add repeats.

    Args:
        experiment: with run.dir set; the folder of the repeats.
        data_seeds: how many seeds; repeat s, counted from 0, has data.seed + s. None for folds.
        folds: how many folds, all of which are done. None for seeds.
        until: name of the last stage to do.
        redo: as in `run_stages`.

    Returns:
        whether anything was done.

    Raises:
        ConfigError: both or neither are given, run.dir is something else, or as `run_stages`.
        DataError: as `run_stages`.
        EnvironmentFault: another process works in the folder.
        Stopped: a signal asked for a stop; what was finished is kept.
    """
    kind, values = _kind(experiment, data_seeds, folds)
    check_experiment(experiment, until)
    root = Path(experiment.run.dir)
    if (root / "run.json").exists():
        raise ConfigError(
            f"{root} is a run by itself",
            why=f"{_OPTIONS[kind]} makes a folder of runs",
            do=f"set another run.dir, or leave {_OPTIONS[kind]} out to go on with this run",
        )
    with exclusive(root):
        _note(root, kind, values)
        repeats = [_repeat(experiment, root, kind, value, len(values)) for value in values]
        worked = _do_all(repeats, until, redo)
        if _compares(until):
            module, _, name = CONCLUDE.partition(":")
            getattr(import_module(module), name)(root, [Path(repeat.run.dir) for repeat in repeats])
    return worked


def _kind(experiment: Experiment, data_seeds: int | None, folds: int | None) -> tuple[str, list[int]]:
    """What is repeated, and its numbers.

    Raises:
        ConfigError: as `run_repeats`.
    """
    if processes.several():
        raise ConfigError(
            f"--data-seeds and --folds cannot be done by {processes.size()} processes together",
            why="the processes of a launcher do one run and end with it",
            do="start the command without a launcher, or start one repeat a process with data.seed or data.fold",
        )
    if data_seeds is not None and folds is not None:
        raise ConfigError(
            "both --data-seeds and --folds are given",
            why="folds are one partition of the images, seeds are several",
            do="keep one of them",
        )
    if folds is None:
        if data_seeds is None or data_seeds < 1:
            raise ConfigError(f"--data-seeds {data_seeds} repeats nothing", do="give 1 or more, such as 3")
        return "seed", list(range(data_seeds))
    if folds < 2:
        raise ConfigError(f"--folds {folds} leaves nothing to train on", do="give 2 or more, such as 5")
    data = experiment.data
    if data.folds not in (None, folds) or data.fold:
        raise ConfigError(
            f"--folds {folds}, but data.folds={data.folds} and data.fold={data.fold}",
            why="all folds are done",
            do="leave data.folds and data.fold out",
        )
    return "fold", list(range(folds))


def _note(root: Path, kind: str, values: list[int]) -> None:
    """Write what the folder holds before anything else is in it; more seeds may be added later, and nothing else.

    Raises:
        ConfigError: it holds other repeats.
        DataError: repeats.json cannot be used.
    """
    path = root / REPEATS
    if path.exists():
        before = read_json(path)
        try:
            old_kind, old = str(before["kind"]), [int(value) for value in before["values"]]
            option = _OPTIONS[old_kind]
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{path} cannot be used", why=f"{type(error).__name__}: {error}", do="set another run.dir"
            ) from error
        grows = kind == old_kind == "seed" and values[: len(old)] == old
        if not grows and (kind, values) != (old_kind, old):
            more = " or more" if old_kind == "seed" else ""
            raise ConfigError(
                f"{root} holds the repeats of {option} {len(old)}, and {_OPTIONS[kind]} {len(values)} was given",
                why="what is concluded would be over other runs than those that are there; nothing was touched",
                do=f"give {option} {len(old)}{more}, or set another run.dir",
            )
    write_json(path, {"kind": kind, "values": values})


def _repeat(experiment: Experiment, root: Path, kind: str, value: int, total: int) -> Experiment:
    data = experiment.data
    change: dict[str, Any] = {"seed": data.seed + value} if kind == "seed" else {"folds": total, "fold": value}
    run = experiment.run.model_copy(update={"dir": str(root / f"{kind}-{value}")})
    return experiment.model_copy(update={"run": run, "data": data.model_copy(update=change)})


def _do_all(repeats: list[Experiment], until: str, redo: bool) -> bool:
    worked = False
    for number, repeat in enumerate(repeats, 1):
        flag.check("repeats that were checked before are kept")
        say(f"repeat {number} of {len(repeats)}: {repeat.run.dir}: data")
        worked = run_stages(repeat, "data", redo) or worked
        check_splits(Path(repeat.run.dir), until)
    for number, repeat in enumerate(repeats, 1):
        if until == "data":
            break
        flag.check(f"{number - 1} of {len(repeats)} repeats are finished and kept")
        say(f"repeat {number} of {len(repeats)}: {repeat.run.dir}")
        worked = run_stages(repeat, until, redo) or worked
    return worked


def _compares(until: str) -> bool:
    names = [stage.name for stage in STAGES]
    return names.index(until) >= names.index("classify")
