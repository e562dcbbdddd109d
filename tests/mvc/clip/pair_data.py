"""The same captioned images written in each of the four forms that are read."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import pyarrow
from pyarrow import parquet

from tests.mvc.pictures import picture


class Example(NamedTuple):
    """An image: file name, bytes as stored, captions."""

    name: str
    content: bytes
    captions: list[str]


def examples(count: int, first: int = 0) -> list[Example]:
    """Different small PNG images with one to three captions each."""
    made = []
    for number in range(first, first + count):
        stored = BytesIO()
        picture(number, 16 + number).save(stored, "PNG")
        captions = [f"picture {number}, said {time} times" for time in range(1, 2 + number % 3)]
        made.append(Example(f"{number:03d}.png", stored.getvalue(), captions))
    return made


def write_images(folder: Path, given: Sequence[Example]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for example in given:
        (folder / example.name).write_bytes(example.content)


def write_imagefolder(root: Path, split: str, given: Sequence[Example]) -> Path:
    write_images(root / split, given)
    rows = [json.dumps({"file_name": one.name, "captions": one.captions}) for one in given]
    (root / split / "metadata.jsonl").write_text("\n".join(rows) + "\n")
    return root


def write_list(root: Path, split: str, given: Sequence[Example]) -> Path:
    """Of training an entry a caption, of others an entry an image, as ALBEF has it."""
    write_images(root / split, given)
    entries = [
        {"image": f"{split}/{one.name}", "caption": caption, "image_id": number}
        for number, one in enumerate(given)
        for caption in (one.captions if split == "train" else [one.captions])
    ]
    (root / f"toy_{split}.json").write_text(json.dumps(entries))
    return root


def write_parquet(root: Path, split: str, given: Sequence[Example]) -> Path:
    """In row groups of two images."""
    (root / "data").mkdir(parents=True, exist_ok=True)
    images = [{"bytes": one.content, "path": one.name} for one in given]
    table = pyarrow.table({"image": images, "captions": [one.captions for one in given]})
    parquet.write_table(table, root / "data" / f"{split}-00000-of-00001.parquet", row_group_size=2)
    return root


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, BytesIO(content))
    return path


def write_shards(root: Path, split: str, given: Sequence[Example]) -> Path:
    """Two shards, if there are two images: the first with .txt files, the second with .json files."""
    half = (len(given) + 1) // 2
    for shard, part in enumerate(one for one in (given[:half], given[half:]) if one):
        members = list[tuple[str, bytes]]()
        for one in part:
            stem = one.name.rpartition(".")[0]
            text = "\n".join(one.captions) + "\n" if shard == 0 else json.dumps({"captions": one.captions})
            members += [(one.name, one.content), (f"{stem}.{'json' if shard else 'txt'}", text.encode())]
        write_tar(root / f"{split}-{shard:06d}.tar", members)
    return root


WRITERS = {"imagefolder": write_imagefolder, "json": write_list, "parquet": write_parquet, "webdataset": write_shards}
