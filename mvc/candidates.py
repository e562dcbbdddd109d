"""The pool of drawn images: rows that are appended as work goes on, files that are found wherever the filters put them.

While candidates.jsonl exists the pool is complete. Work in progress keeps its rows in candidates.partial*.jsonl, one
file a worker, to which whole batches are appended after their images are on disk.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvc.config_generation import SOURCES
from mvc.errors import DataError, EnvironmentFault
from mvc.storage import (
    append_json_lines,
    files_below,
    read_json_lines,
    remove_leftovers,
    sha256_bytes,
    sha256_file,
    write_bytes,
)
from mvc.synthetic import (
    METADATA,
    Candidate,
    as_written,
    candidate_of,
    rejected_folder,
    rows_text,
    synthetic_folder,
    write_rows,
)

CANDIDATES = "candidates.jsonl"
_PARTIAL = "candidates.partial"
_OWN = re.compile(rf"^(({'|'.join(SOURCES)})-)?\d+(-\d+)?\.png$")
"""Names that the project gives; other files in the folders are somebody's own and stay."""
_READERS = 2
"""Threads that read files to compare their digests."""


@dataclass(frozen=True)
class Pool:
    """Where the rows and images of a pool are.

    Attributes:
        folder: of candidates.jsonl.
        accepted: class folders of images that are accepted, or not judged yet.
        rejected: class folders of images that were refused.
    """

    folder: Path
    accepted: Path
    rejected: Path


def pool_of(run: Path) -> Pool:
    """The pool of a run's synthetic set."""
    return Pool(run / "synthetic", synthetic_folder(run), rejected_folder(run))


def find_image(pool: Pool, file_name: str) -> Path | None:
    """Where the image of a row lies; None if it is nowhere."""
    for folder in (pool.accepted, pool.rejected):
        if (folder / file_name).is_file():
            return folder / file_name
    return None


def journals(pool: Pool) -> list[Path]:
    """Files that hold the rows of work in progress."""
    return sorted(path for path in pool.folder.glob(f"{_PARTIAL}*.jsonl"))


def read_candidates(pool: Pool) -> dict[str, Candidate]:
    """All rows of a pool by file name, finished or not; a later row of a name replaces an earlier one.

    Raises:
        DataError: a line is damaged, or names no image of the pool; names file and line.
    """
    found: dict[str, Candidate] = {}
    for path in (pool.folder / CANDIDATES, *journals(pool)):
        for number, row in enumerate(read_json_lines(path, torn_tail=True), start=1):
            if not _is_place(row):
                raise DataError(
                    f"{path}, line {number} names {row.get('file_name')!a}, which is no image of the set",
                    why="file_name has to be the class folder and the id",
                    do="correct or remove that line",
                )
            found[row["file_name"]] = candidate_of(row)
    return found


def _is_place(row: Mapping[str, Any]) -> bool:
    """Whether a row's file is below the folders of a pool; images are moved by these names."""
    folder, name = str(row.get("class_name")), f"{row.get('id')}.png"
    return row.get("file_name") == f"{folder}/{name}" and folder not in ("", ".", "..") and "/" not in folder + name


def _is_whole(pool: Pool, row: Candidate) -> bool:
    if row["sha256"] is None:
        return True
    path = find_image(pool, row["file_name"])
    return path is not None and sha256_file(path) == row["sha256"]


def whole_rows(pool: Pool, rows: Iterable[Candidate]) -> dict[str, Candidate]:
    """The rows whose files are what was written, by file name."""
    chosen = list(rows)
    # A share for each thread and not a task for each image, which would take longer than the reading.
    shares = [chosen[start::_READERS] for start in range(_READERS)]
    with ThreadPoolExecutor(_READERS) as threads:
        found = threads.map(lambda share: [row["file_name"] for row in share if _is_whole(pool, row)], shares)
        whole = {name for names in found for name in names}
    return {row["file_name"]: row for row in chosen if row["file_name"] in whole}


def is_closed(pool: Pool, rows: Mapping[str, Candidate]) -> bool:
    """Whether candidates.jsonl holds exactly these rows and no work is in progress."""
    path = pool.folder / CANDIDATES
    return not journals(pool) and path.exists() and path.read_bytes() == rows_text(rows.values()).encode()


def all_there(run: Path) -> bool:
    """Whether every image of a run's pool is where it should be; if not, the pool is opened again.

    Contents are not compared here: this is asked each time that a run goes on.
    """
    pool = pool_of(run)
    rows = read_candidates(pool)
    if is_closed(pool, rows) and all(row["sha256"] is None or find_image(pool, name) for name, row in rows.items()):
        return True
    open_pool(pool, rows)
    return False


def open_pool(pool: Pool, rows: Mapping[str, Candidate]) -> None:
    """Open a pool for more work, keeping `rows`; until `close_pool` it and its set count as unfinished.

    Nobody may be at work in it: files that a killed process was writing are removed.
    """
    _remove_leftovers(pool)
    write_rows(_journal(pool, 0), list(rows.values()))
    for path in journals(pool):
        if path != _journal(pool, 0):
            path.unlink()
    (pool.accepted / METADATA).unlink(missing_ok=True)
    (pool.folder / CANDIDATES).unlink(missing_ok=True)


def _journal(pool: Pool, worker: int) -> Path:
    return pool.folder / f"{_PARTIAL}{f'-{worker}' if worker else ''}.jsonl"


def add_candidates(pool: Pool, rows: Sequence[Candidate], worker: int = 0) -> None:
    """Append the rows of images whose files are on disk.

    Raises:
        EnvironmentFault: the disk is full; no row was added.
    """
    append_json_lines(_journal(pool, worker), [as_written(row) for row in rows])


def write_image(folder: Path, file_name: str, pixels: np.ndarray[Any, Any]) -> str:
    """Write (H, W, 3) uint8 pixels as a PNG file, whole or not at all; returns its sha256."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_bytes(folder / file_name, buffer.getvalue())
    return sha256_bytes(buffer.getvalue())


def close_pool(pool: Pool, rows: Mapping[str, Candidate]) -> None:
    """Close a pool: check wanted = present, remove images that it does not hold, write candidates.jsonl.

    Nobody may be at work in it: what a worker that was killed and started again was writing is removed.

    Args:
        pool: images in it that no row names are leftovers of other settings.
        rows: what it shall hold, by file name.

    Raises:
        EnvironmentFault: an image is missing or its file is not what was written; names the first.
    """
    whole = whole_rows(pool, rows.values())
    for name in sorted(rows):
        if name not in whole:
            found = find_image(pool, name)
            if found is not None:
                found.unlink()  # so that the next start draws it again
            why = "it is gone" if found is None else "its content is not what was written"
            raise EnvironmentFault(f"{pool.accepted / name} is not there as it should be", why=why, do="generate again")
    _remove_leftovers(pool)
    _remove_others(pool, lambda folder, name: name in rows)
    write_rows(pool.folder / CANDIDATES, list(rows.values()))
    for path in journals(pool):
        path.unlink()


def _remove_leftovers(pool: Pool) -> None:
    for folder in {pool.folder, pool.accepted, pool.rejected}:
        remove_leftovers(folder)


def _remove_others(pool: Pool, belongs: Callable[[Path, str], bool]) -> None:
    """Remove images of ours that do not belong, and class folders that are empty."""
    for folder in (pool.accepted, pool.rejected):
        for path in files_below(folder):
            if _OWN.match(path.name) and not belongs(folder, path.relative_to(folder).as_posix()):
                path.unlink()
        for place in list(folder.iterdir()) if folder.is_dir() else []:
            # torchvision's ImageFolder refuses a class folder without images.
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()


def put_in_place(pool: Pool, accepted: Mapping[str, bool]) -> None:
    """Move each image of a pool to the folder where it belongs.

    A kill on the way loses nothing, because images are found in either folder.

    Args:
        pool: a closed pool.
        accepted: by file name; names without a file are passed over.

    Raises:
        EnvironmentFault: the place cannot be written.
    """
    try:
        for name in sorted(accepted):
            found = find_image(pool, name)
            target = (pool.accepted if accepted[name] else pool.rejected) / name
            if found is not None and found != target:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(found, target)
        pool.accepted.mkdir(parents=True, exist_ok=True)
        places = {True: pool.accepted, False: pool.rejected}
        _remove_others(pool, lambda folder, name: name in accepted and folder == places[accepted[name]])
    except OSError as error:
        raise EnvironmentFault(
            f"cannot move images within {pool.folder}", why=error.strerror or str(error), do="free some space"
        ) from error
