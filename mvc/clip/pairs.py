"""Images with their captions, for training a CLIP and for retrieval: an index in memory, images decoded when asked for.

Four forms are read from where they lie, and nothing is written beside them: Hugging Face's imagefolder, the JSON
lists of ALBEF and MixGen, parquet files of `datasets`, and webdataset shards. Each has a file of its own here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image

from mvc.errors import ConfigError, DataError
from mvc.images import decode_bytes
from mvc.storage import sha256_bytes, sha256_json
from mvc.walk import printable

from .caption_lists import read_lists
from .imagefolder import read_imagefolder
from .parquet import read_parquet
from .places import Place
from .shards import read_shards
from .sources import find_source, split_of


@dataclass(frozen=True)
class Pairs:
    """Images with one or more captions each; can be pickled, and copies in other processes are independent.

    Args:
        ids: name of each image, for provenance; no two are the same.
        captions: at least one text an image.
        places: where the bytes of each image lie.

    Raises:
        ValueError: the lists have different lengths, an image has no caption, or an id comes twice.
    """

    ids: list[str]
    captions: list[list[str]]
    places: list[Place]

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.captions) == len(self.places):
            raise ValueError(f"{len(self.ids)} ids, {len(self.captions)} captions and {len(self.places)} places")
        if not all(self.captions):
            raise ValueError(f"image {self.captions.index([])} has no caption")
        if len(set(self.ids)) < len(self.ids):
            raise ValueError(f"{len(self.ids) - len(set(self.ids))} ids come twice")

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """sha256 over ids, captions and what tells images apart without reading them.

        That is the size of each file or member in bytes, and of a parquet file the size of the row group's images.
        Other pixels in equally many bytes are not seen; `sha256` sees them.
        """
        return sha256_json([self.ids, self.captions, [place.identity for place in self.places]])

    def content(self, index: int) -> bytes:
        """The bytes of an image as it was stored.

        Raises:
            DataError: they are no longer there; names file, and member or row.
        """
        return self.places[index].read()

    def sha256(self, index: int) -> str:
        """Hexadecimal sha256 of the bytes of an image as it was stored."""
        return sha256_bytes(self.content(index))

    def image(self, index: int, background: str = "white") -> Image.Image:
        """Decode an image to 8-bit RGB, upright, by the rules of `mvc.images`.

        Args:
            index: number of the image.
            background: colour behind transparent pixels, as Pillow names colours.

        Raises:
            DataError: it cannot be read or decoded; names file, and member or row.
        """
        place = self.places[index]
        return decode_bytes(place.read(), place.where, background)

    def rows(self, rows: Sequence[int]) -> Pairs:
        """Some of the images with all their captions, in the order given."""
        return Pairs(
            [self.ids[row] for row in rows], [self.captions[row] for row in rows], [self.places[row] for row in rows]
        )


def read_pairs(
    path: str | Path,
    split: str,
    cache: Path | None = None,
    *,
    form: str | None = None,
    image_root: Path | None = None,
) -> Pairs:
    """Read the index of a split; no image is read yet.

    A split is known by its name or a usual other one ("val", "dev", "training", ...): of a folder, or as a word in the
    name of a list, parquet file or shard. Where nothing bears such a name, all is training data. Folders at and above
    `path` don't count, so that a folder "test" that is given by itself has the split train.

    Args:
        path: a folder; one .json, .parquet or .tar file; or a pattern such as "shards/train-{000..010}.tar".
        split: train, validation or test, or a usual other name of it.
        cache: folder where notes about tar archives are kept, so that they are read through once, and where parquet
            files with large row groups are unpacked. None keeps nothing.
        form: imagefolder, json, parquet or webdataset, for folders that hold several forms. None takes
            imagefolder if there are metadata files, else the only form that is there.
        image_root: of JSON lists, the folder that paths of images are relative to; None takes that of the list.

    Returns:
        The images in the order of the data. Captions are on one line, with single spaces.

    Raises:
        ConfigError: the split or form is none, or image_root is given without JSON lists.
        DataError: the data cannot be used; names file, line or row, and value.
        EnvironmentFault: the cache cannot be written.
    """
    wanted, source = split_of(split), find_source(path, form)
    if image_root is not None and source.form != "json":
        raise ConfigError(f"image_root is given, and the data are {source.form}", do="it is for JSON lists only")
    if source.form == "imagefolder":
        found = read_imagefolder(source, wanted)
    elif source.form == "json":
        found = read_lists(source, wanted, image_root)
    elif source.form == "parquet":
        found = read_parquet(source, wanted, cache)
    else:
        found = read_shards(source, wanted, cache)
    if not found:
        raise DataError(f"{printable(str(path))} has no images in {wanted}", do="add some")
    images = list(found.values())
    return Pairs(list(found), [image.captions for image in images], [image.place for image in images])
