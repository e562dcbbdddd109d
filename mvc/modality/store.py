"""What the steps of a chain made, by content: a killed augmentation goes on from here, and provenance points here.

A folder with outputs.jsonl, one row for each item and its seeds, and the sounds and images that rows name. Rows are
appended after their files are on disk.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvc.errors import DataError
from mvc.storage import append_json_lines, read_json_lines, sha256_bytes, sha256_json, write_bytes

from .steps import Item, Output, Refused, Result, Step

ROWS = "outputs.jsonl"
FILE = "file"
"""Fact of an output that names its file, relative to the store."""


def digest_of(item: Item) -> str:
    """sha256 of an item's content: of a text's UTF-8, an image's pixels, a sound's samples."""
    if isinstance(item, str):
        return sha256_bytes(item.encode())
    if isinstance(item, Image.Image):
        return sha256_bytes(f"{item.mode} {item.size} ".encode() + item.tobytes())
    digest: str = item.digest()
    return digest


def key_of(step: Step, item: Item, seeds: Sequence[int]) -> str:
    """Digest of all that the outputs of a step for an item depend on; the seeds count where the step is random."""
    return sha256_json([step.identity, digest_of(item), list(seeds) if step.random else len(seeds)])


class Store:
    """Outputs by key.

    Args:
        folder: where they are kept; None keeps nothing.

    Raises:
        DataError: outputs.jsonl is damaged, but for a last line that a kill cut short.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._rows: dict[str, list[dict[str, Any]]] = {}
        if folder is not None:
            for row in read_json_lines(folder / ROWS, torn_tail=True):
                self._rows[str(row["key"])] = row["outputs"]

    def find(self, key: str) -> list[Result] | None:
        """What is known under a key; None if nothing is, or a file of it is gone or damaged."""
        rows = self._rows.get(key)
        if rows is None:
            return None
        try:
            return [self._result(row) for row in rows]
        except (DataError, OSError):
            return None

    def add(self, step: Step, made: Mapping[str, Sequence[Result]]) -> dict[str, list[Result]]:
        """Keep the outputs of a batch by key; gives them as they will be found again.

        Raises:
            EnvironmentFault: the disk is full; rows that were added before stay.
        """
        if self.folder is None or not step.keep:
            return {key: list(results) for key, results in made.items()}
        rows = {key: [self._row(f"{key}-{place}", one) for place, one in enumerate(made[key])] for key in made}
        append_json_lines(self.folder / ROWS, ({"key": key, "step": step.name, "outputs": rows[key]} for key in rows))
        self._rows.update(rows)
        return {key: [self._result(row) for row in rows[key]] for key in rows}

    def _row(self, name: str, result: Result) -> dict[str, Any]:
        if isinstance(result, Refused):
            return {"refused": result.why}
        if isinstance(result.value, str):
            return {"text": result.value, "facts": dict(result.facts)}
        return {FILE: self._write(name, result.value), "facts": dict(result.facts)}

    def _write(self, name: str, value: Item) -> str:
        assert self.folder is not None
        if isinstance(value, Image.Image):
            buffer = io.BytesIO()
            value.save(buffer, "PNG")
            write_bytes(self.folder / f"{name}.png", buffer.getvalue())
            return f"{name}.png"
        from .audio import SUFFIX, write_audio  # needs a package that images and texts do without

        write_audio(self.folder / f"{name}{SUFFIX}", value)
        return f"{name}{SUFFIX}"

    def _result(self, row: Mapping[str, Any]) -> Result:
        if "refused" in row:
            return Refused(str(row["refused"]))
        facts = dict(row["facts"])
        if FILE not in row:
            return Output(str(row["text"]), facts)
        assert self.folder is not None
        path, facts[FILE] = self.folder / str(row[FILE]), str(row[FILE])
        if path.suffix == ".png":
            with Image.open(path) as image:
                return Output(Image.fromarray(np.asarray(image.convert("RGB"))), facts)
        from .audio import read_audio

        return Output(read_audio(path), facts)
