"""A run folder with a synthetic set of any size, made of noise in no time: what growth.py measures generation on.

The run is whole: index, captions, a model (the embedded one, widened), and candidates with their files and features, as
if the generate stage had drawn them. Only their pixels are noise, and their features some of the pixels.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from mvc import models
from mvc.candidates import close_pool, find_image, pool_of
from mvc.config import Experiment
from mvc.diffusion import widen_conv_in
from mvc.extractors import Extractor, find_extractor
from mvc.features import FOLDER, look
from mvc.generate.inputs import Inputs, jobs_for, read_inputs, wanted_slots
from mvc.generate.jobs import Job, Slot
from mvc.generate.recipes import recipes_of
from mvc.randomness import numpy_generator
from mvc.storage import sha256_file, write_json, write_json_lines
from mvc.synthetic import WANTED, Candidate
from mvc.tiny import WEIGHTS

CLASSES, REAL, HELD_OUT, SIDE = 10, 10, 5, 32
SETTINGS = {"num_inference_steps": 2, "batch_size": 16, "preview": 0}


def noise(*index: int) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3) random pixels."""
    return numpy_generator(0, "benchmark pixels", *index).integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8)


def write_quickly(path: Path, pixels: NDArray[np.uint8]) -> str:
    """Write a PNG file without waiting for the disk; its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return sha256_file(path)


def write_run(run: Path) -> Path:
    """A run as the stages before generation leave it: CLASSES classes of REAL training images, and a model."""
    index, captions = [], []
    names = [f"class {label:02}" for label in range(CLASSES)]
    for label, name in enumerate(names):
        for number in range(REAL + HELD_OUT):
            key, split = f"{name}/{number:03}.png", "train" if number < REAL else "validation"
            digest = write_quickly(run / "pictures" / key, noise(label, number))
            facts = {"sha256": digest, "width": SIDE, "height": SIDE, "mode": "RGB", "used": True}
            index.append({"id": key, "path": key, "class_name": name, "label": label, "split": split, **facts})
            if split == "train":
                caption = f"This is an image of {name}. a picture of number {number}."
                captions.append({"id": key, "class_name": name, "caption": caption, "captioner": "file"})
    classes = [{"folder": name, "words": name, "label": label} for label, name in enumerate(names)]
    write_json(run / "data" / "classes.json", {"root": "pictures", "classes": classes})
    write_json_lines(run / "data" / "index.jsonl", index)
    write_json_lines(run / "captions.jsonl", captions)
    unet = models.load_unet(WEIGHTS)
    widen_conv_in(unet)
    models.save_model(run / "model", unet, WEIGHTS, None, {"image_latents_scaled": True})
    return run


def experiment_of(images: int) -> Experiment:
    """Settings that want so many images; a multiple of CLASSES."""
    wanted = {"per_class": images // CLASSES, **SETTINGS}
    return Experiment.model_validate({"run": {"device": "cpu"}, "data": {"image_size": SIDE}, "generate": wanted})


def wanting(inputs: Inputs, images: int) -> Inputs:
    """The same inputs, of which so many images are wanted."""
    return replace(inputs, experiment=experiment_of(images))


def job_table(inputs: Inputs) -> tuple[list[Slot], list[Job]]:
    """All slots, and the jobs of their first attempt."""
    slots = wanted_slots(inputs)
    return slots, jobs_for(inputs, slots, 1)


def fill(run: Path, inputs: Inputs) -> None:
    """Fill a run's pool as if all that is wanted had been drawn, and its cache with features."""
    slots, jobs = job_table(inputs)
    pool = pool_of(run)
    rows: dict[str, Candidate] = {}
    for number, (name, recipe) in enumerate(recipes_of(inputs, jobs).items()):
        found = find_image(pool, name)
        if found is None:
            label = inputs.dataset.classes.index(recipe["class_name"])
            digest = write_quickly(pool.accepted / name, noise(CLASSES + label, recipe["index"]))
        else:
            digest = sha256_file(found)
        outcome = {"sha256": digest, "batch_size": 16, "batch_place": number % 16, "in_float32": False}
        rows[name] = cast(Candidate, {**recipe, **outcome})
    counts = {"finetuned": {name: sum(slot[1] == name for slot in slots) for name in inputs.texts}}
    write_json(pool.folder / WANTED, counts)
    close_pool(pool, rows)
    features(run, rows)


def features(run: Path, rows: dict[str, Candidate]) -> None:
    """Fill the cache of features of all candidates, with some of their pixels in place of the extractor's vector."""
    found, device = find_extractor("tiny"), torch.device("cpu")
    width = found.load(device).width

    def embed(image: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(image, dtype=np.float32).reshape(-1)[:width] - 127.5)

    paths = [(str(row["sha256"]), find_image(pool_of(run), name)) for name, row in rows.items()]
    images = [(digest, path) for digest, path in paths if path is not None]
    look(run / FOLDER, images, None, "white", found.identity, lambda: Extractor("pixels", found.identity, width, embed))


def grown(before: Path, run: Path) -> Path:
    """A copy of a run to grow further; its synthetic images are links, which nothing here writes to."""
    shutil.copytree(before, run, copy_function=_link_images)
    return run


def _link_images(source: str, target: str) -> None:
    if source.endswith(".png"):
        os.link(source, target)
    else:
        shutil.copy2(source, target)


def inputs_of(run: Path, images: int) -> Inputs:
    """What the generate stage reads of a run."""
    return read_inputs(run, experiment_of(images))
