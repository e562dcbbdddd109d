"""Draw the images of the points of `mvc tune`, through the code that draws the synthetic set."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from mvc.candidates import Pool, close_pool, find_image, is_closed, open_pool, read_candidates, whole_rows
from mvc.dataset import CLASSES
from mvc.fingerprint import file_digest, place_digest
from mvc.stages import CAPTIONS, INDEX
from mvc.storage import read_json, sha256_json, write_json
from mvc.synthetic import Candidate

from .drawing import Work, draw_missing
from .inputs import Inputs, jobs_for, read_inputs, wanted_slots
from .judging import judging_order
from .stage import belonging
from .tune_points import CHECKPOINT, KEYS, Point, short_key

POINTS = "tune/points"
"""Below the run folder: a pool of images a point, in a folder named by its settings."""
_FACTS = "point.json"
_BESIDE = ("edit_model", "edit_instruction", "import_path", "mixed_precision")
"""Keys of generate that change images and that no point sets."""


@dataclass(frozen=True)
class Picture:
    """One image of a point: its file, the sha256 of that, its class, and the real images that it was made from."""

    path: Path
    sha256: str
    class_name: str
    parents: frozenset[str]


def pool_of_point(run: Path, point: Point) -> Pool:
    """Where the images of a point are; they are not moved by a verdict."""
    folder = run / POINTS / point.folder
    return Pool(folder, folder, folder)


def is_drawn(run: Path, point: Point, model: Path) -> bool:
    """Whether all images of a point are there, made from what is there now.

    Args:
        run: the run folder.
        point: the point.
        model: the file that changes with the fine-tuned model, or with the checkpoint.
    """
    pool = pool_of_point(run, point)
    if not _is_current(pool, _key(run, point, model)):
        return False
    inputs, rows = read_inputs(run, point.experiment), read_candidates(pool)
    slots = wanted_slots(inputs)
    names = {f"{job.class_name}/{job.id}.png" for job in jobs_for(inputs, slots, 1)}
    return names == set(rows) and is_closed(pool, rows) and len(whole_rows(pool, rows.values())) == len(rows)


def draw_point(run: Path, point: Point, model: Path, folder: Path | None) -> None:
    """Draw what is missing of the images of a point; at every point from the same noise.

    Each image is drawn once: what filters would refuse is part of what is judged here.

    Args:
        run: the run folder, with index, captions and, for the fine-tuned source, the model.
        point: the point.
        model: the file that changes with the fine-tuned model, or with the checkpoint.
        folder: of the fine-tuned model; None for the one that the run published.

    Raises:
        DataError: something that an earlier stage writes is missing or damaged.
        EnvironmentFault: a model cannot be loaded, memory or disk is too small.
        Stopped: a signal asked for a stop; finished images are kept.
    """
    pool, key = pool_of_point(run, point), _key(run, point, model)
    if not _is_current(pool, key):
        shutil.rmtree(pool.folder, ignore_errors=True)
        write_json(pool.folder / _FACTS, {"key": key, "settings": point.settings})
    with _with_model(read_inputs(run, point.experiment), folder) as inputs:
        slots = wanted_slots(inputs)
        rows = belonging(inputs, pool, slots)
        open_pool(pool, rows)
        draw_missing(Work(inputs, pool, rows), jobs_for(inputs, slots, 1))
        close_pool(pool, rows)


def _is_current(pool: Pool, key: str) -> bool:
    facts = pool.folder / _FACTS
    return facts.exists() and read_json(facts)["key"] == key


def _key(run: Path, point: Point, model: Path) -> str:
    """Digest of all that the images of a point depend on, but for how many they are."""
    content = point.experiment.model_dump(mode="json")
    generate = {name for name in map(short_key, KEYS) if name in content["generate"]} | set(_BESIDE)
    base = point.experiment.model
    return sha256_json(
        {
            "seed": point.experiment.run.seed,
            "image_size": point.experiment.data.image_size,
            "background": point.experiment.data.background,
            "mixing": content["mixing"],
            "generate": {name: content["generate"][name] for name in sorted(generate)},
            "base": [place_digest(base.base), base.revision, base.config and place_digest(base.config)],
            "scaled": base.image_latents_scaled,
            "model": file_digest(model) if point.fine_tuned else None,
            CHECKPOINT: point.checkpoint,
            "index": file_digest(run / INDEX),
            "classes": file_digest(run / CLASSES),
            "captions": file_digest(run / CAPTIONS),
        }
    )


@contextmanager
def _with_model(inputs: Inputs, folder: Path | None) -> Iterator[Inputs]:
    """The inputs with another fine-tuned model than run/model."""
    if folder is None:
        yield inputs
        return
    # Everything below takes the model and the caches from one folder, so one is made that has both.
    place = folder.parent / f".tmp-{os.getpid()}-run-{folder.name}"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    try:
        (inputs.run / "cache").mkdir(exist_ok=True)
        (place / "cache").symlink_to((inputs.run / "cache").resolve(), target_is_directory=True)
        (place / "model").symlink_to(folder.resolve(), target_is_directory=True)
        yield replace(inputs, run=place)
    finally:
        shutil.rmtree(place, ignore_errors=True)


def pictures_of(run: Path, point: Point) -> list[Picture]:
    """The images of a drawn point in the order of judging; those that were not finite have none."""
    pool = pool_of_point(run, point)
    rows = sorted(read_candidates(pool).values(), key=judging_order)
    return [
        Picture(path, row["sha256"], row["class_name"], _parents(row))
        for row in rows
        if row["sha256"] is not None and (path := find_image(pool, row["file_name"])) is not None
    ]


def _parents(row: Candidate) -> frozenset[str]:
    named = [row["source_image"], row["caption_base"], *row["caption_partners"]]
    return frozenset(name for name in named if name is not None)
