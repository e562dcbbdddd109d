"""What a command was given, an experiment file or run folder, a data folder and overrides, as one experiment."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from mvc.config import Experiment
from mvc.config_file import Marks, apply_overrides, read_yaml
from mvc.config_schema import build_experiment
from mvc.errors import ConfigError

EMBEDDED_DATA = "digits"
EMBEDDED_MODEL = "tiny"


def shipped_experiments() -> dict[str, Path]:
    """Name -> file of the experiments that come with the package."""
    folder = Path(str(files("mvc.configs")))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _experiment_file(given: str) -> Path:
    """A file, a run folder, or the name of a shipped experiment."""
    path = Path(given)
    if path.is_dir():
        if (path / "experiment.yaml").exists():
            return path / "experiment.yaml"
        if (path / "repeats.json").exists():
            first = next(iter(sorted(child.name for child in path.glob("*-*") if child.is_dir())), "seed-0")
            raise ConfigError(
                f"{given} holds several runs of one experiment",
                do=f"give one of them, such as {path / first}, or the first command again to go on with all",
            )
        raise ConfigError(
            f"{given} is a folder without experiment.yaml",
            why="a folder given here is a run folder",
            do=f"for a folder of images write: mvc run --data {given}",
        )
    return file_or_shipped(given, shipped_experiments())


def file_or_shipped(given: str, shipped: Mapping[str, Path]) -> Path:
    """An experiment file: one that is there, else a shipped one by its name.

    Raises:
        ConfigError: it is neither.
    """
    path = Path(given)
    if path.exists():
        return path
    if path.suffix in ("", ".yaml") and path.stem in shipped:
        return shipped[path.stem]
    raise ConfigError(f"there is no experiment file {given}", do=f"shipped ones: {', '.join(shipped)}")


def absolute(text: str | None, built_in: Sequence[str] = ()) -> str | None:
    """A local file or folder by its absolute path, so that a run goes on from any working folder.

    Args:
        text: a place, a hub id, a name or nothing.
        built_in: names that are no places, even where a file is called so.
    """
    return str(Path(text).resolve()) if text and text not in built_in and Path(text).exists() else text


def _with_absolute_places(experiment: Experiment) -> Experiment:
    """Local folders and files by their absolute path, so that the run goes on from any working folder."""

    data = experiment.data
    if data.path != EMBEDDED_DATA:
        data = data.model_copy(update={"path": absolute(data.path)})
    model = experiment.model
    if model.base != EMBEDDED_MODEL:
        model = model.model_copy(update={"base": absolute(model.base), "config": absolute(model.config)})
    captions = experiment.captions.model_copy(update={"model": absolute(experiment.captions.model)})
    own = experiment.classify
    classify = own.model_copy(update={"weights": absolute(own.weights), "clip": absolute(own.clip)})
    back = experiment.back_captioning
    back = back.model_copy(
        update={
            "captioner": absolute(back.captioner),
            "model": absolute(back.model) if back.model != EMBEDDED_MODEL else back.model,
            "eda": back.eda.model_copy(update={"synonyms": absolute(back.eda.synonyms)}),
            "language_model": back.language_model.model_copy(update={"model": absolute(back.language_model.model)}),
        }
    )
    generate, looks, quality = experiment.generate, experiment.filter, experiment.quality
    places = {"edit_model": absolute(generate.edit_model), "import_path": absolute(generate.import_path)}
    extractors = {"extractor": _absolute_spec(looks.extractor), "clip": _absolute_spec(looks.clip)}
    return experiment.model_copy(
        update={
            "data": data,
            "model": model,
            "captions": captions,
            "back_captioning": back,
            "generate": generate.model_copy(update=places),
            "filter": looks.model_copy(update=extractors),
            "quality": quality.model_copy(update={"extractor": _absolute_spec(quality.extractor)}),
            "classify": classify,
        }
    )


def _absolute_spec(spec: str | None) -> str | None:
    """An extractor with its folder or file by the absolute path: FOLDER, or open_clip:NAME:FILE and the like."""
    if spec is None or spec in ("auto", "tiny"):
        return spec
    *names, place = spec.split(":", 2)
    return ":".join([*names, str(Path(place).resolve())]) if Path(place).exists() else spec


def run_name(text: str) -> str:
    """A name for a run folder: without signs that are awkward in paths."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-.") or "run"


def resolve(arguments: list[str], data: str | None = None) -> Experiment:
    """Make the experiment that a command line describes.

    Args:
        arguments: at most one experiment file, run folder or shipped name, first; then `section.key=value`.
        data: the folder of images, which wins over the file's data.path.

    Returns:
        the experiment with run.dir set: runs/<name of the file or of the data folder> unless given.

    Raises:
        ConfigError: a wrong file, key or value, or neither an experiment nor data was given.
    """
    overrides = [text for text in arguments if "=" in text]
    given = [text for text in arguments if "=" not in text]
    if len(given) > 1:
        raise ConfigError(
            f"two experiments were given: {given[0]} and {given[1]}",
            do="give one; changes are section.key=value",
        )
    content: dict[str, Any] = {}
    marks: Marks = {}
    name = ""
    if given:
        path = _experiment_file(given[0])
        content, marks = read_yaml(path)
        name = path.parent.name if path.name == "experiment.yaml" else path.stem
    if data is not None:
        section = content.setdefault("data", {}) or {}
        if not isinstance(section, dict):
            raise ConfigError(f"{given[0]}: 'data' is a value and has no keys", do="see `mvc run --dry-run`")
        content["data"] = {**section, "path": data}
        name = name or Path(data).resolve().name
    apply_overrides(content, marks, overrides)
    experiment = build_experiment(content, marks, origin=given[0] if given else "command line")
    if not experiment.data.path:
        raise ConfigError(
            "no images were given",
            do="write `mvc run --data FOLDER`, or try `mvc run digits`, which needs no data",
        )
    experiment = _with_absolute_places(experiment)
    if experiment.run.dir:
        return experiment
    # The folder that an experiment.yaml lies in is its run, also after it was moved.
    is_run = bool(given) and Path(given[0]).is_dir()
    folder = given[0] if is_run else f"runs/{run_name(name or Path(experiment.data.path).name)}"
    return experiment.model_copy(update={"run": experiment.run.model_copy(update={"dir": folder})})
