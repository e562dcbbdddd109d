"""Kinds of experiments beside that of images: what a command was given, as one experiment of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Generic, TypeVar

from mvc.arguments import file_or_shipped, run_name
from mvc.config_file import Marks, apply_overrides, read_yaml
from mvc.config_schema import build
from mvc.config_types import Section
from mvc.errors import ConfigError

Experiment = TypeVar("Experiment", bound=Section)


@dataclass(frozen=True)
class Kind(Generic[Experiment]):
    """One kind.

    Attributes:
        command: of `mvc`; its shipped experiments lie in a folder of that name, too.
        schema: with the sections run and data.
        record: file that a run folder of this kind has.
        folders: what a folder of its data is called, such as "a folder of tables".
        lacking: what to do where no data are given.
    """

    command: str
    schema: type[Experiment]
    record: str
    folders: str
    lacking: str

    def shipped(self) -> dict[str, Path]:
        """Name -> file of the experiments that come with the package."""
        folder = Path(str(files("mvc.configs"))) / self.command
        return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def resolve_kind(kind: Kind[Experiment], arguments: Sequence[str], data: str | None) -> Experiment:
    """Make the experiment that a command line describes.

    Args:
        kind: of the command.
        arguments: at most one experiment file, run folder or shipped name, first; then `section.key=value`.
        data: the place of the data, which wins over the file's data.path.

    Returns:
        the experiment with run.dir set: runs/<name of the file or of the data> unless given.

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
        path = _experiment_file(kind, given[0])
        content, marks = read_yaml(path)
        name = path.parent.name if path.name == "experiment.yaml" else path.stem
        folder = given[0] if Path(given[0]).is_dir() else ""
    if data is not None:
        section = content.get("data") or {}
        if not isinstance(section, dict):
            raise ConfigError(
                f"{given[0]}: 'data' is a value and has no keys", do=f"see `mvc {kind.command} --dry-run`"
            )
        content["data"] = {**section, "path": data}
        name = name or Path(data).resolve().name
    apply_overrides(content, marks, [text for text in arguments if "=" in text])
    experiment: Any = build(kind.schema, content, marks, origin=given[0] if given else "command line")
    if not experiment.data.path:
        raise ConfigError("no data were given", do=kind.lacking)
    if not experiment.run.dir:
        place = folder or f"runs/{run_name(name)}"
        experiment = experiment.model_copy(update={"run": experiment.run.model_copy(update={"dir": place})})
    found: Experiment = experiment
    return found


def _experiment_file(kind: Kind[Any], given: str) -> Path:
    path = Path(given)
    if path.is_dir():
        if (path / kind.record).exists() and (path / "experiment.yaml").exists():
            return path / "experiment.yaml"
        raise ConfigError(
            f"{given} is no run of `mvc {kind.command}`",
            why="a folder given here is a run folder",
            do=f"for {kind.folders} write: mvc {kind.command} --data {given}",
        )
    return file_or_shipped(given, kind.shipped())
