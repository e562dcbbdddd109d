"""What a trained CLIP is worth: retrieval among pairs, and zero-shot classification of class folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mvc.class_names import class_words
from mvc.clip.configurations import find_clip
from mvc.clip.features import image_features, text_features
from mvc.clip.models import Clip, load_clip
from mvc.clip.pairs import Pairs, read_pairs
from mvc.clip.retrieval import retrieval
from mvc.clip.zero_shot import TEMPLATES, class_weights, zero_shot_logits
from mvc.devices import pick_device
from mvc.errors import ConfigError, DataError
from mvc.images import decode
from mvc.layout import find_layout
from mvc.storage import sha256_json

KS = (1, 5, 10)
"""Of R@K (MixGen, Sec. 3.2)."""


def measured(clip: Clip, pairs: Pairs, batch_size: int) -> dict[str, Any]:
    """Retrieval among pairs, each image with all its captions.

    Args:
        clip: used in evaluation mode.
        pairs: at least two images.
        batch_size: images or captions at once.

    Returns:
        JSON values: images, captions, text_retrieval and image_retrieval (per cent by K, of those K that are no larger
        than the number of images) and rsum, their sum.

    Raises:
        DataError: an image cannot be decoded.
        NumericError: features are not finite.
        Stopped: a signal asked for a stop.
    """
    images = image_features(clip, (pairs.image(row) for row in range(len(pairs))), batch_size)
    texts = text_features(clip, [text for own in pairs.captions for text in own], batch_size)
    owner = [row for row, own in enumerate(pairs.captions) for _ in own]
    found = retrieval(images, texts, owner, [k for k in KS if k <= len(pairs)])
    return {
        "images": len(pairs),
        "captions": len(owner),
        "text_retrieval": {str(k): value for k, value in found.text_retrieval.items()},
        "image_retrieval": {str(k): value for k, value in found.image_retrieval.items()},
        "rsum": found.rsum,
    }


@dataclass(frozen=True)
class ClassFolders:
    """Images to classify.

    Attributes:
        words: of each class.
        images: file and class of each.
    """

    words: list[str]
    images: list[tuple[Path, int]]

    @cached_property
    def digest(self) -> str:
        """sha256 over words, and names, sizes and modification times of the images."""
        facts = [(str(path), label, path.stat()) for path, label in self.images]
        return sha256_json([self.words, [[name, label, one.st_size, one.st_mtime_ns] for name, label, one in facts]])


def class_folders(folder: Path) -> ClassFolders:
    """The images of a folder of class folders: those of its test split, or all where it has none.

    Raises:
        DataError: it is no such folder, or its test split is empty.
        ConfigError: two classes have the same words.
    """
    layout = find_layout(folder)
    wanted = [image for image in layout.images if image.split == "test" or "test" not in layout.given]
    if not wanted:
        raise DataError(f"{folder} has no images to classify", do="add some to test/")
    number = {name: label for label, name in enumerate(layout.classes)}
    images = [(layout.root / image.path, number[image.class_name]) for image in wanted]
    try:
        return ClassFolders(class_words(layout.classes, {}), images)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error.what}", error.why, do="rename the folders") from None


def zero_shot_accuracy(clip: Clip, folders: ClassFolders, templates: Sequence[str], batch_size: int) -> float:
    """Share of the images whose class has the most similar prompts.

    Raises:
        DataError: an image cannot be decoded.
        ConfigError: a template cannot be used.
        NumericError: features are not finite.
        Stopped: a signal asked for a stop.
    """
    weights = class_weights(clip, folders.words, templates, batch_size)
    features = image_features(clip, (decode(path) for path, _ in folders.images), batch_size)
    said = zero_shot_logits(features, weights, 1.0).argmax(dim=1)
    return (said == torch.tensor([label for _, label in folders.images])).double().mean().item()


def print_evaluation(
    model: str,
    weights: Path | None,
    data: str | None,
    split: str,
    classes: Path | None,
    templates: Sequence[str] | None,
    batch_size: int,
    device: str,
) -> None:
    """Measure a CLIP and print what was found.

    Args:
        model, weights: as `load_clip`, but there have to be weights: what is not trained is not worth measuring.
        data, split: captioned images; None measures no retrieval.
        classes, templates: class folders, and their prompts (`zero_shot.TEMPLATES` when None); None classifies none.
        batch_size: images or captions at once.
        device: as run.device.

    Raises:
        ConfigError: neither is asked for, or an argument cannot be used.
        DataError, EnvironmentFault, NumericError: as `measured` and `load_clip`.
    """
    if data is None and classes is None:
        raise ConfigError("nothing says what to measure", do="give --data PAIRS, --classes FOLDER, or both")
    folders = None if classes is None else class_folders(classes)
    pairs = None if data is None else read_pairs(data, split)
    if weights is None and find_clip(model).weights is None:
        raise ConfigError(
            f"{model} is an architecture without weights",
            why="random ones find nothing",
            do="add --weights FILE, or give a trained model's folder, such as runs/NAME/models/none-seed0",
        )
    clip = load_clip(model, weights, device=pick_device(device))
    if pairs is not None:
        found = measured(clip, pairs, batch_size)
        print(f"{found['images']} images, {found['captions']} captions of {split}")
        for name in ("text_retrieval", "image_retrieval"):
            recalls = ", ".join(f"R@{k} {value:.1f}" for k, value in found[name].items())
            print(f"{name.replace('_', ' ')}: {recalls}")
        print(f"RSUM: {found['rsum']:.1f}")
    if folders is not None:
        accuracy = zero_shot_accuracy(clip, folders, templates or TEMPLATES, batch_size)
        count = len(folders.images)
        print(f"zero-shot: {100 * accuracy:.1f} per cent of {count} images, {len(folders.words)} classes")
