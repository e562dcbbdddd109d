"""Errors that travel from one process to another."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from typing import Any

from mvc.errors import MvcError


def error_facts(error: BaseException) -> dict[str, Any]:
    """An error as JSON values, for another process to raise it; see `error_of`."""
    if isinstance(error, MvcError):
        return {"kind": type(error).__name__, "what": error.what, "why": error.why, "do": error.do}
    return {"kind": "", "what": "".join(traceback.format_exception(error)), "why": "", "do": ""}


def error_of(facts: Mapping[str, Any], place: str = "") -> MvcError | None:
    """The error that another process met; None if that one was no MvcError.

    Args:
        facts: what `error_facts` gave.
        place: which process, for the message; left out where empty.
    """
    kinds = {kind.__name__: kind for kind in MvcError.__subclasses__()}
    if facts["kind"] not in kinds:
        return None
    return kinds[facts["kind"]](facts["what"] + (f" ({place})" if place else ""), facts["why"], facts["do"])
