"""A run as the stages before generation leave it, with models of random weights, for the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvc import models
from mvc.config import Experiment
from mvc.randomness import numpy_generator
from mvc.storage import sha256_file, write_json, write_json_lines
from tests.tiny_parts import IMAGE_SIZE, tiny_unet, write_pipeline

WORDS = {"cat": ["red", "green", "big", "small"], "dog": ["wet", "old", "thin"]}
"""One word a training image, for its caption."""
SETTINGS: dict[str, Any] = {
    "per_real": 2.0,
    "num_inference_steps": 2,
    "guidance": "dual",
    "guidance_scale": 3.0,
    "image_guidance_scale": 1.5,
    "batch_size": 3,
    "preview": 2,
}
BOTH = {"finetuned": 0.6, "pretrained": 0.4}


def real_picture(label: int, *number: int) -> np.ndarray[Any, Any]:
    """(40, 36, 3) uint8 noise."""
    return numpy_generator(0, "picture", label, *number).integers(0, 256, (40, 36, 3), dtype=np.uint8)


def write_run(
    run: Path, scaled: bool = False, words: Mapping[str, Sequence[str]] = WORDS, held_out: int = 0, tuned: bool = True
) -> Path:
    """Write a run.

    Args:
        run: where.
        scaled: condition latents of the fine-tuned model are scaled.
        words: by class folder, one a training image.
        held_out: validation and test images of each class, so many of each.
        tuned: with a fine-tuned model.
    """
    base = write_pipeline(run / "base")
    index, captions = [], []
    for label, (name, own) in enumerate(sorted(words.items())):
        splits = ["train"] * len(own) + ["validation"] * held_out + ["test"] * held_out
        for number, split in enumerate(splits):
            path = run / "pictures" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(real_picture(label, number)).save(path)
            record = {"id": f"{name}/{number}.png", "path": f"{name}/{number}.png", "class_name": name, "label": label}
            facts = {"split": split, "sha256": sha256_file(path), "width": 36, "height": 40, "mode": "RGB"}
            index.append({**record, **facts, "used": True})
        for number, word in enumerate(own):
            text = f"This is an image of {name}. a {word} {name}."
            captions.append({"id": f"{name}/{number}.png", "class_name": name, "caption": text, "captioner": "file"})
    classes = [{"folder": name, "words": name, "label": label} for label, name in enumerate(sorted(words))]
    write_json(run / "data" / "classes.json", {"root": "pictures", "classes": classes})
    write_json_lines(run / "data" / "index.jsonl", index)
    write_json_lines(run / "captions.jsonl", captions)
    if tuned:
        models.save_model(run / "model", tiny_unet(1, in_channels=8), base, None, {"image_latents_scaled": scaled})
    return run


def experiment(run: Path, looks: Mapping[str, Any] | None = None, **changes: Any) -> Experiment:
    """The experiment of a run.

    Args:
        run: from `write_run`.
        looks: section filter.
        changes: of section generate.
    """
    return Experiment.model_validate(
        {
            "run": {"device": "cpu", "seed": 5},
            "data": {"image_size": IMAGE_SIZE},
            "mixing": {"coarse": 2, "fine": 3},
            "model": {"base": str(run / "base")},
            "generate": {**SETTINGS, **changes},
            # Random pictures show no class.
            "filter": {"classifier": False, **(looks or {})},
        }
    )


def contents(run: Path) -> dict[str, bytes]:
    """What every file of the synthetic set and of the previews holds, by path."""
    files = (path for place in ("synthetic", "preview") for path in sorted((run / place).rglob("*")))
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files if path.is_file()}


def picture(path: Path) -> np.ndarray[Any, Any]:
    """(H, W, 3) uint8."""
    with Image.open(path) as image:
        return np.array(image)


def assert_same_picture(path: Path, expected: np.ndarray[Any, Any]) -> None:
    """At most one of 256 levels apart, for the rounding of single against batched convolutions."""
    difference = np.abs(picture(path).astype(int) - np.rint(expected * 255).astype(int))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.01
