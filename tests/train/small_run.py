"""A run folder with a few real images, captions and a toy Stable Diffusion, ready for the train stage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvc.config import Experiment
from mvc.randomness import numpy_generator
from mvc.storage import sha256_file, write_json, write_json_lines
from tests.tiny_parts import IMAGE_SIZE, write_pipeline

CLASSES = ("cat", "dog")


def write_run(folder: Path, images: int = 3) -> Path:
    """What the data and caption stages leave behind: `images` PNG files a class, in folder/run."""
    run, rows, captions = folder / "run", [], []
    for label, name in enumerate(CLASSES):
        for number in range(images):
            path = folder / "images" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            drawn = numpy_generator(label, "test image", number).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE + 8, 3))
            Image.fromarray(drawn.astype(np.uint8)).save(path)
            row: dict[str, Any] = {"id": f"{name}/{number}.png", "path": f"{name}/{number}.png", "class_name": name}
            row |= {"label": label, "split": "train", "sha256": sha256_file(path), "mode": "RGB", "used": True}
            rows.append({**row, "width": IMAGE_SIZE + 8, "height": IMAGE_SIZE})
            caption = f"This is an image of {name}. a {('red', 'blue', 'small')[number % 3]} {name} {number}"
            captions.append({"id": row["id"], "class_name": name, "caption": caption, "captioner": "hand"})
    classes = [{"folder": name, "words": name, "label": label} for label, name in enumerate(CLASSES)]
    write_json(run / "data/classes.json", {"root": "../images", "classes": classes})
    write_json_lines(run / "data/index.jsonl", rows)
    write_json_lines(run / "captions.jsonl", captions)
    return run


def experiment_for(run: Path, **train: Any) -> Experiment:
    """A short fine-tuning of the toy model beside the run, written if it is not there."""
    base = run.parent / "base"
    if not base.exists():
        write_pipeline(base)
    short = {"max_train_steps": 6, "train_batch_size": 4, "checkpointing_steps": 2, "lr_warmup_steps": 2}
    content = {"run": {"device": "cpu"}, "model": {"base": str(base)}, "train": {**short, "random_crop": 0.0, **train}}
    return Experiment.model_validate(content)
