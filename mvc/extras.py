"""Packages that only some work needs: imported when it begins, and named with their extra where they are missing."""

from __future__ import annotations

import importlib
import importlib.metadata
from typing import Any

from mvc.errors import EnvironmentFault


def package(name: str, extra: str, what: str) -> Any:
    """Import a package of an extra.

    Args:
        name: of the module.
        extra: of ours, that installs it.
        what: needs it, for the message: "pitch and tempo need the package ...".

    Raises:
        EnvironmentFault: it is missing, or a library of the system that it needs.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: a library of the system is missing
        raise EnvironmentFault(f"{what} the package {name}", str(error), f"pip install 'mvc[{extra}]'") from error


def package_version(distribution: str) -> str:
    """Version of a package, or "missing"; part of the identity of what is made with it."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "missing"
