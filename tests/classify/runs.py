"""A tiny made-up run folder: two classes of 16 px images, with a synthetic set of two sources."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvc.candidates import write_image
from mvc.randomness import numpy_generator
from mvc.storage import sha256_file, write_json, write_json_lines
from mvc.synthetic import synthetic_folder

CLASSES = ["dark", "light"]
COUNTS = {"train": 6, "validation": 8, "test": 20}
"""Images of both classes together."""


def picture(label: int, *index: int) -> np.ndarray[Any, Any]:
    """(16, 16, 3) uint8, noisy, around 80 or 170."""
    noise = numpy_generator(0, "picture", label, *index).integers(-60, 60, (16, 16, 3))
    return (80 + 90 * label + noise).astype(np.uint8)


def make_run(run: Path, counts: dict[str, int] = COUNTS, synthetic: bool = True) -> Path:
    """Write data/ and synthetic/ of a run as the stages before would."""
    rows = []
    for number, (split, count) in enumerate(counts.items()):
        for index in range(count):
            label = index % 2
            name = f"{split}/{CLASSES[label]}/{index:03}.png"
            path = run / "data" / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture(label, number, index)).save(path)
            facts = {"class_name": CLASSES[label], "label": label, "split": split, "used": True}
            size = {"width": 16, "height": 16, "mode": "RGB", "sha256": sha256_file(path)}
            rows.append({"id": name, "path": name, **facts, **size})
    write_json_lines(run / "data" / "index.jsonl", rows)
    classes = [{"folder": name, "words": name, "label": label} for label, name in enumerate(CLASSES)]
    write_json(run / "data" / "classes.json", {"root": "data/images", "classes": classes})
    if synthetic:
        make_synthetic(run)
    return run


def make_synthetic(run: Path, finetuned: int = 8, pretrained: int = 4) -> None:
    """Write a finished synthetic set."""
    folder, rows = synthetic_folder(run), []
    for source, count in (("finetuned", finetuned), ("pretrained", pretrained)):
        for index in range(count):
            label = index % 2
            name = f"{CLASSES[label]}/{source}-{index:03}.png"
            digest = write_image(folder, name, picture(label, 9, len(source), index))
            facts = {"class_name": CLASSES[label], "label": CLASSES[label], "source": source, "sha256": digest}
            rows.append({"file_name": name, "id": Path(name).stem, **facts})
    write_json_lines(folder / "metadata.jsonl", rows)
