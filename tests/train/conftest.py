from __future__ import annotations

import pytest

from tests.train.drill import Ground


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Ground:
    """Where all drills take place: uninterrupted trainings are done once."""
    return Ground(tmp_path_factory.mktemp("drills"))
