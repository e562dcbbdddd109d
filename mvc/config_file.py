"""Reading an experiment: YAML file, then dotted overrides, into the typed schema, with errors one can act on."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mvc.config import Experiment
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


def known_keys(section: type[Section] = Experiment, prefix: str = "") -> dict[str, FieldInfo]:
    """All dotted keys of the schema with their fields; sections themselves included."""
    keys: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            keys.update(known_keys(kind, f"{prefix}{name}."))
    return keys


def allowed_values(dotted: str) -> str:
    """What a key takes, in words, from the schema."""
    schema = Experiment.model_json_schema()
    node: dict[str, Any] = schema
    for key in dotted.split("."):
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        if key not in node.get("properties", {}):
            return ""
        node = node["properties"][key]
    if "$ref" in node:
        return "a section with keys below it"
    texts = [_in_words(part) for part in node.get("anyOf", [node])]
    default = f" (default {node['default']!r})" if "default" in node else ""
    return " or ".join(text for text in texts if text) + default


def _in_words(part: dict[str, Any]) -> str:
    if "enum" in part:
        return "one of " + ", ".join(str(value) for value in part["enum"])
    if "const" in part:
        return str(part["const"])
    names = {
        "number": "a number",
        "integer": "a whole number",
        "string": "text",
        "boolean": "true or false",
        "null": "null",
        "array": "a list such as [a, b]",
        "object": "a mapping such as {a: b}",
    }
    text = names.get(str(part.get("type", "")), "")
    limits = {
        "minimum": ">=",
        "exclusiveMinimum": ">",
        "maximum": "<=",
        "exclusiveMaximum": "<",
        "pattern": "like",
    }
    bounds = [
        f"{sign} {part[name]:g}" if name != "pattern" else f"{sign} {part[name]}"
        for name, sign in limits.items()
        if name in part
    ]
    return " ".join([text, " and ".join(bounds)]).strip()


def _explain(error: dict[str, Any], marks: Marks, origin: str) -> ConfigError:
    keys = tuple(str(part) for part in error["loc"])
    # pydantic adds the branch of a union to the location: cut back to a key that stands in the file.
    while len(keys) > 1 and keys not in marks and ".".join(keys) not in known_keys():
        keys = keys[:-1]
    dotted = ".".join(keys)
    where = next((marks[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in marks), origin)
    if error["type"] == "extra_forbidden":
        # The closest name is looked for among the section's keys first, then among all.
        parent = ".".join(keys[:-1])
        siblings = [key for key in known_keys() if key.rpartition(".")[0] == parent]
        near = difflib.get_close_matches(dotted, siblings, n=1, cutoff=0.6)
        near = near or [key for key in known_keys() if key.rpartition(".")[2] == keys[-1]][:1]
        near = near or difflib.get_close_matches(dotted, list(known_keys()), n=1, cutoff=0.5)
        known = ", ".join(key.rpartition(".")[2] for key in siblings) or "no keys"
        return ConfigError(
            f"{where}: unknown key '{dotted}' (value {error['input']!r})",
            why=f"known keys {'of ' + parent if parent else 'at the top'}: {known}",
            do=f"did you mean '{near[0]}'?" if near else "remove it",
        )
    message = error["msg"].removeprefix("Value error, ")
    allowed = None if isinstance(error["input"], dict) else allowed_values(dotted)
    value = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"  # a section says nothing as a whole
    return ConfigError(
        f"{where}: {dotted}{value} cannot be used",
        why=message[0].lower() + message[1:],
        do=f"allowed: {allowed}" if allowed else "correct the value",
    )


def _refuse_booleans(content: Any, marks: Marks, keys: tuple[str, ...] = ()) -> None:
    # pydantic would read `true` as 1 where a number is due.
    fields = known_keys()
    if isinstance(content, dict):
        for key, value in content.items():
            _refuse_booleans(value, marks, (*keys, str(key)))
    elif isinstance(content, bool) and ".".join(keys) in fields and fields[".".join(keys)].annotation is not bool:
        dotted = ".".join(keys)
        raise ConfigError(
            f"{marks.get(keys, 'experiment')}: {dotted} = {str(content).lower()} cannot be used",
            why="true and false are no numbers or text",
            do=f"allowed: {allowed_values(dotted)}",
        )


def build_experiment(content: dict[str, Any], marks: Marks, origin: str) -> Experiment:
    """Check a mapping against the schema.

    Args:
        content: sections with keys.
        marks: where each key stands, from `read_yaml` and `apply_overrides`.
        origin: name for keys that stand nowhere.

    Raises:
        ConfigError: the first wrong key or value, with place, what is allowed and the nearest known key.
    """
    # An empty section (`train:` with nothing below) means its defaults.
    content = {
        key: ({} if value is None and key in Experiment.model_fields else value) for key, value in content.items()
    }
    _refuse_booleans(content, marks)
    try:
        return Experiment.model_validate(content)
    except ValidationError as error:
        raise _explain(dict(error.errors()[0]), marks, origin) from None


def to_yaml(experiment: Experiment) -> str:
    """The whole experiment as YAML, every key written out; reading it back gives the same experiment."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
