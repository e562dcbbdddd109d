"""The points of `mvc tune`: which settings are tried, each as a whole experiment that was checked."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import Any

from pydantic import ValidationError

from mvc.config import Experiment
from mvc.config_schema import allowed_values
from mvc.errors import ConfigError
from mvc.storage import sha256_json

CHECKPOINT = "checkpoint"
KEYS = (
    *(f"mixing.{key}" for key in ("coarse", "fine", "rows")),
    *(
        f"generate.{key}"
        for key in (
            "guidance",
            "guidance_scale",
            "image_guidance_scale",
            "guidance_interval",
            "num_inference_steps",
            "scheduler",
            "eta",
            "sources",
            "sdedit_strength",
            "pretrained_guidance_scale",
        )
    ),
    CHECKPOINT,
)
"""What a point may set: keys that change the images, and the fine-tuning steps of a checkpoint."""


@dataclass(frozen=True)
class Point:
    """One thing to try.

    Attributes:
        number: place in the order given, from 1.
        settings: what it sets, by key of `KEYS`, as JSON values.
        experiment: the whole experiment with them, of tune.per_class images of each class.
        checkpoint: fine-tuning steps; None for the fine-tuned model as the run publishes it.
    """

    number: int
    settings: dict[str, Any]
    experiment: Experiment
    checkpoint: int | None

    @property
    def fine_tuned(self) -> bool:
        """Whether it draws with the fine-tuned model."""
        return self.experiment.generate.sources.get("finetuned", 0.0) > 0

    @property
    def folder(self) -> str:
        """Name of its folder: from the settings, so that more points rename none."""
        return sha256_json(self.settings)[:12]

    @property
    def label(self) -> str:
        """The settings in short."""
        parts = [f"{short_key(key)} {value_text(value)}" for key, value in self.settings.items()]
        return ", ".join(parts) or "the experiment as it is"


def short_key(key: str) -> str:
    """A key without its section; those of `KEYS` stay different."""
    return key.rpartition(".")[2]


def value_text(value: Any) -> str:
    """A value as a reader wants it: 1.5, 1-2 for a range, finetuned 0.5 + pretrained 0.5 for shares."""
    if isinstance(value, Mapping):
        return " + ".join(f"{name} {share:g}" for name, share in value.items() if share)
    if isinstance(value, list | tuple):
        return "-".join(value_text(part) for part in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def points_of(experiment: Experiment) -> list[Point]:
    """The points that the section tune asks for, in the order given; of a grid the last key changes first.

    Raises:
        ConfigError: a key that cannot be tuned, a value that cannot be used, two equal points, or no point at all;
            names tune.grid or tune.points.
    """
    tune = experiment.tune
    if tune.points:
        given = [(f"tune.points, number {number}", settings) for number, settings in enumerate(tune.points, 1)]
    else:
        for key, values in tune.grid.items():
            _require_known("tune.grid", key)
            if not values:
                raise ConfigError(f"tune.grid: {key} has no values", do="give at least one, or leave the key out")
        combinations = product(*tune.grid.values()) if tune.grid else ()
        given = [("tune.grid", dict(zip(tune.grid, values, strict=True))) for values in combinations]
    if not given:
        raise ConfigError("tune.grid and tune.points are empty", do="name what to try, such as " + _EXAMPLE)
    points = [_point(experiment, number, where, settings) for number, (where, settings) in enumerate(given, 1)]
    for later in points:
        for earlier in points[: later.number - 1]:
            if (earlier.experiment, earlier.checkpoint) == (later.experiment, later.checkpoint):
                where = given[later.number - 1][0]
                raise ConfigError(
                    f"{where}: points {earlier.number} and {later.number} are the same",
                    why=f"{earlier.label}; {later.label}",
                    do="leave one out",
                )
    return points


_EXAMPLE = "tune.grid={generate.guidance_scale: [1, 1.5, 3]}"


def _require_known(where: str, key: str) -> None:
    if key in KEYS:
        return
    named = {short_key(known): known for known in KEYS}
    near = difflib.get_close_matches(key, KEYS, n=1, cutoff=0.6)
    near = near or [named[found] for found in difflib.get_close_matches(short_key(key), list(named), n=1, cutoff=0.6)]
    raise ConfigError(
        f"{where}: the key '{key}' cannot be tuned",
        why=f"allowed are {', '.join(KEYS)}",
        do=f"did you mean '{near[0]}'?" if near else "leave it out",
    )


def _point(experiment: Experiment, number: int, where: str, settings: Mapping[str, Any]) -> Point:
    content = experiment.model_dump(mode="json")
    # A point is small: one process draws it, and no source has a preview.
    content["generate"] |= {"per_class": experiment.tune.per_class, "balance": False, "preview": 0, "num_processes": 1}
    for key, value in settings.items():
        _require_known(where, key)
        if isinstance(value, bool):
            raise _unusable(where, key, value, "true and false are no value of it")
        if key != CHECKPOINT:
            section, _, name = key.partition(".")
            content[section][name] = value
    try:
        changed = Experiment.model_validate(content)
    except ValidationError as error:
        raise _explained(where, settings, dict(error.errors()[0])) from None
    # As the schema reads them, so that 1 and 1.0 are one value.
    read = changed.model_dump(mode="json")
    checkpoint = _checkpoint(where, settings)
    named = {key: checkpoint if key == CHECKPOINT else read[key.partition(".")[0]][short_key(key)] for key in settings}
    point = Point(number, named, changed, checkpoint)
    if point.checkpoint is not None and not point.fine_tuned:
        raise ConfigError(
            f"{where}: checkpoint {point.checkpoint} plays no part in the point '{point.label}'",
            why="its generate.sources has no finetuned",
            do="leave the checkpoint out there; tune.points lists single points where a grid does not fit",
        )
    return point


def _checkpoint(where: str, settings: Mapping[str, Any]) -> int | None:
    value = settings.get(CHECKPOINT)
    if CHECKPOINT in settings and (not isinstance(value, int) or value < 1):
        raise _unusable(where, CHECKPOINT, value, "it is a number of fine-tuning steps")
    return value


def _unusable(where: str, key: str, value: Any, why: str) -> ConfigError:
    allowed = "whole numbers >= 1" if key == CHECKPOINT else allowed_values(key)
    return ConfigError(f"{where}: {key} = {value!r} cannot be used", why=why, do=f"allowed: {allowed}")


def _explained(where: str, settings: Mapping[str, Any], error: Mapping[str, Any]) -> ConfigError:
    """What pydantic found, in terms of the point."""
    place = ".".join(str(part) for part in error["loc"])
    message = str(error["msg"]).removeprefix("Value error, ")
    why = message[:1].lower() + message[1:]
    for key, value in settings.items():
        if place == key or place.startswith(f"{key}."):
            return _unusable(where, key, value, why)
    shown = ", ".join(f"{key} = {value!r}" for key, value in settings.items()) or "the experiment as it is"
    return ConfigError(
        f"{where}: {shown} cannot be used together",
        why=why,
        do="leave this combination out; tune.points lists single points where a grid does not fit",
    )
