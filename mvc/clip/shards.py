"""Captioned images in webdataset shards: tar archives with NAME.jpg beside NAME.txt or NAME.json.

Read by the standard library's tarfile, once, to note where each image begins; after that an image costs one seek. The
package webdataset reads shards from the front only, and `datasets` writes the images once more to its cache. The notes
may be kept in a folder, because tarfile passes no more than some ten thousand members a second.
"""

from __future__ import annotations

import json
import re
import tarfile
from pathlib import Path
from typing import Any

from mvc.errors import DataError
from mvc.storage import sha256_bytes, write_text
from mvc.walk import printable

from .captioned import Captioned, captions_of, inner_path
from .places import FilePart
from .sources import Source, files_of

IMAGES = ("jpg", "jpeg", "png", "webp")
CAPTIONS = ("txt", "json")
_END = 2**20
"""Bytes after the last member that are looked at."""
_NOTES = 1
"""Number of the form in which notes are kept: others are read anew."""

_Noted = list[tuple[str, int, int, list[str]]]
"""Name, offset, bytes and captions of each image."""


def read_shards(source: Source, split: str, cache: Path | None) -> dict[str, Captioned]:
    """Read the images of a split, without their bytes.

    The split is a folder between the data folder and the shard, or a word of its name ("train-000000.tar"). As
    webdataset has it, what a member belongs to is its name up to the first dot; the rest says what it is. Captions are
    those of NAME.txt, one a line, or else of NAME.json, an object with captions, caption or text.

    Args:
        source: the shards.
        split: train, validation or test.
        cache: folder for the notes about each shard; None keeps none.

    Returns:
        image and captions by "train-000000.tar/7.jpg", in the order of the archives.

    Raises:
        DataError: the split is missing, a shard is no whole tar archive, a name comes twice, or an image has no
            captions or captions no image; names shard and member.
        EnvironmentFault: the notes cannot be written.
    """
    images: dict[str, Captioned] = {}
    for path in files_of(source, split):
        shard = path.relative_to(source.root).as_posix()
        for name, offset, size, captions in _noted(path, cache):
            where = f"{printable(str(path))}, member {printable(name)}"
            images[f"{shard}/{name}"] = Captioned(FilePart(str(path), where, offset, size, size), captions)
    return images


def _noted(path: Path, cache: Path | None) -> _Noted:
    """The images of a shard: from notes of the same file, or from the shard."""
    if cache is None:
        return _read(path)
    status = path.stat()
    facts = [_NOTES, str(path.resolve()), status.st_size, status.st_mtime_ns]
    notes = cache / f"shard-{sha256_bytes(json.dumps(facts).encode())[:32]}.json"
    try:
        return [(name, offset, size, captions) for name, offset, size, captions in json.loads(notes.read_bytes())]
    except (OSError, ValueError, TypeError):
        pass  # none yet, or spoilt: the shard itself tells
    images = _read(path)
    write_text(notes, json.dumps(images))
    return images


def _read(path: Path) -> _Noted:
    shard, samples = printable(str(path)), dict[str, dict[str, Any]]()
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                base = member.name.rpartition("/")[2]
                if member.isdir() or base.startswith("."):
                    continue
                where = f"{shard}, member {printable(member.name)}"
                member.name = inner_path(member.name, "name", where)
                key, kind = _parts(member.name)
                parts = samples.setdefault(key, {})
                if kind in parts:
                    raise DataError(f"{where} comes twice", do="give every image a name of its own")
                if not member.isreg():
                    raise DataError(f"{where} is no file but a link", do="write it as a file")
                content = archive.extractfile(member) if kind in CAPTIONS else None
                parts[kind] = member if content is None else content.read()
            _require_end(archive, path)
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{shard} cannot be read as a tar archive",
            why=f"{error}; it is cut short, compressed, or no archive at all",
            do="fetch or write it again",
        ) from error
    if not samples:
        raise DataError(f"{shard} is empty", do="remove it, or write it again")
    return [_sample(key, parts, shard) for key, parts in samples.items()]


def _parts(name: str) -> tuple[str, str]:
    """What a member belongs to, and what it is: "a/7.jpg" is ("a/7", "jpg")."""
    match = re.fullmatch(r"((?:.*/)?[^/.]+)\.?([^/]*)", name, re.DOTALL)
    return (match[1], match[2].lower()) if match else (name, "")


def _require_end(archive: tarfile.TarFile, path: Path) -> None:
    """An archive ends with blocks of zeros; tarfile takes what is cut, or spoilt after the first member, for an end."""
    with open(path, "rb") as file:
        file.seek(archive.offset)
        end = file.read(_END)
    if len(end) < tarfile.BLOCKSIZE or end.strip(tarfile.NUL):
        raise tarfile.ReadError("there is something else where its end should be" if end else "it has no end")


def _sample(key: str, parts: dict[str, Any], shard: str) -> tuple[str, int, int, list[str]]:
    where = f"{shard}, {printable(key)}"
    images = [kind for kind in parts if kind in IMAGES]
    if len(images) != 1:
        there = ", ".join(f"{printable(key)}.{printable(kind)}" for kind in parts)
        what = "no image" if not images else "several images"
        raise DataError(f"{where} has {what}", why=f"there is {there}", do=f"one of {', '.join(IMAGES)} a name")
    member: tarfile.TarInfo = parts[images[0]]
    captions = captions_of(_texts(parts, where), where)
    return member.name, member.offset_data, member.size, captions


def _texts(parts: dict[str, Any], where: str) -> dict[str, Any]:
    """The captions of a sample under the keys of `captions_of`."""
    kind = next((kind for kind in CAPTIONS if kind in parts), None)
    if kind is None:
        raise DataError(f"{where} has no captions", why="there is neither .txt nor .json", do="add them")
    try:
        text = parts[kind].decode("utf-8-sig")
        if kind == "txt":
            return {"captions": [line for line in text.splitlines() if line.strip()]}
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        what = "not UTF-8" if isinstance(error, UnicodeDecodeError) else "not JSON"
        raise DataError(f"{where}.{kind} is {what}", why=str(error), do="correct it") from error
    if not isinstance(values, dict):
        raise DataError(f"{where}.{kind} is no JSON object", do='write {"caption": "a red cat"}')
    return values
