"""The log of a fine-tuning, also sent to the trackers that accelerate knows, such as TensorBoard."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from mvc.errors import ConfigError
from mvc.progress import say

PROJECT = "mvc"
"""Name under which services file the run."""
_PACKAGES = {"tensorboard": "'mvc[tensorboard]'", "comet_ml": "comet-ml"}
"""What pip calls a tracker's package, where it isn't the tracker's name."""


def require_trackers(report_to: Sequence[str]) -> None:
    """Refuse trackers whose package is not there; without a look, accelerate would leave them out without a word.

    Raises:
        ConfigError: names what to install.
    """
    there = {str(name) for name in get_available_trackers()}
    missing = [name for name in dict.fromkeys(report_to) if name not in there]
    if missing:
        packages = " ".join(_PACKAGES.get(name, name) for name in missing)
        raise ConfigError(
            f"train.report_to names {', '.join(missing)}, but {'its' if len(missing) == 1 else 'their'} package "
            f"is not there",
            do=f"pip install {packages}, or leave it out: run/logs/train.jsonl is always written",
        )


class Tracking:
    """Sends values to trackers, which are opened at the first of them; of several processes, the main one calls it.

    TensorBoard's files lie in run/logs/tensorboard. A resumed training adds a file there that voids older values from
    its own first step on, so steps that are done again show up once. Services get a new run at every start.
    A tracker that fails is named once and left out from there on: training goes on, and its log is in run/logs.

    Args:
        report_to: names of trackers.
        run: the run folder.
        settings: flat values that the services list beside the run.

    Raises:
        ConfigError: the package of a tracker is not there.
    """

    def __init__(self, report_to: Sequence[str], run: Path, settings: Mapping[str, Any]) -> None:
        require_trackers(report_to)
        self._waiting = list(dict.fromkeys(report_to))
        self._open: dict[str, Any] = {}
        self._run, self._settings = run, settings

    def track(self, values: Mapping[str, float], step: int) -> None:
        """Send some values of a step, the earliest step first."""
        for name in self._waiting:
            self._try(name, partial(self._start, name, step))
        self._waiting = []
        for name, tracker in list(self._open.items()):
            self._try(name, partial(tracker.log, dict(values), step=step))

    def close(self) -> None:
        """Flush and close what is open; may be called twice."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.finish)
        self._open = {}

    def _start(self, name: str, step: int) -> None:
        kind: Any = LOGGER_TYPE_TO_CLASS[name]
        if name == "tensorboard":
            tracker = kind("tensorboard", self._run / "logs", purge_step=step)
            tracker.start()
        else:
            tracker = kind(PROJECT, self._run / "logs") if kind.requires_logging_directory else kind(PROJECT)
            tracker.start()
            # TensorBoard would make a folder of hyperparameters at every start.
            tracker.store_init_configuration({key: _plain(value) for key, value in self._settings.items()})
        self._open[name] = tracker

    def _try(self, name: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:  # a network, a full disk, a login: each package raises its own kinds
            self._open.pop(name, None)
            reason = " ".join(str(error).split())[:200]
            say(f"fine-tuning: the tracker {name} failed and is left out from here on: {reason}")


def _plain(value: Any) -> Any:
    """A setting as services take it: a number or a text."""
    return value if isinstance(value, (bool, int, float, str)) or value is None else str(value)
