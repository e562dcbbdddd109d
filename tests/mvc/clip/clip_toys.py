"""CLIPs at toy width, of open_clip's own parts, with images and texts for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mvc.clip.models import Clip, load_clip
from mvc.randomness import generator, numpy_generator

SIDE, LENGTH, WIDTH = 32, 12, 16
"""Pixels of an image's side, tokens of a text, and numbers of a feature."""
WORDS = ("red", "green", "blue", "dog", "cat", "house", "tree", "car", "seven", "water")


def vit_config(**vision: Any) -> dict[str, Any]:
    """A vision transformer of one layer and a text transformer of one layer."""
    return {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 32, "head_width": 16, "patch_size": 8, **vision},
        "text_cfg": {"context_length": LENGTH, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }


def resnet_config() -> dict[str, Any]:
    """CLIP's own ResNet, of BatchNorm and attention pooling, at its least."""
    return {**vit_config(), "vision_cfg": {"image_size": SIDE, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}}


def timm_config(**vision: Any) -> dict[str, Any]:
    """A network of timm as the image encoder, with the text encoder as a part of its own."""
    named = {"timm_model_name": "test_vit", "timm_model_pretrained": True, "timm_pool": "", "image_size": 160, **vision}
    return {**vit_config(), "vision_cfg": named, "custom_text": True}


def json_file(folder: Path, config: dict[str, Any], name: str = "toy.json") -> Path:
    """The configuration as a file, in the form of open_clip's model_configs."""
    path = folder / name
    path.write_text(json.dumps(config))
    return path


def toy_clip(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> Clip:
    """A CLIP with random weights."""
    return load_clip(json_file(folder, vit_config() if config is None else config), seed=seed)


def pictures(count: int, side: int = SIDE, seed: int = 0) -> Tensor:
    """(count, 3, side, side) float32, standard normal."""
    return torch.randn(count, 3, side, side, generator=generator(seed, "toy pictures"))


def photo(height: int, width: int, number: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 of all values."""
    return numpy_generator(number, "toy photo").integers(0, 256, (height, width, 3)).astype(np.uint8)


def texts(count: int) -> list[str]:
    """Different texts of two to four words."""
    return [f"a {WORDS[i % 10]} {WORDS[(i // 10 + 3 * i) % 10]} {i}" for i in range(count)]
