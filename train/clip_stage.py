"""`mvc clip`: train a CLIP with each arm and seed, measure retrieval on the test pairs, and say what helped."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from mvc import processes
from mvc.clip.models import Clip, load_clip, save_clip
from mvc.clip_arguments import RECORD
from mvc.config_clip import ClipExperiment
from mvc.config_file import to_yaml
from mvc.devices import pick_device
from mvc.errors import ConfigError
from mvc.fingerprint import hardware, versions
from mvc.progress import Meter, meter, say
from mvc.storage import exclusive, remove_leftovers, sha256_json, write_json, write_text

from .clip_data import ClipData, read_data
from .clip_evaluation import class_folders, measured, zero_shot_accuracy
from .clip_fit import fit_task
from .clip_search import with_policy
from .clip_table import VERDICT, conclude_clips
from .clip_task import RESULTS, ClipTask, has_weights, start_of


def run_clip(run: Path, experiment: ClipExperiment) -> None:
    """Do a comparison, or what is missing of it, and write models/ and results/ of the run.

    What was made from the same pairs and settings is not repeated; a training that was stopped goes on from its last
    checkpoint. Where a launcher has started several processes, all of them call this and train each model together.

    Args:
        run: the run folder.
        experiment: the resolved experiment.

    Raises:
        ConfigError: the folder is a run of another kind, or a model or setting cannot be used.
        DataError: the pairs cannot be used, or are fewer than train.train_batch_size.
        EnvironmentFault: a model is missing, memory or disk is too small.
        NumericError: a training diverged.
        Stopped: a signal asked for a stop; a checkpoint was saved.
    """
    if processes.rank():
        _train_all(run, experiment)
        return
    for record, what in (("run.json", "images"), ("texts.json", "texts")):
        if (run / record).exists():
            raise ConfigError(f"{run} is a run of {what}", why="its files would be mixed up", do="set another run.dir")
    with exclusive(run):
        remove_leftovers(run)
        shown = experiment.model_copy(update={"run": experiment.run.model_copy(update={"dir": ""})})
        write_text(run / "experiment.yaml", to_yaml(shown))
        write_json(run / RECORD, {"versions": versions(), "hardware": hardware()})
        (run / RESULTS / VERDICT).unlink(missing_ok=True)
        with processes.together({"stage": "clip", "run": str(run), "experiment": experiment.model_dump(mode="json")}):
            data, tasks, searched = _train_all(run, experiment)
        _conclude(run, experiment, data, tasks, searched)


def join_clip(word: Mapping[str, Any]) -> None:
    """Any process but 0: train with it, as its word says."""
    run_clip(Path(word["run"]), ClipExperiment.model_validate(word["experiment"]))


def _train_all(run: Path, experiment: ClipExperiment) -> tuple[ClipData, list[ClipTask], str | None]:
    """Train what is missing, seed by seed, so that a stopped run has whole rows; with a word on the policy search."""
    accelerator = _accelerator(experiment)
    data = read_data(experiment, run)
    if accelerator.is_main_process:
        say(f"clip: {data.describe()}")
    size = experiment.train.train_batch_size
    if len(data.train) < size:
        raise ConfigError(
            f"train.train_batch_size={size} is more than the {len(data.train)} training images",
            why="no image comes twice in a batch: it would be its own negative",
            do=f"set train.train_batch_size={len(data.train)} or less",
        )
    start, classes = start_of(experiment), experiment.evaluate.classes
    if accelerator.is_main_process and not has_weights(experiment):
        say(f"clip: {experiment.model.name} has no weights, so training begins with random ones (see model.weights)")
    folders = None if classes is None else class_folders(Path(classes))  # a mistake in them is said before training
    experiment, searched = with_policy(run, experiment, data, start, accelerator)
    tasks = [
        ClipTask(run, experiment, data, start, folders, arm, seed)
        for seed in experiment.train.seed_list
        for arm in experiment.train.arms
    ]
    due = [task for task in tasks if task.row() is None]
    accelerator.wait_for_everyone()  # all have looked before the first one writes
    if len(due) < len(tasks) and accelerator.is_main_process:
        say(f"clip: {len(tasks) - len(due)} of {len(tasks)} models were trained before and are kept")
        _forget_checkpoints([task for task in tasks if task not in due])
    if not due:
        return data, tasks, searched
    with meter("training", len(due) * experiment.train.max_train_steps, "steps") as shown:
        for task in due:
            _train(task, accelerator, shown)
    return data, tasks, searched


def _forget_checkpoints(done: Sequence[ClipTask]) -> None:
    """Remove what a kill between a row and the removal of its checkpoints has left."""
    for task in done:
        shutil.rmtree(task.checkpoints, ignore_errors=True)


def _accelerator(experiment: ClipExperiment) -> Accelerator:
    device = pick_device(experiment.run.device)
    processes.require_supported(device.type)
    if processes.sharded():
        raise ConfigError("a CLIP is not trained with FSDP", do="start plain processes")
    accelerator = Accelerator(cpu=device.type == "cpu")
    if experiment.train.train_batch_size < accelerator.num_processes:
        raise ConfigError(
            f"train.train_batch_size={experiment.train.train_batch_size} is less than one pair for each of "
            f"{accelerator.num_processes} processes",
            do=f"set train.train_batch_size={accelerator.num_processes} or more",
        )
    return accelerator


def _train(task: ClipTask, accelerator: Accelerator, shown: Meter) -> None:
    """Train one model, publish it, measure it and write its row; one that was trained before is measured alone."""
    train, before = task.experiment.train, task.trained()
    if before is not None:
        shown.advance(train.max_train_steps, note=task.arm)
        if accelerator.is_main_process:
            clip = load_clip(task.model, device=accelerator.device)
            write_json(task.path, {**before, "key": task.key, **_measured(task, clip)})
        return
    started = time.monotonic()
    clip = load_clip(*task.beginning, seed=task.seed, device=accelerator.device)
    fitted = fit_task(task, clip, accelerator, shown, task.checkpoints)
    if accelerator.is_main_process:
        row = {
            "key": task.key,
            "trained_from": sha256_json(task.settings),
            "identity": save_clip(clip, task.model),
            "arm": task.arm,
            "seed": task.seed,
            "steps": train.max_train_steps,
            "best_step": fitted.best_step,
            "training_loss": fitted.training_loss,
            "curve": [list(point) for point in fitted.curve],
            "validation_rsum": next((rsum for step, rsum in fitted.curve if step == fitted.best_step), None),
        }
        measures = _measured(task, clip)
        write_json(task.path, {**row, **measures, "seconds": round(time.monotonic() - started, 1)})
        _forget_checkpoints([task])
        say(f"clip: {task.arm}, seed {task.seed}: loss {fitted.training_loss:.3f}, RSUM {measures['test']['rsum']:.1f}")
    accelerator.wait_for_everyone()


def _measured(task: ClipTask, clip: Clip) -> dict[str, Any]:
    """What the test pairs say, which nothing that chooses looks at."""
    evaluate, zero_shot = task.experiment.evaluate, None
    if task.folders is not None:
        zero_shot = zero_shot_accuracy(clip, task.folders, evaluate.templates, evaluate.batch_size)
    return {"test": measured(clip, task.data.test, evaluate.batch_size), "zero_shot_accuracy": zero_shot}


def _conclude(
    run: Path, experiment: ClipExperiment, data: ClipData, tasks: Sequence[ClipTask], searched: str | None
) -> None:
    rows = {arm: [task.row() or {} for task in tasks if task.arm == arm] for arm in experiment.train.arms}
    warnings = [*data.warnings, *([] if searched is None else [searched])]
    if len(data.test) < 100:
        warnings.append(f"only {len(data.test)} test images: recalls among so few say little")
    conclude_clips(run / RESULTS, rows, warnings)
