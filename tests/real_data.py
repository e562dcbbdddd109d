"""Real data that lie beside the repository; tests of them are skipped where they are absent."""

from __future__ import annotations

from pathlib import Path

import pytest

_BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"


def real_data(name: str) -> Path:
    """The folder of a data set; skips the test that asks where it is absent."""
    folder = _BESIDE / name
    if not folder.is_dir():
        pytest.skip(f"../shared/data/{name} is absent: the data lie beside the repository")
    return folder
