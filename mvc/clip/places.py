"""Where the bytes of an image lie: a file, a part of a file such as a tar archive, or a row of a parquet file.

A place is small and holds no open file, so that an index of many images can be sent to the workers of a DataLoader.
Bytes are read when they are asked for.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as parquet
from pyarrow import ArrowException

from mvc.errors import DataError
from mvc.walk import printable

_CHANGED = "the files of the data set must stay as they are while they are in use"


class Place(Protocol):
    """Where one image lies."""

    @property
    def where(self) -> str:
        """What errors call it."""

    @property
    def identity(self) -> int | list[int]:
        """What can be told about the bytes without reading them, as JSON: their number, as a rule."""

    def read(self) -> bytes:
        """All bytes of the image as it was stored (JPEG, PNG and so on).

        Raises:
            DataError: they are no longer there; names the file.
        """


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image in a file of its own.

    Attributes:
        path: of the file.
        size: in bytes.
    """

    path: str
    size: int

    @property
    def where(self) -> str:
        return printable(self.path)

    @property
    def identity(self) -> int:
        return self.size

    def read(self) -> bytes:
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise DataError(f"{self.where} cannot be read", why=error.strerror or str(error), do=_CHANGED) from error


@dataclass(frozen=True, slots=True)
class FilePart:
    """An image inside a larger file, such as a tar archive that is not compressed.

    Attributes:
        path: of the larger file.
        where: what errors call the image.
        offset: of the image's first byte.
        size: in bytes.
        identity: see `Place`.
    """

    path: str
    where: str
    offset: int
    size: int
    identity: int | list[int]

    def read(self) -> bytes:
        try:
            with open(self.path, "rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise DataError(f"{self.where} cannot be read", why=error.strerror or str(error), do=_CHANGED) from error
        if len(content) < self.size:
            raise DataError(f"{self.where} cannot be read", why="the file became shorter", do=_CHANGED)
        return content


@dataclass(frozen=True, slots=True)
class ParquetCell:
    """An image inside a parquet file, in a column of structs with a field `bytes`.

    Attributes:
        path: of the file.
        column: name of the column.
        group: number of the row group.
        row: number of the row in its group.
        first: number of the group's first row in the file.
        weight: bytes of the group's images as stored; the file tells no single image's.
        stamp: when the file was last changed, in nanoseconds.
    """

    path: str
    column: str
    group: int
    row: int
    first: int
    weight: int
    stamp: int

    @property
    def where(self) -> str:
        return f"{printable(self.path)}, row {self.first + self.row} (from 0)"

    @property
    def identity(self) -> list[int]:
        return [self.weight, self.row]

    def read(self) -> bytes:
        try:
            value = _group(self.path, self.column, self.group, self.stamp).field("bytes")[self.row]
        except (OSError, ArrowException, KeyError, IndexError) as error:
            raise DataError(f"{self.where} cannot be read", why=str(error), do=_CHANGED) from error
        if not value.is_valid:
            raise DataError(f"{self.where} holds no image", why="bytes is null", do="store the images in the file")
        return bytes(value.as_py())


@lru_cache(maxsize=2)
def _group(path: str, column: str, group: int, stamp: int) -> Any:
    """The images of a row group; kept for the next ones, because parquet reads no less than a group."""
    # No threads of arrow's own: the workers of a DataLoader are already as many as there are processors.
    with parquet.ParquetFile(path) as file:
        table = file.read_row_group(group, columns=[f"{column}.bytes"], use_threads=False)
    return table.column(column).combine_chunks()


def image_file(path: str, where: str) -> ImageFile:
    """Look at an image file without opening it.

    Args:
        path: of the file; a link is followed.
        where: the row that names it, for the error.

    Raises:
        DataError: it is missing, or no file; names `where`.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"{where}: there is no image {printable(path)}", why=why, do="add it, or remove the row"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{where}: {printable(path)} is no file", do="name an image file, or remove the row")
    return ImageFile(path, status.st_size)
