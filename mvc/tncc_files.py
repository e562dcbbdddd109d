"""The two published files that TNCC is made of: the scores of Crisscrossed Captions and the captions of COCO.

What they hold, as found in them:

- data/sts_val.csv of github.com/google-research-datasets/Crisscrossed-Captions, commit 7d6634be: a csv with the columns
  caption1,caption2,agg_score,sampling_method and rows such as
  COCO_val2014:sentid:190268,COCO_val2014:sentid:315773,1.24,c2c_isim
  The number behind the last colon is the id of a caption in COCO's annotations. The score is the mean of ratings from
  0 to 5. The method is c2c_cocaption (two captions of one image) or c2c_isim (captions of two similar images). There
  is no text. The sis_*.csv and sits_*.csv beside it are about images.
- annotations/captions_val2014.json of COCO, and captions_val2017.json with an eighth of its images: annotations such as
  {"image_id": 386134, "id": 826793, "caption": "Food is in a styrofoam take out container."}
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvc.errors import DataError
from mvc.storage import read_json
from mvc.tables import Row, read_rows, require_columns, text_of
from mvc.walk import printable

SCORE_COLUMNS = ("caption1", "caption2", "agg_score", "sampling_method")
_ID = re.compile(r"(?:.*:)?([0-9]+)")
_DO = "give data/sts_val.csv of Crisscrossed Captions as it was published"


@dataclass(frozen=True, order=True)
class Pair:
    """Two captions and how similar people found them.

    Attributes:
        caption1, caption2: ids of COCO.
        score: mean of ratings, from 0 to 5.
        sampling_method: c2c_isim or c2c_cocaption.
    """

    caption1: int
    caption2: int
    score: float
    sampling_method: str


@dataclass(frozen=True)
class Caption:
    """A caption of COCO: the id of its image, and its text in one line with single spaces."""

    image: int
    text: str


def read_scores(path: Path) -> list[Pair]:
    """Read the STS part of CxC, in the file's order.

    Args:
        path: sts_val.csv or sts_test.csv; caption ids are whole numbers, or end in one behind a colon.

    Raises:
        DataError: the file is missing, has other columns, or an id or score is none; names the line.
    """
    rows = read_rows(path, "csv")
    require_columns(rows.columns or (), SCORE_COLUMNS, printable(str(path)))
    return [
        Pair(
            _caption_id(row, "caption1", path),
            _caption_id(row, "caption2", path),
            _score(row, path),
            text_of(row, "sampling_method"),
        )
        for row in rows
    ]


def _caption_id(row: Row, column: str, path: Path) -> int:
    text = text_of(row, column).strip()
    found = _ID.fullmatch(text)
    if found is None:
        raise DataError(
            f"{printable(str(path))}, line {row.line}: {column} is '{printable(text)}'",
            why="a caption's id is a whole number, or ends in one behind a colon, as COCO_val2014:sentid:190268 does",
            do=_DO,
        )
    return int(found[1])


def _score(row: Row, path: Path) -> float:
    text = text_of(row, "agg_score")
    try:
        score = float(text)
    except ValueError:
        score = math.nan
    if not 0 <= score <= 5:
        raise DataError(
            f"{printable(str(path))}, line {row.line}: agg_score is '{printable(text)}'",
            why="a score is a number from 0 to 5",
            do=_DO,
        )
    return score


def read_captions(paths: Sequence[Path]) -> dict[int, Caption]:
    """Read COCO's annotations of captions.

    Args:
        paths: JSON files; a caption that is in several is taken from the first.

    Returns:
        captions by id; those without a word are left out.

    Raises:
        DataError: a file is missing or none of COCO's captions.
    """
    found: dict[int, Caption] = {}
    for path in paths:
        name = printable(str(path))
        do = "give annotations/captions_val2014.json of COCO as it was published"
        if not path.exists():
            raise DataError(f"{name} is missing", do=do)
        try:
            content = read_json(path)
        except OSError as error:
            raise DataError(f"{name} cannot be read", why=error.strerror or str(error), do="check the path") from error
        entries = content.get("annotations") if isinstance(content, dict) else None
        if not isinstance(entries, list):
            raise DataError(f"{name} has no list of annotations", why="it is no file of COCO's captions", do=do)
        for number, entry in enumerate(entries, 1):
            if not _is_caption(entry):
                why = "id and image_id must be whole numbers, and caption a text"
                raise DataError(f"{name}, annotation {number} is no caption", why=why, do=do)
            text = " ".join(entry["caption"].split())
            if text:
                found.setdefault(entry["id"], Caption(entry["image_id"], text))
    return found


def _is_caption(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and all(type(entry.get(key)) is int for key in ("id", "image_id"))
        and isinstance(entry.get("caption"), str)
    )
