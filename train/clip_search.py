"""The search for the policy of an arm of a CLIP comparison: short trainings, judged on validation pairs."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator

from mvc.clip.models import load_clip
from mvc.config_clip import ClipExperiment, techniques_of
from mvc.errors import ConfigError
from mvc.multimodal.policies import Policy
from mvc.multimodal.policy_search import Found, search_policy
from mvc.progress import Meter
from mvc.storage import sha256_json

from .clip_data import ClipData
from .clip_fit import fit_task
from .clip_task import CHECKPOINTS, RESULTS, ClipTask


def with_policy(
    run: Path, experiment: ClipExperiment, data: ClipData, start: str, accelerator: Accelerator
) -> tuple[ClipExperiment, str | None]:
    """The experiment with the policy that a search chose, where it asks for a search.

    Each policy is tried with all model seeds and `techniques.search_steps` steps of the first arm that has a policy;
    its figure is the mean validation RSUM of the kept weights. Finished trials lie in results/policy_search-*.json, and
    a trial that was stopped goes on from its checkpoint.

    Args:
        run: the run folder.
        experiment: the resolved experiment.
        data: its pairs; those of the test split are not looked at.
        start: identity of the model to begin with.
        accelerator: device and processes.

    Returns:
        The experiment, and a sentence on the search; None without one.

    Raises:
        ConfigError: there are several processes and trials to do, or more trials than policies.
        Stopped: a signal asked for a stop; finished trials and a checkpoint were saved.
    """
    own = experiment.techniques
    arm = next((one for one in experiment.train.arms if "policy" in techniques_of(one)), None)
    if arm is None or not own.search_trials:
        return experiment, None
    tasks = _tasks(run, experiment, data, start, arm)
    settings = [{key: value for key, value in task.settings.items() if key not in _TRIED} for task in tasks(Policy())]
    found = search_policy(
        lambda policy: _figure(tasks(policy), accelerator),
        default=Policy(own.operations, own.magnitude),
        trials=own.search_trials,
        path=run / RESULTS / f"policy_search-{sha256_json(settings)[:12]}.json",
    )
    return _chosen(experiment, found.best.policy), _sentence(found, own.search_steps)


_TRIED = ("techniques.operations", "techniques.magnitude")


def _tasks(
    run: Path, experiment: ClipExperiment, data: ClipData, start: str, arm: str
) -> Callable[[Policy], list[ClipTask]]:
    """What gives the trainings of a policy: one for each model seed."""
    train = experiment.train.model_copy(update={"max_train_steps": experiment.techniques.search_steps})
    shorter = experiment.model_copy(update={"train": train})

    def of(policy: Policy) -> list[ClipTask]:
        tried = _chosen(shorter, policy)
        return [ClipTask(run, tried, data, start, None, arm, seed) for seed in train.seed_list]

    return of


def _chosen(experiment: ClipExperiment, policy: Policy) -> ClipExperiment:
    techniques = experiment.techniques.model_copy(update={"operations": policy.num_ops, "magnitude": policy.magnitude})
    return experiment.model_copy(update={"techniques": techniques})


def _figure(tasks: list[ClipTask], accelerator: Accelerator) -> float:
    if accelerator.num_processes > 1:
        raise ConfigError(
            "policies are searched by one process",
            do="give the command once without --num-processes; when the search is done, stop it and go on with more",
        )
    figures = []
    for task in tasks:
        own, steps = task.experiment.techniques, task.experiment.train.max_train_steps
        folder = task.run / CHECKPOINTS / f"policy_search-{own.operations}-{own.magnitude}-seed{task.seed}"
        clip = load_clip(*task.beginning, seed=task.seed, device=accelerator.device)
        silent = Meter("trial", steps, "steps", stream=io.StringIO())  # the search shows its own progress
        fitted = fit_task(task, clip, accelerator, silent, folder)
        figures.append(next(rsum for step, rsum in fitted.curve if step == fitted.best_step))
        shutil.rmtree(folder, ignore_errors=True)
    return sum(figures) / len(figures)


def _sentence(found: Found, steps: int) -> str:
    best, default = found.best, found.default
    return (
        f"policy: {best.policy.num_ops} operations of magnitude {best.policy.magnitude} were the best on validation of "
        f"{len(found.trials)} trials of {steps} steps (RSUM {best.figure:.1f}, the given policy's {default.figure:.1f})"
    )
