"""How much room there is on a disk, asked before hours of work and not after them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from mvc.errors import EnvironmentFault
from mvc.storage import files_below


def size_text(size: float) -> str:
    """Bytes in words: "1.5 GiB", "12.0 KiB", "7 B"."""
    if abs(size) < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if abs(size) < 1024 or unit == "GiB":
            break
    return f"{size:.1f} {unit}"


def existing_parent(path: Path) -> Path:
    """The path itself if it exists, else the nearest folder above it that does."""
    place = Path(os.path.abspath(path))
    while not place.exists():
        place = place.parent
    return place


def free_bytes(folder: Path) -> int:
    """Bytes that this user can still write where a folder lies or will lie; it need not exist yet.

    A quota of the user's own is not known to the file system and so is not counted.
    """
    return shutil.disk_usage(existing_parent(folder)).free


def bytes_below(folder: Path) -> int:
    """Sizes of all files below a folder added up; 0 if there is none."""
    return sum(path.stat().st_size for path in files_below(folder)) if folder.is_dir() else 0


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Make sure that something fits on the disk before it is begun.

    Args:
        folder: where it will be written; need not exist yet.
        needed_bytes: how much will be written at most, beside what is there already.
        what: what it is for, such as "4 checkpoints and the model".

    Raises:
        EnvironmentFault: less is free; names the place, what is needed and what is free.
    """
    free = free_bytes(folder)
    if needed_bytes > free:
        raise EnvironmentFault(
            f"too little space in {folder} for {what}",
            why=f"{size_text(needed_bytes)} are needed and {size_text(free)} are free on that disk",
            do="free some space, or set run.dir to a folder on a larger disk",
        )
