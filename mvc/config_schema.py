"""The typed schema of an experiment: what keys there are, what they take, and errors one can act on."""

from __future__ import annotations

import difflib
from typing import Any, TypeVar, get_args, get_origin

from pydantic import ValidationError
from pydantic.fields import FieldInfo

from mvc.config import Experiment
from mvc.config_file import Marks
from mvc.config_types import Section
from mvc.errors import ConfigError

Schema = TypeVar("Schema", bound=Section)
ANY = "*"
"""Stands for any name in a dotted key, where a section maps names to sections."""


def known_keys(section: type[Section] = Experiment, prefix: str = "") -> dict[str, FieldInfo]:
    """All dotted keys of a schema with their fields; sections themselves included."""
    keys: dict[str, FieldInfo] = {}
    for name, field in section.model_fields.items():
        keys[prefix + name] = field
        below, named = section_of(field)
        if below is not None:
            keys.update(known_keys(below, f"{prefix}{name}.{ANY + '.' if named else ''}"))
    return keys


def section_of(field: FieldInfo) -> tuple[type[Section] | None, bool]:
    """The section that a field holds, and whether it holds several by name; None if it holds a value."""
    kind = field.annotation
    if get_origin(kind) is dict:
        kind = get_args(kind)[1]
        return (kind, True) if isinstance(kind, type) and issubclass(kind, Section) else (None, False)
    return (kind, False) if isinstance(kind, type) and issubclass(kind, Section) else (None, False)


def _general(keys: tuple[str, ...], schema: type[Section]) -> tuple[str, ...]:
    """Keys with ANY for the names that the user chose."""
    found: list[str] = []
    section: type[Section] | None = schema
    chosen = False
    for key in keys:
        if chosen:
            found.append(ANY)
            chosen = False
            continue
        found.append(key)
        field = None if section is None else section.model_fields.get(key)
        section, chosen = (None, False) if field is None else section_of(field)
    return tuple(found)


def allowed_values(dotted: str, schema: type[Section] = Experiment) -> str:
    """What a key takes, in words, from the schema."""
    content = schema.model_json_schema()
    node: dict[str, Any] = content
    for key in _general(tuple(dotted.split(".")), schema):
        if "$ref" in node:
            node = content["$defs"][node["$ref"].rsplit("/", 1)[1]]
        if key == ANY:
            node = node.get("additionalProperties", {})
            continue
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


def _explain(error: dict[str, Any], marks: Marks, origin: str, schema: type[Section]) -> ConfigError:
    keys, known = tuple(str(part) for part in error["loc"]), known_keys(schema)
    # pydantic adds the branch of a union to the location: cut back to a key that stands in the file.
    extra = error["type"] == "extra_forbidden"
    while not extra and len(keys) > 1 and keys not in marks and ".".join(_general(keys, schema)) not in known:
        keys = keys[:-1]
    dotted = ".".join(keys)
    where = next((marks[keys[:end]] for end in range(len(keys), 0, -1) if keys[:end] in marks), origin)
    if extra:
        # The closest name is looked for among the section's keys first, then among all.
        parent = ".".join(keys[:-1])
        inside = ".".join(_general(keys, schema)[:-1])
        siblings = [f"{parent}.{name}".strip(".") for name in _names_below(inside, known)]
        near = difflib.get_close_matches(dotted, siblings, n=1, cutoff=0.6)
        near = near or [key for key in known if key.rpartition(".")[2] == keys[-1]][:1]
        near = near or difflib.get_close_matches(dotted, list(known), n=1, cutoff=0.5)
        names = ", ".join(key.rpartition(".")[2] for key in siblings) or "no keys"
        return ConfigError(
            f"{where}: unknown key '{dotted}' (value {error['input']!r})",
            why=f"known keys {'of ' + parent if parent else 'at the top'}: {names}",
            do=f"did you mean '{near[0]}'?" if near else "remove it",
        )
    message = error["msg"].removeprefix("Value error, ")
    allowed = None if isinstance(error["input"], dict) else allowed_values(dotted, schema)
    value = "" if isinstance(error["input"], dict) else f" = {error['input']!r}"  # a section says nothing as a whole
    return ConfigError(
        f"{where}: {dotted or 'the experiment'}{value} cannot be used",
        why=message[0].lower() + message[1:],
        do=f"allowed: {allowed}" if allowed else "correct the value",
    )


def _names_below(inside: str, known: dict[str, FieldInfo]) -> list[str]:
    return [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == inside]


def _refuse_booleans(content: Any, marks: Marks, schema: type[Section], keys: tuple[str, ...] = ()) -> None:
    # pydantic would read `true` as 1 where a number is due.
    if isinstance(content, dict):
        for key, value in content.items():
            _refuse_booleans(value, marks, schema, (*keys, str(key)))
        return
    field = known_keys(schema).get(".".join(_general(keys, schema))) if isinstance(content, bool) else None
    if field is not None and field.annotation is not bool:
        dotted = ".".join(keys)
        raise ConfigError(
            f"{marks.get(keys, 'experiment')}: {dotted} = {str(content).lower()} cannot be used",
            why="true and false are no numbers or text",
            do=f"allowed: {allowed_values(dotted, schema)}",
        )


def build_experiment(content: dict[str, Any], marks: Marks, origin: str) -> Experiment:
    """`build` of the experiment with images."""
    return build(Experiment, content, marks, origin)


def build(schema: type[Schema], content: dict[str, Any], marks: Marks, origin: str) -> Schema:
    """Check a mapping against a schema.

    Args:
        schema: such as Experiment.
        content: sections with keys.
        marks: where each key stands, from `read_yaml` and `apply_overrides`.
        origin: name for keys that stand nowhere.

    Raises:
        ConfigError: the first wrong key or value, with place, what is allowed and the nearest known key.
    """
    # An empty section (`train:` with nothing below) means its defaults.
    content = {key: ({} if value is None and _is_section(schema, key) else value) for key, value in content.items()}
    _refuse_booleans(content, marks, schema)
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        raise _explain(dict(error.errors()[0]), marks, origin, schema) from None


def _is_section(schema: type[Section], key: str) -> bool:
    return key in schema.model_fields and section_of(schema.model_fields[key])[0] is not None
