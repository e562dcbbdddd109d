"""The page on the quality of a set: figures with their floor, and pairs of images pixel by pixel."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mvc.config import Experiment
from mvc.errors import DataError
from mvc.report.pictures import GAP, TILE
from mvc.report.quality import HEADINGS, PAIRS, Line, read_pairs, read_quality
from mvc.storage import read_json, read_json_lines, write_json, write_json_lines, write_text

from .made_up_run import colour, write_data, write_images, write_quality, write_run
from .page_reader import page_of, table_rows

CLASSES = ["one", "two"]


def pixels_of(uri: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_lines_hold_the_floor_beside_the_set(tmp_path: Path) -> None:
    write_quality(tmp_path, CLASSES)
    found = read_quality(tmp_path)
    floor = ["8.12", "0", "0.0125", "0.95", "0.88", "1.00", "0.93"]
    assert found.lines == [
        Line("synthetic", "12", ["12.3", "0.00123", "0.75", "0.90", "0.25", "1.10", "0.50"]),
        Line("real training", "10", floor, floor=True),
        Line("synthetic, as many", "10", ["15.5", "0.00123", "0.75", "0.90", "0.25", "1.10", "0.50"]),
        Line("real, as many", "10", floor, floor=True),
    ]
    assert found.classes[0] == Line("one", "5 of 12", ["4 (1)", "0.5 (0.25)", "2 (1)", "–", "–", "–", "–"])
    assert len(HEADINGS) == len(floor)
    assert found.notes == ["Too few of one & two."]
    assert found.explained[0] == (
        "Compared with 2 real validation images by the features of the tiny CLIP, all at 16 pixels; 5 neighbours."
    )
    assert found.explained[1] == (
        "Distance to the nearest training image: 2 on average, and 4 for held-out images; nearer than that are "
        "75.0 % of the synthetic and 50.0 % of the held-out images."
    )
    assert found.explained[2].endswith(
        "same class for 100.0 % of the synthetic images and 90.0 % of the held-out ones."
    )


def test_sources_have_lines_of_their_own(tmp_path: Path) -> None:
    write_quality(tmp_path, CLASSES)
    summary = read_json(tmp_path / "quality" / "quality.json")
    summary["by_source"] = dict.fromkeys(("import", "pretrained"), {**summary["overall"], "images": 7})
    summary["overall"]["equal"] = None
    write_json(tmp_path / "quality" / "quality.json", summary)
    assert [(line.name, line.images) for line in read_quality(tmp_path).lines] == [
        ("synthetic", "12"),
        ("imported", "7"),
        ("pre-trained", "7"),
        ("real training", "10"),
    ]


def test_a_set_that_nothing_was_compared_with(tmp_path: Path) -> None:
    write_quality(tmp_path, CLASSES, held_out=0)
    summary = read_json(tmp_path / "quality" / "quality.json")
    none = dict.fromkeys(("mean", "median", "least", "nearer", "same_class"))
    summary["nearest"]["held_out"] = none
    for said in summary["by_class"].values():
        said["equal"] = None
    write_json(tmp_path / "quality" / "quality.json", summary)
    found = read_quality(tmp_path)
    assert found.explained[1:] == [
        "Distance to the nearest training image: 2 on average.",
        "It is of the same class for 100.0 % of the synthetic images.",
    ]
    # The figures of all images then, the larger number without a power of ten.
    assert found.classes[1].images == "12" and found.classes[1].cells[:3] == ["3 (8.12)", "0.5 (0)", "1250 (0.0125)"]
    summary["nearest"]["synthetic"] = none
    write_json(tmp_path / "quality" / "quality.json", {**summary, "image_size": None})
    found = read_quality(tmp_path)
    assert len(found.explained) == 1 and found.explained[0].endswith("the tiny CLIP; 5 neighbours.")


def test_pairs_show_the_nearest_first(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    found = read_pairs(run, "white")
    assert [pair.name for pair in found.pairs[:3]] == [
        "number one: finetuned-0000",
        "number two: finetuned-0000",
        "number one: finetuned-0001",
    ]
    assert [pair.note for pair in found.pairs[::4]] == ["0.25, 6 %", "2.25, 56 %", "4.25, 106 %"]
    assert (found.width, found.height, found.unreadable) == (2 * TILE + GAP, TILE, 0)
    picture = pixels_of(found.pairs[3].uri)  # the second one of "two", and the second real one of "one"
    assert picture.shape == (TILE, 2 * TILE + GAP, 4)
    assert (picture[:, :TILE, :3] == colour("finetuned", 1, 1)).all()
    assert (picture[:, TILE + GAP :, :3] == colour("real", 0, 1)).all()
    assert (picture[:, TILE : TILE + GAP, 3] == 0).all()
    # Bold is what no held-out image is: in the made-up run, the nearest one of these is 0.25 away.
    assert not any(pair.near for pair in found.pairs)
    summary = read_json(run / "quality" / "quality.json")
    summary["nearest"]["held_out"]["least"] = 1.5
    write_json(run / "quality" / "quality.json", summary)
    assert [pair.near for pair in read_pairs(run, "white").pairs] == [True] * 4 + [False] * 8


def test_only_so_many_pairs_and_lost_images(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    write_images(run, CLASSES, synthetic=6)
    rows = read_json_lines(run / "quality" / "nearest.jsonl")
    write_json_lines(run / "quality" / "nearest.jsonl", rows * 3)
    assert len(read_pairs(run, "white").pairs) == PAIRS
    (run / "synthetic" / "train" / rows[0]["file_name"]).unlink()
    found = read_pairs(run, "white")
    assert (len(found.pairs), found.unreadable) == (PAIRS - 3, 3)
    write_json_lines(run / "quality" / "nearest.jsonl", [{**rows[0], "nearest_id": "gone"}])
    with pytest.raises(DataError, match="nearest.jsonl cannot be used\nwhy: KeyError: 'gone'"):
        read_pairs(run, "white")


def test_without_a_held_out_image_there_is_no_share(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    summary = read_json(run / "quality" / "quality.json")
    summary["nearest"]["held_out"] |= {"mean": None, "least": None}
    write_json(run / "quality" / "quality.json", summary)
    pair = read_pairs(run, "white").pairs[0]
    assert (pair.note, pair.near) == ("0.25", False)


def test_page_shows_figures_and_pairs(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", CLASSES)
    page = page_of(run)
    rows = table_rows(page)
    assert "synthetic|12|12.3|0.00123|0.75|0.90|0.25|1.10|0.50" in rows
    assert "real training|10|8.12|0|0.0125|0.95|0.88|1.00|0.93" in rows
    assert "number two|5 of 12|4 (1)|0.5 (0.25)|2 (1)|–|–|–|–" in rows
    assert page.source.count('<tr class="real">') == 2
    assert "Too few of one & two." in page.texts
    assert "Left a synthetic image, right the training image nearest to it: the 12 nearest pairs" in page.text
    pairs = [image for image in page.all("img") if image["alt"].endswith("and its nearest training image")]
    assert len(pairs) == 12 and {(image["width"], image["height"]) for image in pairs} == {("196", "96")}


def test_page_of_a_run_without_synthetic_pairs(tmp_path: Path) -> None:
    write_data(tmp_path, CLASSES)
    write_quality(tmp_path, CLASSES)
    write_json_lines(tmp_path / "quality" / "nearest.jsonl", [])
    page = page_of(tmp_path, Experiment())
    assert "There is no synthetic image, so no pairs can be shown." in page.texts
    write_text(tmp_path / "quality" / "nearest.jsonl", '{"id": 1}\n')
    assert "quality/nearest.jsonl cannot be used KeyError: 'file_name'" in page_of(tmp_path).texts
    (tmp_path / "quality" / "nearest.jsonl").unlink()
    assert "No figures of quality yet: the synthetic set has not been measured." in page_of(tmp_path).texts
