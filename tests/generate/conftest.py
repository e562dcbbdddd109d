"""Runs that several tests of generation begin with; each works on a copy of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from mvc.generate.filter_stage import run_filter
from mvc.generate.stage import run_generate
from tests.generate.drill import Ground
from tests.generate.toy_run import BOTH, experiment, write_run


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing was generated for yet."""
    return write_run(tmp_path_factory.mktemp("prepared"))


@pytest.fixture(scope="session")
def finished(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a finished set of 14 images of two sources."""
    run = tmp_path_factory.mktemp("finished")
    shutil.copytree(prepared, run, dirs_exist_ok=True)
    run_generate(run, experiment(run, sources=BOTH))
    run_filter(run, experiment(run, sources=BOTH))
    return run


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """Copies a run."""

    # The base model's path is no part of a recipe, its content is: a copy of a run is the same run.
    def copy(run: Path, name: str = "run") -> Path:
        return Path(shutil.copytree(run, tmp_path / name, dirs_exist_ok=True))

    return copy


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Where the drills of generation take place."""
    return Ground(tmp_path_factory.mktemp("drills"))
