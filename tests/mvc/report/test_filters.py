"""The page on what the filters refused: counts, and refused images pixel by pixel."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvc.errors import DataError
from mvc.report.filters import COLUMNS, read_filters, read_refused
from mvc.report.pictures import GAP, TILE
from mvc.storage import read_json, read_json_lines, write_json, write_json_lines, write_text

from .made_up_run import colour, write_data, write_filters, write_run
from .page_reader import page_of, table_rows

CLASSES = ["one", "two"]


def test_counts(tmp_path: Path) -> None:
    write_data(tmp_path, CLASSES)
    write_filters(tmp_path, CLASSES)
    found = read_filters(tmp_path)
    assert found.sentence == "12 of 14 images wanted are accepted; 21 were drawn, 2 of them to spare."
    assert found.lacking == "Images that are lacking, after all attempts: 2 of number one."
    assert found.reasons == [
        ("other class (clip)", "3", "14.3", "5.0"),
        ("copy of a training image", "2", "9.5", "0.0"),
        ("blank", "1", "4.8", "–"),
        ("not finite", "1", "4.8", "–"),
        ("grey", "0", "0.0", "12.5"),
        ("any", "7", "33.3", "15.0"),
    ]
    assert found.sources == [] and found.held_out == 40


def test_counts_of_several_sources_and_of_a_set_without_refusals(tmp_path: Path) -> None:
    write_filters(tmp_path, CLASSES)
    summary = read_json(tmp_path / "synthetic" / "summary.json")
    counts = {"wanted": 7, "drawn": 8, "accepted": 6, "rejected": {}}
    summary |= {"rejected": {}, "false_rejects": {}, "shortfall": {}, "by_source": {"sdedit": counts, "import": counts}}
    write_json(tmp_path / "synthetic" / "summary.json", {**summary, "held_out": 0})
    found = read_filters(tmp_path)
    assert found.sentence == "12 of 14 images wanted are accepted; 21 were drawn."
    assert found.lacking == "" and found.reasons == []
    assert found.sources == [("imported", "7", "8", "6"), ("image-to-image", "7", "8", "6")]
    page = page_of(tmp_path)
    assert "No image was refused." in page.texts and "image-to-image|7|8|6" in table_rows(page)


def test_refused_images_by_reason(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    found = read_refused(run, "white")
    assert [(group.reason, group.note) for group in found] == [
        ("other class (clip)", "3 images; also repeat: 2"),
        ("copy of a training image", "2 images"),
        ("blank", "1 image"),
        ("not finite", "1 image without a picture"),
    ]
    assert found[3].uri == "" and [group.height for group in found] == [TILE, 2 * TILE + GAP, TILE, 0]
    copies = np.asarray(Image.open(io.BytesIO(base64.b64decode(found[1].uri.partition(",")[2]))))
    assert copies.shape == (found[1].height, found[1].width, 4) == (2 * TILE + GAP, 2 * TILE + GAP, 4)
    for place in range(2):
        left = place * (TILE + GAP)
        # Above what was drawn, numbers 3 and 4 of the made-up rows; below the training images it is a copy of.
        assert (copies[:TILE, left : left + TILE, :3] == colour("finetuned", 3, 3 + place)).all()
        assert (copies[TILE + GAP :, left : left + TILE, :3] == colour("real", 0, place)).all()


def test_many_refused_images_and_lost_originals(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    rows = read_json_lines(run / "synthetic" / "rejected.jsonl")
    copies = [row for row in rows if row["reasons"] == ["copy of a training image"]]
    write_json_lines(run / "synthetic" / "rejected.jsonl", copies * 20)
    found = read_refused(run, "white")
    assert len(found) == 1 and found[0].note == "40 images"
    assert found[0].width == COLUMNS * (TILE + GAP) - GAP and found[0].height == 2 * TILE + GAP
    write_json_lines(run / "synthetic" / "rejected.jsonl", [{**row, "scores": {}} for row in copies])
    assert read_refused(run, "white")[0].height == TILE
    for path in (run / "data" / "images" / "train" / "one").iterdir():
        path.unlink()
    write_json_lines(run / "synthetic" / "rejected.jsonl", copies)
    assert read_refused(run, "white")[0].height == TILE


def test_page_shows_them(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    page = page_of(run)
    rows = table_rows(page)
    assert "other class (clip)|3|14.3|5.0" in rows and "grey|0|0.0|12.5" in rows
    assert not any(row.startswith("surplus") for row in rows)
    assert "Of real: share of 40 held-out real images that the filter would refuse." in page.text
    assert "copy of a training image , 2 images" in page.text and "not finite , 1 image without a picture" in page.text
    alts = [image["alt"] for image in page.all("img") if "refused" in image["alt"]]
    assert alts == [
        "3 refused: other class (clip)",
        "2 refused: copy of a training image, and the training images below them",
        "1 refused: blank",
    ]


def test_broken_rows_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    write_text(run / "synthetic" / "rejected.jsonl", '{"file_name": "x.png"}\n')
    with pytest.raises(DataError, match="rejected.jsonl cannot be used\nwhy: KeyError: 'reasons'"):
        read_refused(run, "white")
    assert "synthetic/rejected.jsonl cannot be used KeyError: 'reasons'" in page_of(run).texts
    (run / "synthetic" / "rejected.jsonl").unlink()
    page = page_of(run)
    assert "Refused images" not in page.texts and "other class (clip)|3|14.3|5.0" in table_rows(page)
