"""The synthetic set on disk: one provenance row an image, and the accepted images as class folders of PNG files.

run/synthetic holds `train/` (the accepted images with metadata.jsonl, which opens with `datasets` and torchvision),
`rejected/` with rejected.jsonl, and candidates.jsonl, a row for every image that was drawn (mvc/candidates.py).
While train/metadata.jsonl exists the set is complete.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, cast

from mvc.errors import DataError
from mvc.storage import json_line, read_json_lines, write_text

METADATA, REJECTED, SUMMARY = "metadata.jsonl", "rejected.jsonl", "summary.json"
WANTED = "wanted.json"
"""How many images of each source and class the pool was drawn for."""


class Recipe(TypedDict):
    """What an image is made from, beside the run's images and captions; equal recipes, equal images."""

    file_name: str
    """<class folder>/<id>.png, relative to the folder of accepted or of rejected images."""
    label: str
    """The class folder again, because `datasets` drops folder labels where there is a metadata file."""
    id: str
    """<source>-<index>, and -<attempt> from the second one on."""
    source: str
    """One of mvc.config_generation.SOURCES."""
    class_name: str
    source_image: str | None
    """Record id of the real image that it is conditioned on or begun from; None where there is none."""
    caption_base: str | None
    """Record id of the image whose caption was mixed, or taken as it is."""
    caption_partners: list[str]
    """Record ids of the images whose captions were mixed into it, in the plan's order, each once."""
    plan: dict[str, Any] | None
    """The row of the mixing plan; None for unmixed captions."""
    instruction: str | None
    """The words of instruct_pix2pix."""
    text: str | None
    """back_captioning: what it was drawn from, a rewritten caption of source_image."""
    branch: list[int] | None
    """back_captioning: number of the caption, and of its rewrite."""
    imported_file: str | None
    """import: path below the imported folder."""
    seed: int
    """run.seed."""
    index: int
    """Number of the image among those of its class and source."""
    attempt: int
    """1, or more where earlier draws were refused."""
    guidance: str | None
    """paper, dual or text; None for import."""
    guidance_scale: float | None
    image_guidance_scale: float | None
    """None where the guidance has no such scale."""
    guidance_interval: list[float] | None
    num_inference_steps: int | None
    scheduler: str | None
    eta: float | None
    strength: float | None
    """Of sdedit."""
    mixed_precision: str | None
    image_size: int
    """Side in pixels."""
    model: str
    """Identity of the model: sha256 over its configuration and weights; of the file for import."""


class Candidate(Recipe):
    """A recipe and what came of it."""

    sha256: str | None
    """Of the PNG file; None where the image was not finite, and has no file."""
    batch_size: int
    """Of the batch that it was computed in."""
    batch_place: int
    """Its place there: with the size, what its last bit depends on."""
    in_float32: bool
    """Computed again in float32, because the reduced precision gave values that are not finite."""


class SyntheticRow(Candidate):
    """A candidate and what the filters said."""

    scores: dict[str, Any]
    accepted: bool
    reasons: list[str]
    """Why it was refused; empty for accepted ones."""


LATER = ("text", "branch")
"""Keys that earlier versions did not know; a written row lacks those that are None, so that old sets stay whole."""
OUTCOME = ("sha256", "batch_size", "batch_place", "in_float32")
VERDICT = ("scores", "accepted", "reasons")


@dataclass(frozen=True)
class SyntheticImage:
    """One image of a finished set.

    Attributes:
        path: the PNG file.
        class_name: class folder.
        source: what made it.
        row: everything known about it.
    """

    path: Path
    class_name: str
    source: str
    row: SyntheticRow

    @property
    def sha256(self) -> str:
        """Of the file; an accepted image has one."""
        return self.row["sha256"] or ""


def synthetic_folder(run: Path) -> Path:
    """The folder of the accepted synthetic images of a run."""
    return run / "synthetic" / "train"


def rejected_folder(run: Path) -> Path:
    """The folder of the synthetic images that were refused."""
    return run / "synthetic" / "rejected"


def recipe_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe part of a row."""
    return {key: value for key, value in row.items() if key not in (*OUTCOME, *VERDICT)}


def candidate_of(row: Mapping[str, Any]) -> Candidate:
    """A row without what the filters said."""
    known = {key: value for key, value in row.items() if key not in VERDICT}
    return cast(Candidate, _with_later(known))


def _with_later(row: dict[str, Any]) -> dict[str, Any]:
    """A row as it was read with all keys that rows have today, the others in their order."""
    return {**row, **{key: None for key in LATER if key not in row}}


def read_synthetic(run: Path) -> list[SyntheticImage]:
    """The finished synthetic set of a run, sorted by class folder and id.

    Raises:
        DataError: there is no finished set, or a row of it has no file.
    """
    folder = synthetic_folder(run)
    if not (folder / METADATA).exists():
        raise DataError(f"{folder} holds no finished synthetic set", do="run `mvc generate`")
    images = []
    for line in read_json_lines(folder / METADATA):
        row = cast(SyntheticRow, {**_with_later(line), "reasons": []})
        path = folder / row["file_name"]
        if not path.is_file():
            do = "run `mvc generate`: only what is missing is made"
            raise DataError(f"{path} is missing", why=f"{METADATA} names it", do=do)
        images.append(SyntheticImage(path, row["class_name"], row["source"], row))
    return sorted(images, key=lambda image: (image.class_name, image.row["id"]))


def read_rejected(run: Path) -> list[SyntheticRow]:
    """The rows of the images that were refused, sorted by file name; none before a set is finished."""
    return [cast(SyntheticRow, row) for row in read_json_lines(run / "synthetic" / REJECTED, torn_tail=True)]


def rows_text(rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows as they are written: JSON Lines, sorted by file name."""
    return "".join(json_line(as_written(row)) for row in sorted(rows, key=lambda row: str(row["file_name"])))


def as_written(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row as its line of JSON holds it."""
    return {key: value for key, value in row.items() if key not in LATER or value is not None}


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows sorted by file name, atomically."""
    write_text(path, rows_text(rows))
