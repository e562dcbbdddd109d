"""The published files of scores and captions: their real format, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from mvc.errors import DataError
from mvc.tncc_files import Caption, Pair, read_captions, read_scores

# The first and the last two rows of data/sts_val.csv as published.
PUBLISHED = """caption1,caption2,agg_score,sampling_method
COCO_val2014:sentid:190268,COCO_val2014:sentid:315773,1.24,c2c_isim
COCO_val2014:sentid:339102,COCO_val2014:sentid:339447,0.61,c2c_cocaption
COCO_val2014:sentid:10414,COCO_val2014:sentid:10765,3.98,c2c_cocaption
"""


def scores(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "sts_val.csv"
    path.write_text(content)
    return path


def captions(tmp_path: Path, annotations: Any, name: str = "captions.json") -> Path:
    path = tmp_path / name
    path.write_text(json.dumps({"info": {}, "images": [], "annotations": annotations}))
    return path


def test_scores_as_they_were_published(tmp_path: Path) -> None:
    assert read_scores(scores(tmp_path, PUBLISHED)) == [
        Pair(190268, 315773, 1.24, "c2c_isim"),
        Pair(339102, 339447, 0.61, "c2c_cocaption"),
        Pair(10414, 10765, 3.98, "c2c_cocaption"),
    ]


def test_ids_may_be_plain_or_have_another_prefix(tmp_path: Path) -> None:
    path = scores(
        tmp_path, "agg_score,caption1,caption2,sampling_method,note\n5,822, COCO:17,c2c_isim,x\n0.0,1,2,a,y\n"
    )
    assert read_scores(path) == [Pair(822, 17, 5.0, "c2c_isim"), Pair(1, 2, 0.0, "a")]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "COCO_val2014:sentid:x,2,1.0,a",
            "line 2: caption1 is 'COCO_val2014:sentid:x'\nwhy: a caption's id is a whole",
        ),
        ("1,COCO_val2014_000000431431.jpg,1.0,a", "line 2: caption2 is 'COCO_val2014_000000431431.jpg'"),
        ("1,,1.0,a", "line 2: caption2 is ''"),
        ("1,-2,1.0,a", "line 2: caption2 is '-2'"),
        ("1,2.0,1.0,a", "line 2: caption2 is '2.0'"),
        ("1,\u0662,1.0,a", "line 2: caption2 is '\u0662'"),
        ("1,2,high,a", "line 2: agg_score is 'high'\nwhy: a score is a number from 0 to 5\ndo: give data/sts_val.csv"),
        ("1,2,5.01,a", "line 2: agg_score is '5.01'"),
        ("1,2,-0.1,a", "line 2: agg_score is '-0.1'"),
        ("1,2,nan,a", "line 2: agg_score is 'nan'"),
        ("1,2,1.0", "line 2 has 3 fields\nwhy: the first row names 4 columns"),
    ],
)
def test_rows_of_scores_that_cannot_be_used_name_the_line(tmp_path: Path, row: str, message: str) -> None:
    path = scores(tmp_path, f"caption1,caption2,agg_score,sampling_method\n{row}\n")
    with pytest.raises(DataError, match=r"sts_val\.csv, " + re.escape(message)):
        read_scores(path)


def test_another_table_of_the_same_repository_is_told_apart(tmp_path: Path) -> None:
    path = scores(tmp_path, "caption,image,agg_score,sampling_method\n1,a.jpg,1.8,c2i_intrasim\n")
    with pytest.raises(
        DataError,
        match=r"sts_val\.csv has no column 'caption1'\nwhy: its columns are: caption, image, .*\ndo: .*'caption'",
    ):
        read_scores(path)
    with pytest.raises(DataError, match=r"absent\.csv is missing"):
        read_scores(tmp_path / "absent.csv")


def test_captions_are_one_line_each_and_the_first_file_counts(tmp_path: Path) -> None:
    first = captions(
        tmp_path,
        [
            {"image_id": 386134, "id": 826793, "caption": "Food is in a styrofoam take out container."},
            {"image_id": 231237, "id": 825902, "caption": " A bunch of\tsmall \r\nflowers in a\u00a0vase \n"},
            {"image_id": 5, "id": 6, "caption": " \n"},
        ],
    )
    second = captions(
        tmp_path,
        [{"image_id": 1, "id": 826793, "caption": "another"}, {"image_id": 7, "id": 6, "caption": "a \u732b"}],
        "more.json",
    )
    assert read_captions([first, second]) == {
        826793: Caption(386134, "Food is in a styrofoam take out container."),
        825902: Caption(231237, "A bunch of small flowers in a vase"),
        6: Caption(7, "a \u732b"),
    }


@pytest.mark.parametrize(
    "entry",
    [
        "a caption",
        {"id": 1, "image_id": 2},
        {"id": "1", "image_id": 2, "caption": "a"},
        {"id": 1, "image_id": 2.0, "caption": "a"},
        {"id": True, "image_id": 2, "caption": "a"},
        {"id": 1, "image_id": 2, "caption": ["a"]},
    ],
)
def test_an_annotation_that_is_no_caption_is_named(tmp_path: Path, entry: Any) -> None:
    path = captions(tmp_path, [{"id": 1, "image_id": 1, "caption": "fine"}, entry])
    with pytest.raises(
        DataError, match=r"captions\.json, annotation 2 is no caption\nwhy: id and image_id must be whole"
    ):
        read_captions([path])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        (
            "[]",
            "has no list of annotations\nwhy: it is no file of COCO's captions\ndo: give annotations/captions_val2014",
        ),
        ('{"annotations": {}}', "has no list of annotations"),
        ('{"images": []}', "has no list of annotations"),
    ],
)
def test_a_file_that_holds_no_captions_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "captions.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf"captions\.json {message}"):
        read_captions([path])


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json is missing\ndo: give annotations/captions_val2014\.json"):
        read_captions([tmp_path / "absent.json"])
    with pytest.raises(DataError, match="cannot be read\nwhy: Is a directory"):
        read_captions([tmp_path])
