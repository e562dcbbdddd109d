"""The synthetic set on disk: class folders of PNG files and one provenance row an image.

While metadata.jsonl exists the set is complete. Work in progress keeps its rows in
metadata.partial.jsonl, to which whole batches are appended after their files are on disk.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
from PIL import Image

from mvc.errors import DataError, EnvironmentFault
from mvc.storage import (
    append_json_lines,
    files_below,
    read_json_lines,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json_lines,
)

METADATA, PARTIAL = "metadata.jsonl", "metadata.partial.jsonl"
_OWN = re.compile(r"^((finetuned|pretrained)-)?\d+\.png$")
"""Names that the project gives; other files in the folder are somebody's own and stay."""


class Recipe(TypedDict):
    """What a synthetic image is made from, beside the run's images and captions; equal recipes, equal images."""

    file_name: str
    """<class folder>/<id>.png, relative to the folder of the metadata file."""
    label: str
    """The class folder again, because `datasets` drops folder labels where there is a metadata file."""
    id: str
    source: str
    """finetuned or pretrained."""
    class_name: str
    source_image: str | None
    """Record id of the condition image x'; None where there is none."""
    caption_base: str
    """Record id of the image whose caption was mixed, or taken as it is."""
    plan: dict[str, Any] | None
    """The row of the mixing plan; None for unmixed captions."""
    seed: int
    """run.seed."""
    index: int
    """Number of the image among those of its class and source."""
    guidance: str
    guidance_scale: float
    image_guidance_scale: float | None
    """None where the guidance has no such scale."""
    num_inference_steps: int
    scheduler: str
    image_size: int
    """Side in pixels."""
    model: str
    """Identity of the model: sha256 over its configuration and weights."""


class SyntheticRow(Recipe):
    """A recipe and what came of it."""

    attempt: int
    """1, or more where earlier draws of noise gave an unusable image."""
    sha256: str
    """Of the PNG file."""


@dataclass(frozen=True)
class SyntheticImage:
    """One image of a finished set.

    Attributes:
        path: the PNG file.
        class_name: class folder.
        source: finetuned or pretrained.
        row: everything known about it.
    """

    path: Path
    class_name: str
    source: str
    row: SyntheticRow


def synthetic_folder(run: Path) -> Path:
    """The folder of the synthetic training images of a run."""
    return run / "synthetic" / "train"


def read_synthetic(run: Path) -> list[SyntheticImage]:
    """The finished synthetic set of a run, sorted by class folder and id.

    Raises:
        DataError: there is no finished set, or a row of it has no file.
    """
    folder = synthetic_folder(run)
    if not (folder / METADATA).exists():
        raise DataError(f"{folder} holds no finished synthetic set", do="run `mvc generate`")
    images = []
    for row in _rows(folder / METADATA):
        path = folder / row["file_name"]
        if not path.is_file():
            raise DataError(f"{path} is missing", why=f"{METADATA} names it", do=_again(folder))
        images.append(SyntheticImage(path, row["class_name"], row["source"], row))
    return sorted(images, key=lambda image: (image.class_name, image.row["id"]))


def _again(folder: Path) -> str:
    return f"delete {folder / METADATA} and generate again: only what is missing is made"


def _rows(path: Path) -> list[SyntheticRow]:
    return [cast(SyntheticRow, row) for row in read_json_lines(path, torn_tail=True)]


def recipe_of(row: SyntheticRow) -> dict[str, Any]:
    """The recipe part of a row."""
    return {key: value for key, value in row.items() if key not in ("attempt", "sha256")}


def finished_rows(folder: Path, recipes: Sequence[Recipe]) -> dict[str, SyntheticRow]:
    """Rows of earlier work that are still good: same recipe, and the file has its sha256.

    Args:
        folder: of a set, finished or not, or not begun.
        recipes: what the set shall hold.

    Returns:
        the good rows by file name.
    """
    wanted = {recipe["file_name"]: recipe for recipe in recipes}
    good: dict[str, SyntheticRow] = {}
    for row in [*_rows(folder / METADATA), *_rows(folder / PARTIAL)]:
        name, path = row["file_name"], folder / row["file_name"]
        if wanted.get(name) == recipe_of(row) and path.is_file() and sha256_file(path) == row["sha256"]:
            good[name] = row
    return good


def is_finished(folder: Path, rows: dict[str, SyntheticRow], recipes: Sequence[Recipe]) -> bool:
    """Whether a set is published and holds exactly these recipes, as verified by `finished_rows`."""
    if (folder / PARTIAL).exists() or not (folder / METADATA).exists() or len(rows) != len(recipes):
        return False
    return len(_rows(folder / METADATA)) == len(recipes) == len(_images(folder))


def _images(folder: Path) -> list[Path]:
    return [path for path in files_below(folder) if _OWN.match(path.name)]


def begin_set(folder: Path, rows: dict[str, SyntheticRow]) -> None:
    """Open a set for more work, keeping `rows`; from here until `publish_set` it counts as unfinished."""
    _write_rows(folder / PARTIAL, rows)
    (folder / METADATA).unlink(missing_ok=True)


def _write_rows(path: Path, rows: dict[str, SyntheticRow]) -> None:
    write_json_lines(path, (cast(dict[str, Any], rows[name]) for name in sorted(rows)))


def write_image(folder: Path, file_name: str, pixels: np.ndarray[Any, Any]) -> str:
    """Write (H, W, 3) uint8 pixels as a PNG file, whole or not at all; returns its sha256."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    write_bytes(folder / file_name, buffer.getvalue())
    return sha256_bytes(buffer.getvalue())


def add_rows(folder: Path, rows: Sequence[SyntheticRow]) -> None:
    """Append the rows of images whose files are on disk."""
    append_json_lines(folder / PARTIAL, [cast(dict[str, Any], row) for row in rows])


def publish_set(folder: Path, recipes: Sequence[Recipe], rows: dict[str, SyntheticRow]) -> None:
    """Close a set: check wanted = present, remove images that it no longer holds, write metadata.jsonl.

    Args:
        folder: of the set; images in it that no recipe names are leftovers of other settings.
        recipes: what the set shall hold.
        rows: what was made, by file name.

    Raises:
        EnvironmentFault: an image is missing or its file is not what was written; names the first.
    """
    for recipe in recipes:
        path, row = folder / recipe["file_name"], rows.get(recipe["file_name"])
        if row is None or not path.is_file() or sha256_file(path) != row["sha256"]:
            why = "it is gone" if not path.is_file() else "its content is not what was written"
            raise EnvironmentFault(f"{path} is not there as it should be", why=why, do="generate again")
    for path in _images(folder):
        if path.relative_to(folder).as_posix() not in rows:
            path.unlink()
    for place in folder.iterdir():
        # torchvision's ImageFolder refuses a class folder without images.
        if place.is_dir() and not any(place.iterdir()):
            place.rmdir()
    _write_rows(folder / METADATA, rows)
    (folder / PARTIAL).unlink(missing_ok=True)
