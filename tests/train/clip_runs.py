"""Printed characters with captions, a CLIP at toy width, trainings of it and experiments with it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor

from mvc.clip.models import Clip, load_clip
from mvc.clip.pairs import Pairs, read_pairs
from mvc.config_clip import ClipExperiment, TechniquesSection
from mvc.progress import Meter
from mvc.tiny.world import describe, draw_character, render
from mvc.train.clip_evaluation import measured
from mvc.train.clip_loop import ClipFit, fit_clip
from mvc.train.clip_techniques import Techniques
from mvc.train.recipe import Recipe

SIDE = 32
"""Pixels of an image's side, of the characters and of the CLIP."""
SIZES = {"train": 12, "validation": 4, "test": 6}


def toy_config() -> dict[str, Any]:
    """Some 10,000 parameters besides the embedding of 49,408 tokens."""
    return {
        "embed_dim": 16,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 16, "head_width": 16, "patch_size": 8},
        "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 8, "heads": 1, "layers": 1},
    }


def write_model(folder: Path) -> Path:
    """The configuration as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "toy.json"
    path.write_text(json.dumps(toy_config()))
    return path


def write_split(folder: Path, count: int, first: int) -> None:
    """Characters `first` and following as PNG files, with one caption each and a second one of every third."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number in range(first, first + count):
        drawn = draw_character(0, number)
        Image.fromarray(render(drawn)).save(folder / f"{number:03d}.png")
        more = [f"{drawn.colour} {drawn.word}"] if number % 3 == 0 else []
        rows.append(json.dumps({"file_name": f"{number:03d}.png", "captions": [describe(drawn), *more]}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n")


def write_pairs(root: Path, sizes: dict[str, int] = SIZES) -> Path:
    """A folder of splits, of which no two share a character."""
    first = 0
    for split, count in sizes.items():
        write_split(root / split, count, first)
        first += count
    return root


def toy_pairs(folder: Path, count: int = 12) -> Pairs:
    """So many training pairs."""
    write_split(folder / "train", count, 0)
    return read_pairs(folder, "train")


def toy_clip(folder: Path, seed: int = 0) -> Clip:
    """A CLIP with random weights."""
    return load_clip(write_model(folder), seed=seed)


def techniques(arm: str = "none", batch_size: int = 6, seed: int = 0, **settings: Any) -> Techniques:
    """An arm."""
    return Techniques(arm, TechniquesSection(**settings), seed, batch_size)


def recipe(**changes: Any) -> Recipe:
    """Eight steps of six pairs, with an evaluation every three and a checkpoint every four."""
    defaults: dict[str, Any] = {"max_train_steps": 8, "train_batch_size": 6, "learning_rate": 1e-2}
    more = {"lr_scheduler": "cosine", "lr_warmup_steps": 2, "adam_weight_decay": 0.1, "adam_epsilon": 1e-6}
    return Recipe(**{**defaults, **more, "checkpointing_steps": 4, "validation_steps": 3, **changes})


def train(
    folder: Path,
    pairs: Pairs,
    arm: str = "none",
    *,
    evaluate: Callable[[Clip], float] | None = None,
    keep_best: bool = False,
    options: dict[str, Any] | None = None,
    settings: dict[str, Any] | None = None,
    seed: int = 0,
    shown: Meter | None = None,
    **changes: Any,
) -> tuple[Clip, ClipFit]:
    """Train a toy CLIP in a folder, from its newest checkpoint if there is one."""
    how = recipe(**changes)
    clip = toy_clip(folder, seed)
    more = {"crop_scale": 0.9, "micro_batch_size": None, "bf16": False, "mining_steps": 3, "negatives": 2}
    fitted = fit_clip(
        clip,
        pairs,
        techniques(arm, how.train_batch_size, seed, **(settings or {})),
        how,
        folder / "checkpoints",
        {"arm": arm, "train.learning_rate": how.learning_rate},
        Accelerator(cpu=True),
        **{**more, "num_workers": 0, **(options or {})},
        evaluate=evaluate,
        keep_best=keep_best,
        shown=shown or Meter("test", how.max_train_steps, "steps"),
    )
    return clip, fitted


def rsum_of(pairs: Pairs) -> Callable[[Clip], float]:
    """The evaluation of the stage."""
    return lambda clip: float(measured(clip, pairs, 64)["rsum"])


def weights(clip: Clip) -> dict[str, Tensor]:
    """Copies of all weights."""
    return {name: value.clone() for name, value in clip.network.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """Whether all tensors are equal to the bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def experiment(data: Path, run: Path, model: Path, /, **sections: dict[str, Any]) -> ClipExperiment:
    """A short comparison of two arms with two seeds; sections change what is named in them."""
    content: dict[str, Any] = {
        "run": {"dir": str(run), "device": "cpu"},
        "data": {"path": str(data)},
        "model": {"name": str(model)},
        "train": {
            "arms": ["none", "mixgen"],
            "seeds": 2,
            "max_train_steps": 6,
            "train_batch_size": 6,
            "learning_rate": 1e-2,
            "lr_warmup_steps": 2,
            "checkpointing_steps": 2,
            "evaluation_steps": 3,
        },
    }
    for name, values in sections.items():
        content[name] = {**content.get(name, {}), **values}
    return ClipExperiment.model_validate(content)
