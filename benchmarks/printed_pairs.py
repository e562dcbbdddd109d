"""Captioned images of printed characters, as a folder that `mvc clip` reads, with class folders for zero-shot.

    python -m benchmarks.printed_pairs FOLDER [--train 2000] [--validation 200] [--test 500]

FOLDER/pairs/{train,validation,test} is an imagefolder with metadata.jsonl. A training image has three captions, of
which two leave attributes out; a validation or test image has one that says all attributes, and no other image of its
split has the same, so that every image has one right caption. FOLDER/classes/<word> has the test images by digit.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from mvc.storage import write_json_lines
from mvc.tiny.evaluate import HELD_OUT_SEED
from mvc.tiny.world import Character, caption, describe, draw_character, render

SEEDS = {"train": HELD_OUT_SEED + 1, "validation": HELD_OUT_SEED + 2, "test": HELD_OUT_SEED + 3}
"""Of the characters; none of them is in the embedded models' training."""


def characters(seed: int, count: int, unlike: bool) -> Iterator[tuple[int, Character]]:
    """So many characters with their numbers; `unlike` passes over those that read as an earlier one."""
    index, seen = 0, set[str]()
    while count:
        character = draw_character(seed, index)
        text = describe(character)
        if not (unlike and text in seen):
            seen.add(text)
            count -= 1
            yield index, character
        index += 1


def captions_of(character: Character, split: str, index: int) -> list[str]:
    """What is said of a character in a split."""
    if split != "train":
        return [describe(character)]
    return [describe(character), *(caption(character, SEEDS[split], 2 * index + number) for number in range(2))]


def write_split(folder: Path, split: str, count: int) -> None:
    """Write one split, and for the test split its class folders."""
    target, rows = folder / "pairs" / split, []
    target.mkdir(parents=True)
    for index, character in characters(SEEDS[split], count, unlike=split != "train"):
        picture, name = Image.fromarray(render(character)), f"{index:05d}.png"
        picture.save(target / name)
        rows.append({"file_name": name, "captions": captions_of(character, split, index)})
        if split == "test":
            own = folder / "classes" / character.word
            own.mkdir(parents=True, exist_ok=True)
            picture.save(own / name)
    write_json_lines(target / "metadata.jsonl", rows)


def main() -> None:
    """Write all splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for split, count in (("train", 2000), ("validation", 200), ("test", 500)):
        parser.add_argument(f"--{split}", type=int, default=count)
    arguments = parser.parse_args()
    for split in SEEDS:
        write_split(arguments.folder, split, getattr(arguments, split))
    print(f"written: {arguments.folder}")


if __name__ == "__main__":
    main()
