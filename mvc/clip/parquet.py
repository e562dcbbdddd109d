"""Captioned images inside parquet files, as `datasets` writes them: a column of images with their bytes, and captions.

Read by pyarrow from the user's own files. `datasets.load_dataset` would first write all images once more, as arrow
files in its cache. Parquet reads no less than a row group, so an image costs reading its group, unless that was read
last or the time before. Files with large groups are unpacked into the cache, if there is one (`mvc.clip.unpacking`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from mvc.disk import size_text
from mvc.errors import DataError
from mvc.walk import counted, printable

from .captioned import KEYS, Captioned, captions_of, require_unicode
from .places import FilePart, ParquetCell, Place
from .sources import Source, files_of
from .unpacking import reading, unpack

LARGE_GROUP = 16 * 2**20
"""Bytes of the images of a row group above which a file is unpacked: reading them takes as long as decoding a few."""
GROUP_LIMIT = 256 * 2**20
"""Such bytes above which a file is refused where there is no cache: every worker of a DataLoader holds two groups."""
_IMAGE_ID = "image_id"
_BINARY = (pyarrow.binary(), pyarrow.large_binary())
_SMALLER = "give a cache folder, or write smaller ones: pyarrow.parquet.write_table(table, path, row_group_size=100)"


def read_parquet(source: Source, split: str, cache: Path | None) -> dict[str, Captioned]:
    """Read the images of a split, without their bytes.

    The split is a folder between the data folder and the file, or a word of its name
    ("data/train-00000-of-00002.parquet"). The images are in the column `image`, else in the only one of structs with a
    field `bytes`. Each row is an image of its own, unless there is a column `image_id`: rows of the same one are one
    image with several captions.

    Args:
        source: the parquet files.
        split: train, validation or test.
        cache: folder where files with large row groups are unpacked; None reads all groups as they are.

    Returns:
        image and captions by `image_id`, or by "path/of/the/file.parquet/7" with the number of the row from 0, in the
        order of the rows.

    Raises:
        DataError: the split is missing, a file is no whole parquet file or has no such columns, its row groups are too
            large, or a row has no image or captions; names file and row.
        EnvironmentFault: the cache cannot be written.
    """
    images: dict[str, Captioned] = {}
    for path in files_of(source, split):
        _add_file(path, path.relative_to(source.root).as_posix(), cache, images)
    return images


def read_columns(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The rows of a parquet file, with those of the given columns that it has.

    Raises:
        DataError: it is no whole parquet file; names it.
    """
    with reading(path), parquet.ParquetFile(path) as file:
        there = [name for name in columns if name in file.schema_arrow.names]
        for group in range(file.num_row_groups):
            yield from file.read_row_group(group, columns=there, use_threads=False).to_pylist()


def _add_file(path: Path, name: str, cache: Path | None, images: dict[str, Captioned]) -> None:
    with reading(path), parquet.ParquetFile(path) as file:
        column = _image_column(file.schema_arrow, path)
        wanted = [key for key in (*KEYS, _IMAGE_ID) if key in file.schema_arrow.names]
        groups = [file.metadata.row_group(number) for number in range(file.num_row_groups)]
        chunks = [_images(group, column, f"{printable(str(path))}, row group {n}") for n, group in enumerate(groups)]
        places = _places(path, column, [group.num_rows for group in groups], chunks, cache)
        for number, group in enumerate(groups):
            rows = file.read_row_group(number, columns=wanted, use_threads=False).to_pylist()
            for values in rows or [{}] * group.num_rows:
                row, place = next(places)
                captions = captions_of(values, place.where)
                given = values.get(_IMAGE_ID)
                key = f"{name}/{row}" if given is None else require_unicode(str(given), place.where)
                if key in images:
                    images[key].captions.extend(captions)
                else:
                    images[key] = Captioned(place, captions)


def _places(
    path: Path, column: str, counts: Sequence[int], chunks: Sequence[Any], cache: Path | None
) -> Iterator[tuple[int, Place]]:
    """Number in the file and place of every row; `counts` and `chunks` are the rows and stored images of each group."""
    largest = max((chunk.total_uncompressed_size for chunk in chunks), default=0)
    if cache is None and largest > GROUP_LIMIT:
        why = f"the images of one take {size_text(largest)}, and {size_text(GROUP_LIMIT)} are read at once at most"
        raise DataError(f"the row groups of {printable(str(path))} are too large", why=why, do=_SMALLER)
    stamp, first = path.stat().st_mtime_ns, 0
    copy, parts = unpack(path, column, cache) if cache is not None and largest > LARGE_GROUP else (path, [])
    for group, (count, chunk) in enumerate(zip(counts, chunks, strict=True)):
        for row in range(count):
            cell = ParquetCell(str(path), column, group, row, first, chunk.total_compressed_size, stamp)
            number = first + row
            yield number, FilePart(str(copy), cell.where, *parts[number], cell.identity) if parts else cell
        first += count


def _image_column(schema: Any, path: Path) -> str:
    columns = [field.name for field in schema if pyarrow.types.is_struct(field.type) and _has_bytes(field.type)]
    if "image" in columns:
        return "image"
    if len(columns) != 1:
        there = ", ".join(f"{printable(field.name)} ({str(field.type):.60})" for field in schema)
        raise DataError(
            f"{printable(str(path))} has {'no column' if not columns else 'several columns'} of images",
            why=f"an image is a struct with its bytes, as datasets writes it; the columns are {there}",
            do='give datasets a column image of {"bytes": ..., "path": ...}, and write it with to_parquet',
        )
    return str(columns[0])


def _has_bytes(kind: Any) -> bool:
    return any(kind.field(at).name == "bytes" and kind.field(at).type in _BINARY for at in range(kind.num_fields))


def _images(group: Any, column: str, where: str) -> Any:
    """What a file knows about the images of a row group.

    Raises:
        DataError: it knows that the bytes of one are missing.
    """
    chunks = (group.column(number) for number in range(group.num_columns))
    chunk = next(chunk for chunk in chunks if chunk.path_in_schema == f"{column}.bytes")
    missing = chunk.statistics.null_count if chunk.statistics is not None else None
    if missing:
        raise DataError(
            f"{where} has {counted(missing, 'row')} without the bytes of an image",
            why="it may name files by their path, which other machines don't have",
            do='give datasets the images as {"bytes": ..., "path": ...} and write it again, or remove these rows',
        )
    return chunk
