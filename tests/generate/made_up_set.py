"""A made-up run with a pool of synthetic images of known kinds, and no model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mvc.candidates import close_pool, pool_of, write_image
from mvc.randomness import numpy_generator
from mvc.storage import sha256_bytes, sha256_file, write_json, write_json_lines
from mvc.synthetic import Candidate

SIDE = 32
CLASSES = {"big_dog": "big dog", "cat": "cat"}
"""Words by class folder."""
SPLITS = {"train": 6, "validation": 2, "test": 1}

Pixels = NDArray[np.uint8]


def pixels_of(purpose: str, *number: int) -> Pixels:
    """A soft picture of 64 colours that no other purpose or number has."""
    squares = numpy_generator(0, purpose, *number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return np.array(Image.fromarray(squares).resize((SIDE, SIDE), Image.Resampling.BICUBIC))


def write_real(run: Path) -> None:
    """run/data with SPLITS images of each class."""
    index: list[dict[str, Any]] = []
    for label, name in enumerate(CLASSES):
        for split, count in SPLITS.items():
            for number in range(count):
                path = f"{split}/{name}/{number}.png"
                (run / "pictures" / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels_of(f"real {split} {name}", number)).save(run / "pictures" / path)
                facts = {"id": path, "path": path, "class_name": name, "label": label, "split": split}
                facts["sha256"] = sha256_file(run / "pictures" / path)
                index.append({**facts, "width": SIDE, "height": SIDE, "mode": "RGB", "used": True})
    classes = [{"folder": name, "words": words, "label": label} for label, (name, words) in enumerate(CLASSES.items())]
    write_json(run / "data" / "classes.json", {"root": "pictures", "classes": classes})
    write_json_lines(run / "data" / "index.jsonl", index)


def candidate(class_name: str, index: int, source: str = "finetuned", attempt: int = 1, **changes: Any) -> Candidate:
    """A row without its image, as the generate stage writes it."""
    own = f"{source}-{index:05d}" + (f"-{attempt}" if attempt > 1 else "")
    tuned = source == "finetuned"
    row: dict[str, Any] = {
        "file_name": f"{class_name}/{own}.png",
        "label": class_name,
        "id": own,
        "source": source,
        "class_name": class_name,
        "source_image": f"train/{class_name}/0.png" if tuned else None,
        "caption_base": f"train/{class_name}/1.png",
        "caption_partners": [f"train/{class_name}/2.png"] if tuned else [],
        "plan": {"base": 1, "coarse": [[2, 1, 3], [2, 4, 9]], "fine": [[2, 1, 0, 4]] * 3} if tuned else None,
        "instruction": None,
        "imported_file": None,
        "seed": 5,
        "index": index,
        "attempt": attempt,
        "guidance": "dual" if tuned else "text",
        "guidance_scale": 1.5 + index if tuned else 7.5,
        "image_guidance_scale": 1.25 if tuned else None,
        "guidance_interval": [0.0, 0.75],
        "num_inference_steps": 20,
        "scheduler": "ddim",
        "eta": 0.0,
        "strength": None,
        "mixed_precision": "bf16",
        "image_size": SIDE,
        "model": sha256_bytes(source.encode()),
        "sha256": None,
        "batch_size": 4,
        "batch_place": index,
        "in_float32": False,
    }
    return Candidate(**{**row, **changes})  # type: ignore[typeddict-item]


def fill_pool(
    run: Path, pictures: Mapping[str, tuple[Candidate, Pixels | None]], wanted: Mapping[str, Mapping[str, int]]
) -> None:
    """A closed pool of rows and their pictures, None for those that are not finite."""
    pool, rows = pool_of(run), {}
    for row, pixels in pictures.values():
        if pixels is not None:
            row["sha256"] = write_image(pool.accepted, row["file_name"], pixels)
        rows[row["file_name"]] = row
    close_pool(pool, rows)
    write_json(pool.folder / "wanted.json", wanted)
