"""A small disk of its own, for tests that fill it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def mounted(folder: Path) -> Iterator[Path]:
    """A disk of 16 MB at a folder; the test is skipped where none can be mounted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"cannot mount a small disk here: {done.stderr.decode().strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def fill(folder: Path, left: int) -> Path:
    """Take all the room of a disk but some bytes."""
    path = folder / "filler"
    path.unlink(missing_ok=True)
    path.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - left)))
    return path
