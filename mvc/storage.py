"""Files that are whole or absent: write beside the target, flush to disk, rename.

A kill at any instant leaves either the old content or the new one, never half of it. A published
folder carries a manifest with the sha256 of each of its files, written last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mvc.errors import DataError, EnvironmentFault

MANIFEST = "manifest.json"
_TEMPORARY = ".tmp-"


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder: a rename can be lost in a power cut although the file itself was flushed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` to `path` atomically; missing parent folders are made.

    Raises:
        EnvironmentFault: the disk is full or the place cannot be written.
    """
    temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        flush_folder(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise EnvironmentFault(
            f"cannot write {path}",
            why=error.strerror or str(error),
            do="free some space or choose another run.dir",
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file.

    Raises:
        DataError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing", do="run the stage that writes it again") from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON", why=str(error), do="repair or delete the file") from error


def json_line(row: dict[str, Any]) -> str:
    """One row of a JSON Lines file, keys in the order given."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def write_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, atomically."""
    write_text(path, "".join(json_line(row) for row in rows))


def read_json_lines(path: Path, torn_tail: bool = False) -> list[dict[str, Any]]:
    """Read a JSON Lines file.

    Args:
        path: the file; a missing one reads as no rows only if `torn_tail` is set.
        torn_tail: accept and drop a last line that a kill cut short (for files that are appended to).

    Raises:
        DataError: the file is missing, or a line is not a JSON object; names file and line.
    """
    if not path.exists():
        if torn_tail:
            return []
        raise DataError(f"{path} is missing", do="run the stage that writes it again")
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            if torn_tail and number == len(lines):
                break
            raise DataError(f"{path}, line {number} is not JSON", why=str(error), do="correct that line") from error
        if not isinstance(row, dict):
            raise DataError(f"{path}, line {number} is not a JSON object", do='write rows like {"id": ...}')
        rows.append(row)
    return rows


def append_json_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Append rows and flush them to disk; a kill can cut the last line short, which readers drop.

    A tail that an earlier kill cut short is removed first, so that a new row never joins a torn one.

    Raises:
        EnvironmentFault: the disk is full or the place cannot be written; no row was added.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _append(path, "".join(json_line(row) for row in rows).encode())
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {path}",
            why=error.strerror or str(error),
            do="free some space and run the same command again",
        ) from error


def _append(path: Path, content: bytes) -> None:
    with open(path, "ab+", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                end = file.read().rfind(b"\n") + 1
                file.truncate(end)
        left = memoryview(content)
        try:
            while left:
                left = left[file.write(left) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(end)  # so that whoever tries again writes no row twice
            raise


def sha256_bytes(content: bytes) -> str:
    """Hexadecimal sha256 of `content`."""
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """sha256 of the canonical JSON text of `value`."""
    return sha256_bytes(json.dumps(value, sort_keys=True, separators=(",", ":")).encode())


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, sorted by path, temporary ones left out."""
    return files_like(folder, "**/*")


def files_like(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder that match, sorted by path; without those in writing, which `Path.glob` would find too."""
    return sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith(_TEMPORARY))


@contextmanager
def publish_folder(target: Path, facts: dict[str, Any]) -> Iterator[Path]:
    """Yield a temporary folder to fill; on success it becomes `target`, with a manifest.

    Args:
        target: the folder to publish; an existing one is replaced only once the new one is complete.
        facts: JSON values to keep in the manifest, such as the step.

    Raises:
        EnvironmentFault: the disk is full or the place cannot be written; nothing of it stays behind.
    """
    temporary = target.with_name(f"{_TEMPORARY}{os.getpid()}-{target.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        yield temporary
        entries = {}
        for path in files_below(temporary):
            with open(path, "rb") as file:
                os.fsync(file.fileno())
            # safetensors writes files that only their owner can read; a run folder is meant to be shared.
            path.chmod(0o644)
            name = path.relative_to(temporary).as_posix()
            entries[name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
        content = {**facts, "files": entries}
        write_json(temporary / MANIFEST, {**content, "sha256": sha256_json(content)})
        old = target.with_name(f"{_TEMPORARY}{os.getpid()}-old-{target.name}")
        if target.exists():
            os.replace(target, old)
        os.replace(temporary, target)
        flush_folder(target.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot write {target}",
            why=error.strerror or str(error),
            do="free some space or choose another run.dir",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verified_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder if it and every file have their sha256, else None."""
    try:
        manifest = dict(json.loads((folder / MANIFEST).read_bytes()))
        if manifest.pop("sha256") != sha256_json(manifest):
            return None
        for name, entry in manifest["files"].items():
            path = folder / name
            if path.stat().st_size != entry["bytes"] or sha256_file(path) != entry["sha256"]:
                return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest


def remove_leftovers(folder: Path) -> None:
    """Delete what interrupted writes left in a folder and below it (names that begin with `.tmp-`)."""
    for path in list(folder.rglob(f"{_TEMPORARY}*")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder; the kernel releases it however the process ends.

    Raises:
        EnvironmentFault: another process holds it; names that process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(folder / "run.lock"), folder / "run.lock.owner"
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        try:
            # Empty or missing while the other one has only just come, or leaves.
            holder = owner.read_text().strip() or "another process"
        except OSError:
            holder = "another process"
        raise EnvironmentFault(
            f"{folder} is in use by {holder}",
            why="one run folder has one writer",
            do="wait, stop it, or set run.dir",
        ) from error
    try:
        owner.write_text(f"process {os.getpid()} on {socket.gethostname()}")
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()
