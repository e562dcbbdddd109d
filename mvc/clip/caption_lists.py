"""Captioned images as JSON lists name them, the form of ALBEF and MixGen: [{"image": ..., "caption": ...}, ...].

A caption is a text, as in their training lists with one entry a caption, or a list of texts, as in their test lists
with one entry an image; entries of the same image are joined. An `image_id`, where there is one, has to name one image
alone. Paths of images are relative to the folder of the list, or to another one.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from mvc.errors import DataError
from mvc.walk import printable

from .captioned import Captioned, captions_of, inner_path
from .places import image_file
from .sources import Source, files_of

_EXAMPLE = 'write [{"image": "train/1.jpg", "caption": "a red cat"}, ...]'


def read_lists(source: Source, split: str, image_root: Path | None) -> dict[str, Captioned]:
    """Read the list of a split.

    The split is a word of the file's name ("coco_train.json").

    Args:
        source: the lists.
        split: train, validation or test.
        image_root: the folder of the images; None takes that of the list.

    Returns:
        image and captions by path as the list names it, in the order of the list.

    Raises:
        DataError: the split is missing or has several lists, a list is no such JSON, an entry cannot be used or its
            image is missing; names file and entry.
    """
    lists = files_of(source, split)
    if len(lists) > 1:
        names = ", ".join(printable(path.name) for path in lists)
        raise DataError(
            f"{printable(str(source.root))} has several lists of {split}: {names}", do="give the file itself"
        )
    path = lists[0]
    name, folder = printable(str(path)), os.fspath(path.parent if image_root is None else image_root)
    images: dict[str, Captioned] = {}
    image_of: dict[str, str] = {}
    id_of: dict[str, str] = {}
    for number, entry in enumerate(_entries(path)):
        where = f"{name}, entry {number} (from 0)"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is no object", why=f"it is {entry!r:.80}", do=_EXAMPLE)
        image = inner_path(entry.get("image"), "image", where)
        if entry.get("image_id") is not None:
            _note_id(str(entry["image_id"]), image, image_of, id_of, where)
        captions = captions_of(entry, where)
        if image in images:
            images[image].captions.extend(captions)
        else:
            images[image] = Captioned(image_file(os.path.join(folder, image), where), captions)
    return images


def _note_id(name: str, image: str, image_of: dict[str, str], id_of: dict[str, str], where: str) -> None:
    other = image_of.setdefault(name, image)
    if other != image:
        raise DataError(
            f"{where}: image_id {printable(name)} is {printable(image)}, and {printable(other)} before",
            do="give every image an image_id of its own",
        )
    before = id_of.setdefault(image, name)
    if before != name:
        raise DataError(
            f"{where}: {printable(image)} has the image_id {printable(name)}, and {printable(before)} before",
            do="give every image one image_id",
        )


def _entries(path: Path) -> list[Any]:
    name = printable(str(path))
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise DataError(f"{name} cannot be read", why=error.strerror or str(error), do="check the path") from error
    except (ValueError, RecursionError) as error:
        # UnicodeDecodeError is a ValueError too, and says which byte.
        raise DataError(f"{name} is not JSON", why=str(error), do=_EXAMPLE) from error
    if not isinstance(entries, list):
        raise DataError(f"{name} is no list", why=f"its JSON is {type(entries).__name__}", do=_EXAMPLE)
    return entries
