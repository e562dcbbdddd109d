"""Made-up rows of synthetic images, and pictures for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from mvc.synthetic import Candidate, Recipe


def recipe(class_name: str, index: int, source: str = "finetuned", scale: float = 2.0, attempt: int = 1) -> Recipe:
    """A recipe as generation writes it."""
    tuned = source == "finetuned"
    name = f"{source}-{index:05d}" + (f"-{attempt}" if attempt > 1 else "")
    return Recipe(
        file_name=f"{class_name}/{name}.png",
        label=class_name,
        id=name,
        source=source,
        class_name=class_name,
        source_image=f"train/{class_name}/1.png" if tuned else None,
        caption_base=f"train/{class_name}/0.png",
        caption_partners=[f"train/{class_name}/1.png"] if tuned else [],
        plan={"base": 0, "coarse": [[1, 2, 9]], "fine": []} if tuned else None,
        instruction=None,
        text=None,
        branch=None,
        imported_file=None,
        seed=0,
        index=index,
        attempt=attempt,
        guidance="paper",
        guidance_scale=scale,
        image_guidance_scale=None,
        guidance_interval=[0.0, 1.0],
        num_inference_steps=4,
        scheduler="ddim",
        eta=0.0,
        strength=None,
        mixed_precision="no",
        image_size=8,
        model="abc",
    )


def candidate(class_name: str, index: int, source: str = "finetuned", attempt: int = 1) -> Candidate:
    """A row without a file."""
    made = recipe(class_name, index, source, attempt=attempt)
    return Candidate(**made, sha256=None, batch_size=4, batch_place=index % 4, in_float32=False)


def pixels_of(row: Recipe | Candidate) -> np.ndarray[Any, Any]:
    """(8, 8, 3) uint8, another one for each class, index and attempt."""
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) + row["index"] % 100
    return np.stack([grey, grey + row["attempt"], grey + len(row["class_name"])], axis=-1)
