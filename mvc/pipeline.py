"""The stages of a run in their order: each is done once, skipped while nothing it depends on has changed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from mvc.amounts import needs_back_captions, needs_model
from mvc.config import Experiment
from mvc.config_file import to_yaml
from mvc.errors import ConfigError, EnvironmentFault
from mvc.fingerprint import ABSENT, differences, file_digest, hardware, place_digest, versions
from mvc.preflight import check_experiment, check_splits
from mvc.processes import release, together
from mvc.progress import say
from mvc.stages import BACK_CAPTIONS, CAPTIONS, STAGES, Stage
from mvc.storage import exclusive, read_json, remove_leftovers, write_json, write_text


def flat_settings(experiment: Experiment, keys: tuple[str, ...]) -> dict[str, Any]:
    """The values of some sections and keys of an experiment under their dotted names."""
    content = experiment.model_dump(mode="json")
    flat: dict[str, Any] = {}
    for key in keys:
        section, _, name = key.partition(".")
        if name:
            flat[key] = content[section][name]
        else:
            flat.update({f"{section}.{field}": value for field, value in content[section].items()})
    return flat


def _dependencies(run: Path, experiment: Experiment, stage: Stage) -> dict[str, Any]:
    """Everything the stage's result depends on, as flat JSON values."""
    facts = flat_settings(experiment, stage.settings)
    facts.update({name: file_digest(run / name) for name in stage.inputs})
    if stage.name == "train":
        # How a step is cut into micro-batches changes nothing but memory and time.
        facts["samples a step"] = facts.pop("train.train_batch_size") * facts.pop("train.gradient_accumulation_steps")
    if stage.name == "data":
        facts["files in data.path"] = place_digest(experiment.data.path)
    if stage.name in ("train", "generate"):
        facts["files of model.base"] = place_digest(experiment.model.base)
        if experiment.model.config is not None:
            facts["files of model.config"] = place_digest(experiment.model.config)
    if stage.name == "generate" and experiment.back_captioning.model is not None:
        facts["files of back_captioning.model"] = place_digest(experiment.back_captioning.model)
    if stage.name in ("caption", "back_caption"):
        # The embedded base brings its own captioner.
        facts["model.base is tiny"] = experiment.model.base == "tiny"
    return facts


def _is_free(stage: Stage, text: str) -> bool:
    key = text.split(": ", 1)[0]
    sections = {name for name in stage.free if "." not in name}
    # Stages whose whole section is free recompute what is stale by themselves, inputs included.
    return key in stage.free or key.partition(".")[0] in sections or bool(sections)


def read_record(run: Path) -> dict[str, Any]:
    """run.json, or an empty record for a new run."""
    path = run / "run.json"
    return dict(read_json(path)) if path.exists() else {"stages": {}}


def _check_unchanged(run: Path, stage: Stage, before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The free changes of a stage.

    A key that is younger than the run counts as if it had had its default, and such an input as if it had been absent.

    Raises:
        ConfigError: something else changed; names it and says what to do.
    """
    defaults = flat_settings(Experiment(), stage.settings)
    younger = {key: value for key, value in defaults.items() if key not in before and key in now}
    younger |= {name: ABSENT for name in stage.inputs if name not in before}
    changes = differences({**before, **younger}, now)
    fixed = [text for text in changes if not _is_free(stage, text)]
    if fixed:
        shown = "; ".join(_short(text) for text in fixed[:4]) + (
            f"; and {len(fixed) - 4} more" if len(fixed) > 4 else ""
        )
        raise ConfigError(
            f"{run}: what the stage '{stage.name}' was made from has changed: {shown}",
            why="its result would not match; nothing was touched",
            do="set another run.dir, put the old value back, or add --redo to make this stage and what follows again",
        )
    return changes


def _short(text: str) -> str:
    """A digest in a difference says nothing to a reader; the name of what changed does."""
    key, _, values = text.partition(": ")
    return f"{key} is no longer the same" if any(len(part) == 64 for part in values.split(" -> ")) else text


def _remove_outputs(run: Path, stage: Stage) -> None:
    for name in stage.outputs:
        path = run / name
        if name in (CAPTIONS, BACK_CAPTIONS) and path.exists():
            # They can hold hours of hand work: they are set aside, not removed.
            os.replace(path, path.with_suffix(".before-redo.jsonl"))
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _named(path: str) -> Callable[..., object]:
    module, _, name = path.partition(":")
    function: Callable[..., object] = getattr(import_module(module), name)
    return function


def run_stages(experiment: Experiment, until: str, redo: bool = False, keep: Collection[str] = ()) -> bool:
    """Do what is missing of a run, up to and with one stage.

    Args:
        experiment: with run.dir set.
        until: name of the last stage to do.
        redo: make stages whose settings or inputs changed again, and all after them, removing their old results.
        keep: names of stages that are left as they are once they are finished, whatever has changed.

    Returns:
        whether anything was done.

    Raises:
        ConfigError: something changed since a stage was made and `redo` is off, or arms and sources disagree.
        DataError: classifiers are asked for and there is no test image.
        EnvironmentFault: another process works in the run folder.
    """
    check_experiment(experiment, until)
    run = Path(experiment.run.dir)
    names = [stage.name for stage in STAGES]
    with exclusive(run):
        remove_leftovers(run)
        record = read_record(run)
        worked = False
        due = STAGES[: names.index(until) + 1]
        for number, stage in enumerate(due):
            if not any(later.shared for later in due[number:]):
                release(0)  # nothing is left that other processes could join
            if stage.name in keep and _is_finished(run, stage, record):
                continue
            if stage.name == "back_caption" and until != stage.name and not needs_back_captions(experiment):
                continue
            if stage.name == "train" and until != "train" and not needs_model(experiment):
                say("train: no image of the fine-tuned model is asked for, nothing to do")
                continue
            worked = _run_stage(run, experiment, stage, record, redo) or worked
            if stage.name == "data":
                check_splits(run, until)
    return worked


def _is_finished(run: Path, stage: Stage, record: Mapping[str, Any]) -> bool:
    entry = record["stages"].get(stage.name)
    return entry is not None and entry["state"] == "finished" and (run / stage.result).exists()


def _nothing_to_spoil(run: Path, stage: Stage) -> bool:
    """Whether an unfinished stage may be started with other settings, such as after an error they caused."""
    paths = [run / name for name in stage.outputs]
    return stage.anew or not any(path.is_file() or (path.is_dir() and any(path.iterdir())) for path in paths)


def _run_stage(run: Path, experiment: Experiment, stage: Stage, record: dict[str, Any], redo: bool) -> bool:
    now = _dependencies(run, experiment, stage)
    entry = record["stages"].get(stage.name)
    changes: list[str] = []
    if entry is not None and entry["state"] == "started" and _nothing_to_spoil(run, stage):
        entry = None
    if entry is not None:
        try:
            changes = _check_unchanged(run, stage, entry["dependencies"], now)
        except ConfigError:
            if not redo:
                raise
            changed = "; ".join(map(_short, differences(entry["dependencies"], now)))
            say(f"{stage.name}: made again, because of {changed}")
            _remove_outputs(run, stage)
            entry = None
    if _is_finished(run, stage, record) and not changes and (not stage.whole or _named(stage.whole)(run)):
        say(f"{stage.name}: done before, nothing to do")
        return False
    if changes:
        say(f"{stage.name}: goes on with {'; '.join(map(_short, changes))}")
    spent = entry["seconds"] if entry is not None else 0.0
    _note(run, experiment, record, stage, "started", now, spent)
    start = time.monotonic()
    try:
        _do(run, experiment, stage)
    except BaseException:
        # On a full disk the time spent is lost, and not the error that says why.
        with suppress(EnvironmentFault):
            _note(run, experiment, record, stage, "started", now, spent + time.monotonic() - start)
        raise
    _note(run, experiment, record, stage, "finished", now, spent + time.monotonic() - start)
    return True


def _do(run: Path, experiment: Experiment, stage: Stage) -> None:
    if not stage.shared:
        _named(stage.function)(run, experiment)
        return
    word = {"stage": stage.name, "run": str(run.resolve()), "experiment": experiment.model_dump(mode="json")}
    with together(word):
        _named(stage.function)(run, experiment)


def join_stage(word: Mapping[str, Any]) -> None:
    """Any process but 0: do a stage with it, on the run and with the experiment that it names.

    Args:
        word: what process 0 said: the name of the stage, the run folder, the experiment as JSON values.
    """
    stage = next(stage for stage in STAGES if stage.name == word["stage"])
    _named(stage.function)(Path(word["run"]), Experiment.model_validate(word["experiment"]))


def _note(
    run: Path,
    experiment: Experiment,
    record: dict[str, Any],
    stage: Stage,
    state: str,
    facts: dict[str, Any],
    spent: float,
) -> None:
    """Write where the run stands; experiment.yaml always shows the settings that were used last."""
    when = datetime.now(UTC).isoformat(timespec="seconds")
    record.setdefault("created", when)
    record["stages"][stage.name] = {
        "state": state,
        "dependencies": facts,
        "seconds": round(spent, 2),
        "at": when,
    }
    record.update(versions=versions(), hardware=hardware(), seed=experiment.run.seed)
    # Without run.dir, so that the run can be moved.
    shown = experiment.model_copy(update={"run": experiment.run.model_copy(update={"dir": ""})})
    write_text(run / "experiment.yaml", to_yaml(shown))
    write_json(run / "run.json", record)
