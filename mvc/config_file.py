"""Reading an experiment: a YAML file, then dotted overrides; what they hold is checked in config_schema.py."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mvc.config_types import Section
from mvc.errors import ConfigError

SIZE_LIMIT = 1_000_000
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
Marks = dict[tuple[str, ...], str]


class _Loader(yaml.SafeLoader):
    """YAML 1.2's core scalars: 1e-4 is a number, `no` and `on` are text, 012 is twelve."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", re.compile(r"^(~|null|Null|NULL|)$"), ["~", "n", "N", ""]),
    ("bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")),
    ("int", re.compile(r"^[-+]?[0-9]+$"), list("-+0123456789")),
    ("float", _FLOAT, list("-+.0123456789")),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", _pattern, _first)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))
_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: float(node.value))


def _check_node(node: yaml.Node, origin: str, path: tuple[str, ...], marks: Marks) -> None:
    """Refuse duplicate keys and note where each key stands."""
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key_node, value_node in node.value:
            key = str(key_node.value)
            here = f"{origin}, line {key_node.start_mark.line + 1}"
            if key in seen:
                dotted = ".".join((*path, key))
                raise ConfigError(f"{here}: the key '{dotted}' stands here twice", do="keep one of the two")
            seen.add(key)
            marks[(*path, key)] = here
            _check_node(value_node, origin, (*path, key), marks)
    elif isinstance(node, yaml.SequenceNode):
        for value_node in node.value:
            _check_node(value_node, origin, path, marks)


def _parse(text: str, origin: str) -> tuple[Any, Marks]:
    marks: Marks = {}
    try:
        for event in yaml.parse(text, Loader=_Loader):
            if isinstance(event, yaml.AliasEvent):
                line = event.start_mark.line + 1 if event.start_mark else 0
                raise ConfigError(f"{origin}, line {line}: YAML aliases are not used here", do="write the value out")
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            return {}, marks
        _check_node(node, origin, (), marks)
        return yaml.load(text, Loader=_Loader), marks
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{origin}, line {mark.line + 1}, column {mark.column + 1}" if mark else origin
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError(
            f"{where}: not valid YAML", why=problem, do="indent with spaces and quote special text"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{origin}: nested too deeply") from error


def read_yaml(path: Path) -> tuple[dict[str, Any], Marks]:
    """Read an experiment file.

    Args:
        path: a YAML file of at most 1 MB.

    Returns:
        the mapping, and for each key where it stands, for error messages.

    Raises:
        ConfigError: missing, too large, not YAML, duplicate keys, aliases, or not a mapping of sections.
    """
    try:
        if path.stat().st_size > SIZE_LIMIT:
            raise ConfigError(f"{path} is larger than 1 MB", why="an experiment file is a page of text")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}", why=str(error), do="give an experiment file or a run folder"
        ) from error
    content, marks = _parse(text, str(path))
    if not isinstance(content, dict):
        raise ConfigError(
            f"{path} holds a {type(content).__name__}", do="write sections such as `train:` with keys below"
        )
    return content, marks


def apply_overrides(content: dict[str, Any], marks: Marks, overrides: list[str]) -> None:
    """Write `section.key=value` texts into the mapping, in place; values are read as YAML.

    Raises:
        ConfigError: an override has no `=` or goes through a value that is not a section.
    """
    for override in overrides:
        dotted, equals, text = override.partition("=")
        keys = tuple(dotted.split("."))
        if not equals or not all(keys):
            raise ConfigError(
                f"'{override}' is not an override",
                do="write section.key=value, such as train.learning_rate=5e-5",
            )
        value, _ = _parse(text, f"override {override}")
        if text.strip() == "":
            value = None
        place = content
        for key in keys[:-1]:
            if place.get(key) is None:
                place[key] = {}
            place = place[key]
            if not isinstance(place, dict):
                raise ConfigError(
                    f"override {override}: '{key}' is a value and has no keys", do="see `mvc run --dry-run`"
                )
        place[keys[-1]] = value
        marks[keys] = f"override {override}"


def to_yaml(experiment: Section) -> str:
    """The whole experiment as YAML, every key written out; reading it back gives the same experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
