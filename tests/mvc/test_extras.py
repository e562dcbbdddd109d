"""Packages that only some work needs: imported, or named with their extra."""

from __future__ import annotations

import importlib.metadata
import json
import sys

import pytest

from mvc.errors import EnvironmentFault
from mvc.extras import package, package_version


def test_a_package_that_is_there_is_imported() -> None:
    assert package("json", "speech", "the test needs") is json
    assert package_version("numpy") == importlib.metadata.version("numpy")


def test_one_that_is_missing_is_named_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    with pytest.raises(EnvironmentFault) as error:
        package("pocketsphinx", "speech", "listening needs")
    assert error.value.what == "listening needs the package pocketsphinx"
    assert error.value.do == "pip install 'mvc[speech]'"
    assert package_version("no-such-package") == "missing"
