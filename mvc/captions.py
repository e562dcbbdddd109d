"""One caption an image: captioners, and the caption file that a user may edit.

A full caption is the prefix that names the class, then what a captioner says about the image. The prefix comes
first, so a text encoder that cuts long texts can never lose the class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mvc.errors import DataError
from mvc.pretrained import find_model, load_network, load_whole
from mvc.storage import read_json_lines

Captioner = Callable[[Sequence[Image.Image]], list[str]]
"""Describes a batch of RGB images: one text each, without prefix."""

KEYS = ("id", "class_name", "caption", "captioner")
METADATA = "metadata.jsonl"
_WHAT = "captioning model"


def full_caption(prefix: str, words: str, description: str) -> str:
    """Join the prefix and a description: "This is an image of zero. a thin digit." (Section 3.2).

    Args:
        prefix: text with {class_name} in it.
        words: the words for the class.
        description: what a captioner or user said; may be empty, and may already begin with the prefix.
    """
    start = clean(prefix.replace("{class_name}", words))
    text = clean(description)
    # A description of dots alone, such as an undecided captioner's, says nothing.
    text = text[len(start) :].strip() if text.startswith(start) else text
    bare = text.rstrip(" .")
    if not bare:
        return start
    return f"{start} {bare}" + ("" if bare[-1] in "!?" else ".")


def clean(text: str) -> str:
    """One line with single spaces."""
    return re.sub(r"\s+", " ", text).strip()


def load_captioner(
    model: str | Path, revision: str | None, device: torch.device, max_new_tokens: int, num_beams: int
) -> Captioner:
    """Load an image-to-text model of transformers, such as BLIP or BLIP-2.

    Decoding is greedy or a beam search, never sampled: the same image gives the same text.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit on the hub.
        device: where to compute, in float32.
        max_new_tokens: longest description.
        num_beams: 1 is greedy.

    Raises:
        EnvironmentFault: the model is missing, unreadable, has no safetensors, or is of another kind.
    """
    processor, network = load_image_to_text(model, revision, device, "captions.model")

    def describe(images: Sequence[Image.Image]) -> list[str]:
        inputs = processor(images=list(images), return_tensors="pt").to(device)
        with torch.no_grad():
            tokens = network.generate(**inputs, max_new_tokens=max_new_tokens, num_beams=num_beams, do_sample=False)
        return [clean(text) for text in processor.batch_decode(tokens, skip_special_tokens=True)]

    return describe


def load_image_to_text(model: str | Path, revision: str | None, device: torch.device, key: str) -> tuple[Any, Any]:
    """Processor and network of an image-to-text model of transformers, the network in float32 on a device.

    Args:
        model, revision, device: as `load_captioner`.
        key: the key that names the model, for the errors.

    Raises:
        EnvironmentFault: the model is missing, unreadable, has no safetensors, or is of another kind.
    """
    folder = find_model(model, revision, _WHAT, key)
    processor = load_whole(AutoProcessor.from_pretrained, folder, _WHAT, key)
    return processor, load_network(AutoModelForImageTextToText, folder, device, _WHAT, key)


def metadata_descriptions(root: Path) -> dict[str, str]:
    """Captions that come with the data, in Hugging Face's imagefolder form.

    Reads metadata.jsonl in the data folder and in its train folder: rows of "file_name", relative to the file's
    folder, with "text", "caption" or "captions" (of a list the first one). Rows without any are passed over.

    Returns:
        description by image path relative to `root`.

    Raises:
        DataError: a row cannot be used; names file and line.
    """
    found: dict[str, str] = {}
    for folder in ("", "train"):
        path = root / folder / METADATA
        if not path.is_file():
            continue
        for number, row in numbered_rows(path):
            text = next((row[key] for key in ("text", "caption", "captions") if row.get(key)), None)
            text = text[0] if isinstance(text, list) else text
            name = row.get("file_name")
            if not isinstance(name, str) or not isinstance(text, str | None):
                raise DataError(
                    f"{path}, line {number} cannot be used",
                    why="file_name and the caption must be text",
                    do='write rows like {"file_name": "cat/1.png", "text": "a red cat"}',
                )
            if text is not None:
                found[(PurePosixPath(folder) / name.replace("\\", "/")).as_posix()] = text
    return found


def numbered_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """The rows of a JSON Lines file with their line numbers; blank lines count as lines."""
    rows = read_json_lines(path)
    numbers = [number for number, line in enumerate(path.read_bytes().split(b"\n"), 1) if line.strip()]
    return list(zip(numbers, rows, strict=True))


def read_caption_rows(path: Path, class_names: Mapping[str, str]) -> dict[str, dict[str, str]]:
    """Read and check a caption file, which may have been edited by hand.

    Args:
        path: JSON Lines with "id" and "caption", and "class_name" and "captioner" if wished.
        class_names: class folder by id of every image that may have a caption.

    Returns:
        rows with all four keys by id, in the file's order.

    Raises:
        DataError: a key or value is wrong, an id is unknown or comes twice, a caption is empty; names line and id.
    """
    rows: dict[str, dict[str, str]] = {}
    for number, row in numbered_rows(path):
        name = row.get("id")
        wrong = _what_is_wrong(row, rows, class_names)
        if wrong:
            raise DataError(f"{path}, line {number}, id {name!r}: {wrong[0]}", do=wrong[1])
        rows[str(name)] = {
            "id": str(name),
            "class_name": class_names[str(name)],
            "caption": clean(row["caption"]),
            "captioner": row.get("captioner", "hand"),
        }
    return rows


def _what_is_wrong(
    row: dict[str, Any], before: Mapping[str, object], class_names: Mapping[str, str]
) -> tuple[str, str] | None:
    """What is wrong with a row, and what to do about it."""
    unknown, missing = [key for key in row if key not in KEYS], [key for key in ("id", "caption") if key not in row]
    if unknown or missing:
        what = f"unknown key {', '.join(unknown)}" if unknown else f"key {', '.join(missing)} is missing"
        return what, f"use the keys {', '.join(KEYS)}"
    if not all(isinstance(value, str) for value in row.values()):
        return "a value is not text", "put every value in quotes"
    if row["id"] in before:
        return "comes twice", "keep one row an image"
    if row["id"] not in class_names:
        return "is no training image of this run", "remove the row, or delete the file to caption afresh"
    if row.get("class_name", class_names[row["id"]]) != class_names[row["id"]]:
        return f"class_name is {row['class_name']!r}, the image is in {class_names[row['id']]!r}", "correct it"
    if not clean(row["caption"]):
        return "the caption is empty", "write one, or remove the row to have the image captioned again"
    return None


def read_captions(path: Path, class_names: Mapping[str, str]) -> dict[str, str]:
    """The full caption of every training image, by id, for the stages after captioning.

    Args:
        path: run/captions.jsonl.
        class_names: class folder by id of the training images.

    Raises:
        DataError: the file is missing or wrong, or an image has no caption; names it.
    """
    rows = read_caption_rows(path, class_names)
    missing = [name for name in class_names if name not in rows]
    if missing:
        raise DataError(
            f"{path} has no caption for {len(missing)} of {len(class_names)} images, such as {missing[0]}",
            do="add their rows, or delete the file and run again to caption afresh",
        )
    return {name: rows[name]["caption"] for name in sorted(rows)}
