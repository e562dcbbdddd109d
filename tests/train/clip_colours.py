"""A CLIP whose features are known by hand: images are their mean colour, texts the colours that they name."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn

from mvc.clip.models import Clip
from mvc.clip.pairs import Pairs, read_pairs

NAMES = ("red", "green", "blue")
COLOURS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "white": (255, 255, 255),
}
EXAMPLES: dict[str, list[str]] = {
    "red": ["red"],
    "green": ["blue", "green"],
    "blue": ["blue green"],
    "yellow": ["red green"],
    "magenta": ["red blue"],
    "white": ["red"],
}
"""Images by their colour, and captions, of which some are wrong."""


class Colours(nn.Module):
    """Features are red, green and blue."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def encode_image(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, 3)."""
        return images.mean(dim=(2, 3))

    def encode_text(self, counts: Tensor) -> Tensor:
        """(B, 3) to (B, 3)."""
        return counts.float()


def _counts(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[text.lower().split().count(name) for name in NAMES] for text in texts])


def colour_clip() -> Clip:
    """The CLIP, which takes images of 4 x 4 pixels as they are."""
    scaling = {"mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    config = {"model_cfg": {"embed_dim": 3}, "preprocess_cfg": scaling}
    return Clip(Colours(), _counts, 4, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "colours", config)


def write_colour(path: Path, colour: tuple[int, int, int]) -> None:
    """A PNG file of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4), colour).save(path)


def colour_pairs(folder: Path, split: str = "test", captions: dict[str, list[str]] = EXAMPLES) -> Pairs:
    """The images, in the order of their examples."""
    rows = []
    for number, (name, texts) in enumerate(captions.items()):
        write_colour(folder / split / f"{number}.png", COLOURS[name])
        rows.append(json.dumps({"file_name": f"{number}.png", "captions": texts}))
    (folder / split / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return read_pairs(folder, split)
