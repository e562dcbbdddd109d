"""`mvc texts`: augment training texts, train classifiers with and without, and say whether it helped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from mvc.arms import Arm
from mvc.config_file import to_yaml
from mvc.config_texts import MIXINGS, TextExperiment
from mvc.devices import pick_device
from mvc.errors import ConfigError
from mvc.fingerprint import hardware, versions
from mvc.modality.chain import Chain
from mvc.modality.methods import say_estimate, text_chain
from mvc.pretrained import find_model, identity_of
from mvc.progress import Meter, meter, say
from mvc.randomness import numpy_generator
from mvc.storage import exclusive, read_json, remove_leftovers, write_json, write_text
from mvc.text_arguments import RECORD

from .outcomes import Outcome
from .table import print_table, wide_console, write_table
from .text_augmented import Extra, augmented
from .text_data import Texts, few_shot
from .text_files import described, read_splits
from .text_tasks import RESULTS, TFIDF, TextComparison, TextTask, tasks_of
from .text_verdict import conclude_texts
from .verdict_words import points
from .workers import Claims, claim, helpers, until_all_done

COMMAND = ("-m", "mvc.classify.text_worker")
LOCKS = "cache/text_classifiers"
VERDICT = "verdict.json"


def run_texts(run: Path, experiment: TextExperiment) -> None:
    """Do a comparison of texts, or what is missing of it, and write results/ of the run.

    Classifiers made from the same texts and settings are not repeated, augmentations neither. One that was interrupted
    is repeated from its start, being short.

    Args:
        run: the run folder.
        experiment: the resolved experiment.

    Raises:
        ConfigError: the folder is a run of images, an arm needs a network, or a model or endpoint is not named.
        DataError: the texts cannot be used, or a class has too few for data.shots.
        EnvironmentFault: a model, program or package is missing, or the disk is full.
        NumericError: a loss is not finite.
        Stopped: a signal asked for a stop; finished classifiers and augmentations are kept.
    """
    if (run / "run.json").exists():
        raise ConfigError(f"{run} is a run of images", why="its files would be mixed up", do="set another run.dir")
    with exclusive(run):
        remove_leftovers(run)
        shown = experiment.model_copy(update={"run": experiment.run.model_copy(update={"dir": ""})})
        write_text(run / "experiment.yaml", to_yaml(shown))
        write_json(run / RECORD, {"versions": versions(), "hardware": hardware()})
        comparison = prepare(run, experiment)
        say(f"texts: {described(comparison.splits)}")
        tasks = tasks_of(comparison, data_seeds_of(experiment))
        (run / RESULTS / VERDICT).unlink(missing_ok=True)
        _train(run, experiment, tasks)
        _conclude(run, comparison, tasks)


def data_seeds_of(experiment: TextExperiment) -> list[int]:
    """The seeds of the few-shot subsets."""
    return [experiment.data.seed + number for number in range(experiment.data.seeds)]


def prepare(run: Path, experiment: TextExperiment) -> TextComparison:
    """Read the texts and take or make their augmentations; what is lacking is said before anything is made.

    Raises:
        as `run_texts`.
    """
    settings, data = experiment.classify, experiment.data
    splits = read_splits(Path(data.path), data.text_columns, data.label_column)
    subsets = [
        splits.train if data.shots is None else few_shot(splits.train, data.shots, seed, splits.classes)
        for seed in data_seeds_of(experiment)
    ]
    device = pick_device(experiment.run.device)
    digest = _model_digest(experiment)
    used = [arm for arm in settings.arms if arm in experiment.augmentations]
    chains = {name: text_chain(experiment.augmentations[name], device) for name in used}
    # Of a validation text one augmentation is looked at, which is the first of those that it would have.
    single = {
        name: text_chain(experiment.augmentations[name].model_copy(update={"augmentations_per_sample": 1}), device)
        for name in used
    }
    wanted = sorted({own for subset in subsets for own in subset.ids})
    train = splits.train.rows(wanted)
    looked_at = _some(splits.validation, settings.affinity_texts, experiment.run.seed)
    for name in used:
        _estimate(experiment, name, [*train.texts, *looked_at.texts])
    return TextComparison(
        run=run,
        settings=settings,
        shots=data.shots,
        splits=splits,
        extras={name: _augmented(run, experiment, name, "train", chains[name], train) for name in used},
        shifted={name: _augmented(run, experiment, name, "validation", single[name], looked_at) for name in used},
        model_digest=digest,
        device=device,
    )


def _model_digest(experiment: TextExperiment) -> str | None:
    """Identity of the pretrained model; None of tfidf.

    Raises:
        ConfigError: an arm mixes texts within a network, and there is none.
        EnvironmentFault: the model is missing, or is of another kind.
    """
    settings = experiment.classify
    if settings.model == TFIDF:
        mixing = [arm for arm in settings.arms if arm in MIXINGS]
        if mixing:
            raise ConfigError(
                f"arm {mixing[0]} needs a network, and classify.model is tfidf",
                why="it mixes texts within the network while that is trained",
                do=f"name a BERT or its like in classify.model, or take {mixing[0]} out of classify.arms",
            )
        return None
    from .text_networks import load_classifier

    folder = find_model(settings.model, settings.revision, "text classifier", "classify.model")
    load_classifier(folder, None, ["0", "1"], 0, pick_device("cpu"))  # now, and not after hours of augmentation
    return identity_of(folder)


def _some(texts: Texts, most: int, seed: int) -> Texts:
    """At most so many texts, drawn by (seed, "affinity texts"), in their order."""
    chosen = numpy_generator(seed, "affinity texts").permutation(len(texts))[:most]
    return texts.rows(sorted(int(row) for row in chosen))


def _estimate(experiment: TextExperiment, name: str, rows: Sequence[tuple[str, ...]]) -> None:
    settings = experiment.augmentations[name]
    if settings.method == "rewriting":
        texts = [text for row in rows for text in row]
        say_estimate(settings.rewriting.rewriter, settings.chat, texts, settings.rewriting.rewrites)


def _augmented(run: Path, experiment: TextExperiment, name: str, split: str, chain: Chain, texts: Texts) -> Extra:
    settings, columns = experiment.augmentations[name], experiment.data.text_columns
    return augmented(
        run, name, split, chain, texts, columns, settings.method, experiment.run.seed, settings.max_characters
    )


def _train(run: Path, experiment: TextExperiment, tasks: Sequence[TextTask]) -> None:
    due = [task for task in tasks if task.row() is None]
    if len(due) < len(tasks):
        say(f"texts: {len(tasks) - len(due)} of {len(tasks)} classifiers were trained before and are kept")
    if not due:
        return
    settings = experiment.classify
    count = min(settings.jobs, len(due))
    order = {"run": str(run.resolve()), "experiment": experiment.model_dump(mode="json")}
    with (
        helpers(COMMAND, order, count),
        meter(f"classifiers ({Path(settings.model).name})", len(due) * settings.max_train_steps, "steps") as shown,
    ):
        until_all_done(due, shown, _claims(settings.max_train_steps), alone=count == 1)


def train_unclaimed(tasks: Sequence[TextTask], shown: Meter) -> list[TextTask]:
    """`workers.claim` of classifiers of texts."""
    return claim(tasks, shown, _claims(tasks[0].comparison.settings.max_train_steps)) if tasks else []


def _claims(steps: int) -> Claims[TextTask]:
    return Claims(
        is_done=lambda task: task.row() is not None,
        lock=lambda task: task.comparison.run / LOCKS / f"{task.path.stem}.lock",
        train=lambda task, shown: task.make(shown),
        steps=steps,
        name=lambda task: task.arm,
    )


def _conclude(run: Path, comparison: TextComparison, tasks: Sequence[TextTask]) -> None:
    rows = [(task, task.row() or {}) for task in tasks]
    affinity = _affinities([row for task, row in rows if task.arm == "real"])
    outcomes = [
        _outcome(arm, [(task, row) for task, row in rows if task.arm == arm], affinity.get(arm))
        for arm in comparison.settings.arms
    ]
    splits = comparison.splits
    warnings = []
    if splits.leaks:
        warnings.append(f"{splits.leaks} test texts are also training or validation texts and were left out")
    summaries, verdict = conclude_texts(outcomes, len(splits.validation), len(splits.test), warnings)
    write_table(run / RESULTS / "table.csv", summaries)
    write_json(run / RESULTS / "augmentations.json", _facts(comparison))
    write_json(run / RESULTS / VERDICT, verdict.facts())


def _affinities(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean over the classifiers of real texts, of those augmentations that have any."""
    found: dict[str, list[float]] = {}
    for row in rows:
        for name, value in row["affinity"].items():
            if value is not None:
                found.setdefault(name, []).append(float(value))
    return {name: float(np.mean(values)) for name, values in found.items()}


def _outcome(arm: str, rows: Sequence[tuple[TextTask, Mapping[str, Any]]], affinity: float | None) -> Outcome:
    validation = [row["validation_accuracy"] for _, row in rows]
    return Outcome(
        arm=Arm(arm),
        units=[(task.data_seed, task.seed) for task, _ in rows],
        validation=None if None in validation else [float(value) for value in validation],
        test=[row["test"] for _, row in rows],
        correct=[np.array(row["test_correct"], dtype=bool) for _, row in rows],
        ratio=float(np.mean([row["new_texts"] / row["real_texts"] for _, row in rows])),
        diversity=float(np.mean([row["diversity"] for _, row in rows])),
        affinity=0.0 if arm == "real" else affinity,
        labels=[np.array(row["test_labels"], dtype=np.int64) for _, row in rows],
    )


def _facts(comparison: TextComparison) -> dict[str, Any]:
    return {
        name: {key: value for key, value in extra.facts.items() if key != "key"}
        for name, extra in comparison.extras.items()
    }


def print_texts(run: Path, console: Console | None = None) -> None:
    """Print the table and verdict of a comparison of texts, and what each augmentation took and gave.

    Raises:
        DataError: the run has no finished comparison.
    """
    console = console or wide_console()
    print_table(run, console)
    facts = read_json(run / RESULTS / "augmentations.json")
    if not facts:
        return
    table = Table(title="augmentations of the training texts")
    for heading in ("augmentation", "texts", "new texts", "dropped", "seconds each"):
        table.add_column(heading, justify="left" if heading == "augmentation" else "right")
    for name, own in facts.items():
        dropped = sum(own["dropped"].values()) / max(own["looked at"], 1)
        each = f"{own['seconds an augmentation']:.2g}"
        table.add_row(name, str(own["rows"]), str(own["augmentations"]), f"{points(dropped)} %", each)
    console.print(table)
