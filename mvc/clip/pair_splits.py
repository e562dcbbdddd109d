"""A validation part for captioned images that have none, and images or captions that stand in two splits."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from mvc.errors import DataError
from mvc.progress import meter
from mvc.splits import seeded_groups
from mvc.stopping import flag

from .pairs import Pairs


def image_digests(pairs: Pairs) -> list[str]:
    """Hexadecimal sha256 of the stored bytes of every image; reads them all.

    Raises:
        DataError: an image cannot be read.
        Stopped: a signal came.
    """
    digests = []
    with meter("reading images", len(pairs), "images") as shown:
        for index in range(len(pairs)):
            digests.append(pairs.sha256(index))
            shown.advance()
            flag.check("nothing needs saving")
    return digests


def cut_validation(pairs: Pairs, share: float, seed: int) -> tuple[Pairs, Pairs]:
    """Cut a validation part off, image by image with all captions.

    Images are ordered by a hash of (seed, "pairs split", their bytes), so that copies of an image stay together, a new
    image moves no other one, and neither names nor form of the data matter. The first ones are for validation.

    Args:
        pairs: training data.
        share: of the images that go to validation, in (0, 1), rounded; at least one, and one stays at least. Copies
            that would make it more are passed over.
        seed: data seed; randomness: (seed, "pairs split <sha256>"), one draw an image.

    Returns:
        what remains for training, and the validation part; both in the order of `pairs`.

    Raises:
        ValueError: the share is not in (0, 1).
        DataError: there are not two different images.
    """
    if not 0 < share < 1:
        raise ValueError(f"share is {share}, and must be between 0 and 1")
    digests = dict(zip(pairs.ids, image_digests(pairs), strict=True))
    groups = seeded_groups(digests, seed, "pairs split")
    if len(groups) < 2:
        raise DataError(
            "no validation part can be cut off",
            why=f"there are {len(pairs)} images, and {len(groups)} different ones",
            do="add images",
        )
    wanted = min(max(1, round(share * len(pairs))), len(pairs) - 1)
    chosen: set[str] = set()
    for group in groups:
        if len(chosen) + len(group) <= wanted or not chosen:
            chosen.update(group)
    rows = range(len(pairs))
    return (
        pairs.rows([row for row in rows if pairs.ids[row] not in chosen]),
        pairs.rows([row for row in rows if pairs.ids[row] in chosen]),
    )


@dataclass(frozen=True)
class Leak:
    """An image or a caption that stands in several splits.

    Attributes:
        kind: what it is.
        value: the image's sha256, or the caption as it first stands.
        places: (split, id of the image) wherever it stands, in the order of the splits.
    """

    kind: Literal["image", "caption"]
    value: str
    places: tuple[tuple[str, str], ...]


def find_leaks(splits: Mapping[str, Pairs]) -> list[Leak]:
    """Find what stands in several splits: images with equal bytes, and captions that are equal but for case.

    Reads all images. A photo that was stored anew, at another size or quality, has other bytes and is not found. A
    caption such as "a dog runs" can rightly belong to two images; an image in training and test is always a fault.

    Args:
        splits: pairs by name of the split.

    Returns:
        Images first; each kind in the order in which they first stand.

    Raises:
        DataError: an image cannot be read.
    """
    images: dict[str, list[tuple[str, str]]] = defaultdict(list)
    captions: dict[str, list[tuple[str, str]]] = defaultdict(list)
    first: dict[str, str] = {}
    for name, pairs in splits.items():
        for place, digest in zip(pairs.ids, image_digests(pairs), strict=True):
            images[digest].append((name, place))
        for place, texts in zip(pairs.ids, pairs.captions, strict=True):
            for text in texts:
                first.setdefault(text.casefold(), text)
                captions[text.casefold()].append((name, place))
    return [
        *(Leak("image", value, tuple(places)) for value, places in images.items() if _several(places)),
        *(Leak("caption", first[value], tuple(places)) for value, places in captions.items() if _several(places)),
    ]


def _several(places: list[tuple[str, str]]) -> bool:
    return len({split for split, _ in places}) > 1
