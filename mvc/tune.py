"""`mvc tune`: try sampling settings and fine-tuning checkpoints on few images, and show what each costs and gives.

The apps do the parts and are reached by name: generate draws and scores, train has the checkpoints, classify trains
short runs. Nothing is chosen here, and the test split is never looked at.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.errors import ConfigError
from mvc.extractors import find_extractor
from mvc.models import FACTS, resolve_base, working_size
from mvc.preflight import check_experiment
from mvc.progress import meter, say
from mvc.quality import significant
from mvc.report.trade_off import write_trade_off
from mvc.report.tuning import TUNE, notes_of, write_table
from mvc.stopping import flag
from mvc.storage import exclusive, read_json, remove_leftovers, write_json

MODELS = "tune/models"
"""Below the run folder: the model folder of the checkpoint that is being drawn from, as long as that lasts."""
TRADE_OFF = "tune/trade_off.png"


def _named(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def stage_before(experiment: Experiment) -> str:
    """The stage up to which a run has to be done first; what cannot be tried is refused before hours are spent on it.

    Args:
        experiment: the resolved experiment, with run.dir.

    Returns:
        train, or caption where no point needs the fine-tuned model.

    Raises:
        ConfigError: a key or value of tune.grid or tune.points cannot be used, or a checkpoint is or will be missing.
        EnvironmentFault: a model that a point or a score needs is missing or damaged.
    """
    points = _named("mvc.generate.tune_points:points_of")(experiment)
    for point in points:
        check_experiment(point.experiment, "generate")
    if experiment.quality.extractor not in ("auto", "tiny"):
        find_extractor(experiment.quality.extractor, "quality.extractor")
    _require_checkpoints(Path(experiment.run.dir), experiment, points)
    return "train" if any(point.fine_tuned for point in points) else "caption"


def _require_checkpoints(run: Path, experiment: Experiment, points: Sequence[Any]) -> None:
    wanted = sorted({point.checkpoint for point in points if point.checkpoint is not None})
    if not wanted:
        return
    there = _named("mvc.train.tune:checkpoint_steps")(run, experiment)
    missing = [step for step in wanted if step not in there]
    if not missing:
        return
    where = "tune.points" if experiment.tune.points else "tune.grid"
    trained = (run / "model" / FACTS).exists()
    apart = int(np.gcd.reduce(wanted))
    steps = max(*wanted, *there)
    named, others = ", ".join(map(str, missing)), ", ".join(map(str, there))
    raise ConfigError(
        f"{where}: there {'is' if trained else 'will be'} no checkpoint of {named} steps",
        why=f"the fine-tuning {'has kept' if trained else 'will keep'} those of {others}",
        do=f"choose among these, or fine-tune {'in another run.dir ' if trained else ''}with "
        f"train.checkpointing_steps={apart} train.checkpoints_total_limit={max(2, -(-steps // apart))}",
    )


def run_tune(run: Path, experiment: Experiment) -> None:
    """Draw, score and show the points of the section tune: run/tune/table.csv, trade_off.png and, last, tune.json.

    Images and classifiers of an earlier start are kept as long as what they depend on is the same. Randomness as in
    the stage generate; at every point the images come from the same noise.

    Args:
        run: the run folder, its stages done up to `stage_before`.
        experiment: the resolved experiment.

    Raises:
        ConfigError: as `stage_before`.
        DataError: something that an earlier stage writes is missing or damaged, or an image cannot be decoded.
        EnvironmentFault: a model is missing or damaged, memory or disk is too small, or the run is in use.
        Stopped: a signal asked for a stop; what was finished is kept.
    """
    points = _named("mvc.generate.tune_points:points_of")(experiment)
    _require_checkpoints(run, experiment, points)
    with exclusive(run):
        (run / TUNE).unlink(missing_ok=True)
        shutil.rmtree(run / MODELS, ignore_errors=True)
        remove_leftovers(run / "tune")
        _draw(run, experiment, points)
        size = _image_size(experiment)
        scored = _named("mvc.generate.tune_scores:score_points")(run, experiment, points, size)
        trained = _classify(run, experiment, points, size) if experiment.tune.classifier_steps else None
        summary = _summary(run, experiment, points, scored, trained)
        write_table(run, summary)
        write_trade_off(run / TRADE_OFF, summary)
        # Last, because its presence says that all is there.
        write_json(run / TUNE, summary)


def _draw(run: Path, experiment: Experiment, points: Sequence[Any]) -> None:
    """Draw what is missing, one checkpoint after the other, so that one model at a time takes room."""
    is_drawn, draw_point = _named("mvc.generate.tune:is_drawn"), _named("mvc.generate.tune:draw_point")
    # The file that changes with the model: a model folder and a checkpoint both have a manifest.
    made_by = {point.number: _manifest(run, point.checkpoint) for point in points}
    todo = [point for point in points if not is_drawn(run, point, made_by[point.number])]
    if len(todo) < len(points):
        say(f"tune: {len(points) - len(todo)} of {len(points)} points were drawn before and are kept")
    for step in dict.fromkeys(point.checkpoint for point in todo):
        with _model(run, experiment, step) as folder:
            for point in (point for point in todo if point.checkpoint == step):
                flag.check("points that were finished are kept")
                say(f"tune: point {point.number} of {len(points)}: {point.label}")
                draw_point(run, point, made_by[point.number], folder)


def _manifest(run: Path, step: int | None) -> Path:
    if step is None:
        return run / "model" / "manifest.json"
    found: Path = _named("mvc.train.tune:checkpoint_manifest")(run, step)
    return found


@contextmanager
def _model(run: Path, experiment: Experiment, step: int | None) -> Iterator[Path | None]:
    """The model folder of a checkpoint as long as the block lasts; None for that of the run."""
    if step is None or read_json(run / "model" / FACTS)["steps"] == step:
        yield None
        return
    folder = run / MODELS / f"step-{step:06d}"
    try:
        _named("mvc.train.tune:publish_checkpoint")(run, experiment, step, folder)
        yield folder
    finally:
        shutil.rmtree(folder.parent, ignore_errors=True)


def _image_size(experiment: Experiment) -> int:
    model = experiment.model
    return working_size(resolve_base(model.base, model.revision, model.config), experiment.data.image_size)


def _classify(run: Path, experiment: Experiment, points: Sequence[Any], image_size: int) -> dict[str, Any]:
    """Short classifier runs: {"real": ..., "duplicate": ..., "points": [...]}, and what they were."""
    arm, given = _named("mvc.classify.tune:ARM"), _named("mvc.classify.tune:Given")
    baselines = _named("mvc.classify.tune:BASELINES")
    dataset = load_index(run)
    short = _named("mvc.classify.tune:prepare_short_runs")(run, experiment, image_size)
    made = [
        [
            given(one.path, one.sha256, dataset.classes.index(one.class_name))
            for one in _named("mvc.generate.tune:pictures_of")(run, point)
        ]
        for point in points
    ]
    work = [*((name, max(made, key=len)) for name in baselines), *((arm, images) for images in made)]
    found = []
    total = len(work) * len(short.seeds) * short.steps
    with meter(f"short classifiers ({short.backbone})", total, "steps") as shown:
        for name, images in work:
            usable = bool(images) or name == "real"
            values = short.accuracies(name, images, shown) if usable else []
            found.append(_accuracy(values, len(short.validation)))
    return {
        "arm": arm,
        "steps": short.steps,
        "seeds": list(short.seeds),
        "backbone": short.backbone,
        "validation_images": len(short.validation),
        "baselines": dict(zip(baselines, found, strict=False)),
        "points": found[len(baselines) :],
    }


def _accuracy(values: Sequence[float], images: int) -> dict[str, Any] | None:
    """Mean over the seeds, and its standard error by the few images and by the seeds."""
    if not values:
        return None
    mean = float(np.mean(values))
    spread = float(np.std(values, ddof=1)) if len(values) > 1 else None
    error = _named("mvc.generate.tune_figures:share_error")(mean, images)
    return {
        "values": [significant(value) for value in values],
        "mean": significant(mean),
        "standard_deviation": None if spread is None else significant(spread),
        "error": significant(float(np.hypot(error, (spread or 0.0) / len(values) ** 0.5))),
    }


def _summary(
    run: Path,
    experiment: Experiment,
    points: Sequence[Any],
    scored: Mapping[str, Any],
    trained: Mapping[str, Any] | None,
) -> dict[str, Any]:
    keys = list(dict.fromkeys(key for point in points for key in point.settings))
    folder, rows = _named("mvc.generate.tune:POINTS"), []
    accuracies = trained["points"] if trained is not None else [None] * len(points)
    for point, scores, accuracy in zip(points, scored["points"], accuracies, strict=True):
        rows.append(
            {
                "number": point.number,
                "label": point.label,
                "settings": {key: _value(run, point, key) for key in keys},
                "folder": f"{folder}/{point.folder}",
                **scores,
                "validation_accuracy": accuracy,
            }
        )
    summary = {
        "keys": keys,
        "points": rows,
        "front": [row["number"] for row in rows if row["front"]],
        **{name: scored[name] for name in ("real", "extractor", "agreement_by")},
        "classifiers": None if trained is None else {name: trained[name] for name in trained if name != "points"},
        "neighbours": experiment.quality.neighbours,
        "per_class": experiment.tune.per_class,
        "seed": experiment.run.seed,
    }
    return {**summary, "notes": notes_of(summary)}


def _value(run: Path, point: Any, key: str) -> Any:
    """What a key is at a point, set there or not; of the checkpoint, the steps of the model that it draws with."""
    if key != "checkpoint":
        section, _, name = key.partition(".")
        return point.experiment.model_dump(mode="json")[section][name]
    if point.checkpoint is None and point.fine_tuned:
        return read_json(run / "model" / FACTS)["steps"]
    return point.checkpoint
