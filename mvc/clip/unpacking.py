"""The images of a parquet file with large row groups, unpacked into one plain file where each can be read by itself.

Parquet reads no less than a row group, and `datasets` writes groups of 100 MB: images in random order would each cost
reading a thousand. Such files are the one case in which images are copied, once, into the user's cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from pathlib import Path

import pyarrow
from pyarrow import parquet

from mvc.errors import DataError
from mvc.progress import meter
from mvc.stopping import flag
from mvc.storage import publish_folder, sha256_json, write_json
from mvc.walk import printable

_IMAGES, _SIZES = "images.bin", "sizes.json"
_BATCH = 16
"""Images that are in memory at a time."""


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file it is that pyarrow cannot read.

    Raises:
        DataError: names it.
    """
    try:
        yield
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(
            f"{printable(str(path))} cannot be read as parquet", why=str(error), do="fetch or write it again"
        ) from error


def unpack(path: Path, column: str, cache: Path) -> tuple[Path, list[tuple[int, int]]]:
    """Unpack the images of a parquet file, unless that was done before.

    Args:
        path: the file; one that was changed is unpacked again, and the old copy stays.
        column: of structs with a field `bytes`.
        cache: the copy goes into a folder of it.

    Returns:
        The file with all images, and offset and size of each in bytes, in the order of the rows.

    Raises:
        DataError: the parquet file is damaged.
        EnvironmentFault: the cache cannot be written.
        Stopped: a signal came; nothing stays behind.
    """
    status = path.stat()
    key = sha256_json([str(path.resolve()), status.st_size, status.st_mtime_ns, column])
    folder = cache / f"parquet-{key[:32]}"
    try:
        sizes = [int(size) for size in json.loads((folder / _SIZES).read_bytes())]
        if (folder / _IMAGES).stat().st_size == sum(sizes):
            return folder / _IMAGES, _places(sizes)
    except (OSError, ValueError, TypeError):
        pass  # not yet, or spoilt
    sizes = []
    with publish_folder(folder, {"unpacked": str(path)}) as temporary:
        with (
            open(temporary / _IMAGES, "wb") as copy,
            meter(f"unpacking {printable(path.name)}", _rows(path), "images") as shown,
        ):
            for content in _contents(path, column):
                copy.write(content)
                sizes.append(len(content))
                shown.advance()
                flag.check("nothing needs saving")
        write_json(temporary / _SIZES, sizes)
    return folder / _IMAGES, _places(sizes)


def _places(sizes: list[int]) -> list[tuple[int, int]]:
    return list(zip(accumulate(sizes, initial=0), sizes, strict=False))


def _rows(path: Path) -> int:
    with reading(path):
        return int(parquet.read_metadata(path).num_rows)


def _contents(path: Path, column: str) -> Iterator[bytes]:
    # An image without bytes becomes an empty one, which says so when it is asked for.
    with reading(path), parquet.ParquetFile(path, pre_buffer=False, buffer_size=2**20) as file:
        for batch in file.iter_batches(_BATCH, columns=[f"{column}.bytes"], use_threads=False):
            for value in batch.column(column).field("bytes"):
                yield value.as_py() or b""
