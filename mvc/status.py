"""How far a run is, from its files alone; loads no model and takes no lock."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from mvc.amounts import needs_back_captions, with_steps
from mvc.config import Experiment
from mvc.dataset import INDEX
from mvc.errors import ConfigError
from mvc.expected import training_counts
from mvc.pipeline import read_record
from mvc.stages import STAGES
from mvc.storage import files_like


def require_run(run: Path) -> None:
    """Make sure that a folder is a run.

    Raises:
        ConfigError: it has no run.json.
    """
    if not (run / "run.json").exists():
        raise ConfigError(f"{run} is not a run folder", why="it has no run.json", do="start one: mvc run --data FOLDER")


def _count(folder: Path, pattern: str) -> int:
    return len(files_like(folder, pattern))


def _lines(path: Path) -> int:
    return sum(1 for _ in open(path, "rb")) if path.exists() else 0


def _steps(run: Path, experiment: Experiment) -> int:
    images = sum(training_counts(run, experiment).values()) if (run / INDEX).exists() else 0
    return with_steps(experiment, images).train.steps


def _detail(run: Path, experiment: Experiment, stage: str) -> str:
    """What a stage has made so far, in words."""
    if stage == "data":
        return f"{_lines(run / 'data' / 'index.jsonl')} images in the index"
    if stage == "caption":
        done = _lines(run / "captions.jsonl") or _lines(run / "cache" / "captions.partial.jsonl")
        return f"{done} captions"
    if stage == "back_caption":
        return f"{_lines(run / 'back_captions.jsonl')} texts"
    if stage == "train":
        steps = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
        return f"newest checkpoint {steps[-1] if steps else 'none'} of {_steps(run, experiment)} steps"
    if stage == "generate":
        return f"{_count(run / 'synthetic', 't*/*/*.png') + _count(run / 'synthetic', 'r*/*/*.png')} images drawn"
    if stage == "filter":
        return f"{_lines(run / 'synthetic' / 'train' / 'metadata.jsonl')} images accepted"
    if stage == "quality":
        return "quality/quality.json" if (run / "quality" / "quality.json").exists() else ""
    if stage == "classify":
        runs = len(experiment.classify.arms) * len(experiment.classify.seed_list) * len(experiment.classify.backbones)
        trained = _count(run / "cache" / "classifiers", "*/classifier.json")
        return f"{_count(run / 'results', '**/*-seed*.json')} of {runs} classifiers measured, {trained} kept"
    return "report/index.html" if (run / "report" / "index.html").exists() else ""


def print_status(experiment: Experiment) -> None:
    """Print one line a stage: state, time spent, what is there.

    Raises:
        ConfigError: the folder is not a run.
    """
    run = Path(experiment.run.dir)
    require_run(run)
    record = read_record(run)
    table = Table(title=str(run))
    for heading in ("stage", "state", "seconds", "what is there"):
        table.add_column(heading)
    for stage in STAGES:
        entry = record["stages"].get(stage.name)
        if stage.name == "back_caption" and entry is None and not needs_back_captions(experiment):
            continue
        state = "not started" if entry is None else entry["state"]
        seconds = "" if entry is None else f"{entry['seconds']:.1f}"
        table.add_row(stage.name, state, seconds, _detail(run, experiment, stage.name))
    Console().print(table)
