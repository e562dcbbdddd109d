"""`mvc regenerate`: make one image again from its row alone, and compare it with its file."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.candidates import find_image, pool_of, read_candidates, write_image
from mvc.config import Experiment
from mvc.errors import ConfigError, DataError, NumericError
from mvc.images import decode, to_pixels
from mvc.storage import exclusive, sha256_file
from mvc.synthetic import Candidate
from mvc.walk import listing, printable

from .imported import read_imported
from .inputs import Inputs, read_inputs
from .loading import load_source
from .recipes import identity_of, instruction, job_of
from .source import draw_alone

ROUNDING = 1
"""Levels of 255 that other hardware or versions of the libraries may change a pixel by."""
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Outcome:
    """What came of making an image again.

    Attributes:
        name: <class folder>/<id>.
        path: its file; None where there is none.
        as_recorded: the new picture is to the byte what the row says.
        file_as_recorded: so is the file; None without one.
        pixels: of the picture; 0 where none can be compared.
        differing: pixels in which the file and the new picture differ.
        largest: the largest difference, in levels of 255.
    """

    name: str
    path: Path | None
    as_recorded: bool
    file_as_recorded: bool | None
    pixels: int = 0
    differing: int = 0
    largest: int = 0

    @property
    def exit_code(self) -> int:
        """0 if the image is the same but for rounding, else 5."""
        same = self.as_recorded if self.path is None else self.largest <= ROUNDING
        return 0 if same else 5

    def describe(self) -> str:
        """The outcome in a sentence."""
        if self.path is None:
            return f"{self.name}: {'as' if self.as_recorded else 'not what'} its row says; it has no file"
        text = f"{self.name}: {self._difference()}"
        if self.file_as_recorded:
            return text
        new = "the new picture is" if self.as_recorded else "nor is the new picture"
        return f"{text}; that file is not what its row names, {new}"

    def _difference(self) -> str:
        if self.differing == 0:
            return f"the same {'bytes' if self.as_recorded and self.file_as_recorded else 'pixels'} as {self.path}"
        text = f"{self.differing} of {self.pixels} pixels differ from {self.path}, by {self.largest} of 255 at the most"
        rounding = " (rounding: another machine, other versions or another setting of speed)"
        return text + (rounding if self.largest <= ROUNDING else "")


def regenerate(run: Path, experiment: Experiment, wanted_id: str, out: Path | None = None) -> Outcome:
    """Make one image again from its row, the run's images, captions and models, and compare it with its file.

    The row decides on all that the image depends on; the experiment says where things lie, and on what device and
    how fast to compute (generate.channels_last, generate.compile), which may change the last bits.

    Args:
        run: the run folder.
        experiment: sections run, data, mixing, model and generate are used.
        wanted_id: <class folder>/<id>, or the id alone where only one class has it; accepted or refused.
        out: where to write the new picture as PNG; nowhere without it.

    Raises:
        ConfigError: no such image, or several; `out` cannot be used.
        DataError: what the image was made from is gone or has changed, its model included.
        EnvironmentFault: a model cannot be loaded, memory or disk is too small, or the run is in use.
        NumericError: the image was finite and is no longer.
    """
    if out is not None:
        _require_free(out)
    pool = pool_of(run)
    row = find_row(read_candidates(pool), wanted_id, run)
    # Caches that lack something are written to.
    with exclusive(run):
        made = _make(_inputs_of(run, experiment, row), row)
        return _compared(row, find_image(pool, row["file_name"]), made, out)


def find_row(rows: dict[str, Candidate], wanted_id: str, run: Path) -> Candidate:
    """The row of an image by <class folder>/<id>, or by id.

    Args:
        rows: all rows by file name.
        wanted_id: what the user wrote; .png at its end does no harm.
        run: the run folder, for the errors.

    Raises:
        DataError: there is no row at all.
        ConfigError: no image is called so, or those of several classes are.
    """
    if not rows:
        raise DataError(f"{run} has no synthetic images", do="run `mvc generate`")
    wanted = wanted_id.removesuffix(".png")
    if f"{wanted}.png" in rows:
        return rows[f"{wanted}.png"]
    found = [row for row in rows.values() if row["id"] == wanted]
    if not found:
        example = min(rows).removesuffix(".png")
        why = f"images are called like {printable(example)}"
        raise ConfigError(f"{run} has no image {printable(wanted)}", why=why, do="see synthetic/candidates.jsonl")
    if len(found) > 1:
        names = sorted(f"{row['class_name']}/{wanted}" for row in found)
        raise ConfigError(f"{len(names)} classes have an image {printable(wanted)}", do=f"give one: {listing(names)}")
    return found[0]


def _require_free(out: Path) -> None:
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out} does not end in .png", why="images are written as PNG", do="rename it")
    if out.exists():
        raise ConfigError(f"--out {out} exists", why="no file of yours is replaced", do="give another name")


def _inputs_of(run: Path, experiment: Experiment, row: Candidate) -> Inputs:
    """The inputs of generation, every setting that the row names as the row has it."""
    chosen: dict[str, Any] = {"sources": {row["source"]: 1.0}}
    for key in ("scheduler", "num_inference_steps", "eta", "mixed_precision"):
        chosen[key] = row[key]
    chosen["sdedit_strength"] = row["strength"]
    chosen["guidance_interval"] = None if row["guidance_interval"] is None else tuple(row["guidance_interval"])
    if row["source"] == "finetuned":  # the others have one kind of guidance
        chosen["guidance"] = row["guidance"]
    known = {key: value for key, value in chosen.items() if value is not None}
    settings = experiment.model_copy(
        update={
            "run": experiment.run.model_copy(update={"seed": row["seed"]}),
            "data": experiment.data.model_copy(update={"image_size": row["image_size"]}),
            "generate": experiment.generate.model_copy(update=known),
        }
    )
    inputs = read_inputs(run, settings)
    # Only where it differs: else the cache of instructions would be written anew for this image.
    if row["instruction"] is None or instruction(inputs, row["class_name"]) == row["instruction"]:
        return inputs
    told = settings.generate.model_copy(update={"edit_instruction": row["instruction"]})
    return replace(inputs, experiment=settings.model_copy(update={"generate": told}))


def _make(inputs: Inputs, row: Candidate) -> Pixels | None:
    """(H, W, 3) uint8 pixels of the image that a row describes; None where they are not finite."""
    job = job_of(inputs, row)
    if row["source"] == "import":
        return _read_again(inputs, row)
    identity = identity_of(inputs, row["source"])
    if identity != row["model"]:
        raise DataError(
            f"{row['class_name']}/{row['id']} was made by another model than the run has now",
            why=f"its row says {row['model'][:12]}, the model is {identity[:12]} (the first digits of the sha256)",
            do="put that model back, or generate the set again",
        )
    source = load_source(inputs, row["source"])
    # Where half precision failed it fails again, and the same way to float32 is taken.
    pixels = draw_alone(source, job, row["batch_size"], row["batch_place"])
    return to_pixels(pixels) if bool(pixels.isfinite().all()) else None


def _read_again(inputs: Inputs, row: Candidate) -> Pixels:
    file = row["imported_file"]
    if inputs.imported is None or file is None:
        raise ConfigError(f"{row['class_name']}/{row['id']} was imported", do="set generate.import_path to its folder")
    path = inputs.imported.folder / file
    if not path.is_file():
        raise DataError(f"{path} is missing", why=f"{row['class_name']}/{row['id']} was made from it")
    if sha256_file(path) != row["model"]:
        raise DataError(f"{path} has changed since {row['class_name']}/{row['id']} was made from it")
    return read_imported(inputs.imported, file, inputs.image_size, inputs.experiment.data.background)


def _compared(row: Candidate, path: Path | None, made: Pixels | None, out: Path | None) -> Outcome:
    name = f"{row['class_name']}/{row['id']}"
    if made is None:
        if row["sha256"] is None:
            return Outcome(name, None, True, None)
        raise NumericError(f"{name} is not finite when it is made again", why="the device computes otherwise now")
    same = _written(made, out) == row["sha256"]
    if path is None or row["sha256"] is None:
        return Outcome(name, None, same, None)
    there = np.asarray(decode(path), dtype=np.int16)
    pixels = there.shape[0] * there.shape[1]
    if there.shape != made.shape:
        return Outcome(name, path, same, False, pixels, pixels, 255)
    levels = np.abs(there - made).max(axis=2)
    whole = sha256_file(path) == row["sha256"]
    return Outcome(name, path, same, whole, pixels, int((levels > 0).sum()), int(levels.max()))


def _written(made: Pixels, out: Path | None) -> str:
    """sha256 of the picture as the stage would write it; it is kept where `out` says."""
    with TemporaryDirectory() as spare:
        target = out or Path(spare) / "made.png"
        return write_image(target.parent, target.name, made)
