"""What `mvc texts` was given, an experiment file or run folder, a data folder and overrides, as one experiment."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

from mvc.arguments import file_or_shipped, run_name
from mvc.config_augment import AugmentSection
from mvc.config_file import Marks, apply_overrides, read_yaml
from mvc.config_schema import build
from mvc.config_texts import TextExperiment
from mvc.errors import ConfigError

RECORD = "texts.json"
"""File that a run folder of texts has."""


def shipped_text_experiments() -> dict[str, Path]:
    """Name -> file of the experiments with texts that come with the package."""
    folder = Path(str(files("mvc.configs"))) / "texts"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def _experiment_file(given: str) -> Path:
    path = Path(given)
    if path.is_dir():
        if (path / RECORD).exists() and (path / "experiment.yaml").exists():
            return path / "experiment.yaml"
        raise ConfigError(
            f"{given} is no run of texts",
            why="a folder given here is a run folder",
            do=f"for a folder of tables write: mvc texts --data {given}",
        )
    return file_or_shipped(given, shipped_text_experiments())


def resolve_texts(arguments: list[str], data: str | None = None) -> TextExperiment:
    """Make the experiment that a command line describes.

    Args:
        arguments: at most one experiment file, run folder or shipped name, first; then `section.key=value`.
        data: the folder of tables, which wins over the file's data.path.

    Returns:
        the experiment with run.dir set: runs/<name of the file or of the data folder> unless given.

    Raises:
        ConfigError: a wrong file, key or value, or no data was given.
    """
    given = [text for text in arguments if "=" not in text]
    if len(given) > 1:
        raise ConfigError(f"two experiments were given: {given[0]} and {given[1]}", do="give one")
    content: dict[str, Any] = {}
    marks: Marks = {}
    name, folder = "", ""
    if given:
        path = _experiment_file(given[0])
        content, marks = read_yaml(path)
        name = path.parent.name if path.name == "experiment.yaml" else path.stem
        folder = given[0] if Path(given[0]).is_dir() else ""
    if data is not None:
        section = content.get("data") or {}
        if not isinstance(section, dict):
            raise ConfigError(f"{given[0]}: 'data' is a value and has no keys", do="see `mvc texts --dry-run`")
        content["data"] = {**section, "path": data}
        name = name or Path(data).resolve().name
    apply_overrides(content, marks, [text for text in arguments if "=" in text])
    experiment = build(TextExperiment, content, marks, origin=given[0] if given else "command line")
    if not experiment.data.path:
        raise ConfigError(
            "no texts were given", do="write `mvc texts --data FOLDER`, a folder with train.csv, test.csv and so on"
        )
    experiment = _with_absolute_places(experiment)
    if not experiment.run.dir:
        place = folder or f"runs/{run_name(name)}"
        experiment = experiment.model_copy(update={"run": experiment.run.model_copy(update={"dir": place})})
    return experiment


BUILT_IN = ("flite", "pocketsphinx", "tiny", "tfidf")
"""Names that are no places, even where a file is called so."""


def _absolute(text: str | None) -> str | None:
    if text in BUILT_IN:
        return text
    return str(Path(text).resolve()) if text and Path(text).exists() else text


def _with_absolute_places(experiment: TextExperiment) -> TextExperiment:
    """Local folders and files by their absolute path, so that the run goes on from any working folder."""
    augmentations = {name: _augmentation(own) for name, own in experiment.augmentations.items()}
    data = experiment.data.model_copy(update={"path": _absolute(experiment.data.path)})
    classify = experiment.classify.model_copy(update={"model": _absolute(experiment.classify.model)})
    return experiment.model_copy(update={"data": data, "augmentations": augmentations, "classify": classify})


PLACES = {
    "eda": ("synonyms",),
    "speech": ("speaker", "voice", "vocoder", "listener"),
    "imagination": ("model", "captioner"),
    "translation": ("forth", "back"),
    "language_model": ("model",),
}
"""Keys that may name a folder or file, by section."""


def _augmentation(own: AugmentSection) -> AugmentSection:
    sections = {}
    for name, keys in PLACES.items():
        section = getattr(own, name)
        sections[name] = section.model_copy(update={key: _absolute(getattr(section, key)) for key in keys})
    return own.model_copy(update=sections)
