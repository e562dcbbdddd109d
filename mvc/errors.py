"""Errors that a user can act on: what is wrong, why, what to do, and an exit code for scripts."""

from __future__ import annotations


class MvcError(Exception):
    """An error with a message of at most three parts and the exit code of its kind.

    Args:
        what: what is wrong, naming the path or value.
        why: the cause, where it is not plain from `what`.
        do: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, what: str, why: str = "", do: str = "") -> None:
        self.what, self.why, self.do = what, why, do
        parts = [what, f"why: {why}" if why else "", f"do: {do}" if do else ""]
        super().__init__("\n".join(part for part in parts if part))


class ConfigError(MvcError):
    """The command line or the experiment file cannot be used (exit code 2)."""

    exit_code = 2


class DataError(MvcError):
    """The user's images, captions or manifests cannot be used (exit code 3)."""

    exit_code = 3


class EnvironmentFault(MvcError):
    """Disk, permissions, memory, a lock, a missing package or model file (exit code 4)."""

    exit_code = 4


class NumericError(MvcError):
    """A loss or an image that is not finite (exit code 5)."""

    exit_code = 5


class Stopped(MvcError):
    """A signal asked for a stop, and everything done so far was saved (exit code 143)."""

    exit_code = 143
