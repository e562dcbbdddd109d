"""Contact sheets: which images, where on the sheet, and how large."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from PIL import Image

from mvc.config import Experiment, ReportSection
from mvc.config_file import to_yaml
from mvc.config_generation import SourceName
from mvc.errors import DataError
from mvc.report.pictures import (
    BETWEEN,
    GAP,
    HEADING,
    MARGIN,
    TILE,
    blocks_of,
    data_uri,
    find_samples,
    main,
    sample_sheet,
    strip,
    tile,
    tile_sides,
)
from mvc.storage import write_text

from .made_up_run import colour, write_data, write_images, write_run

CLASSES = ["one", "two"]


def test_samples_are_the_first_ones(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    write_images(run, CLASSES, preview=12)
    one, two = find_samples(run, classes=5, samples=11)
    assert (one.folder, one.words, two.folder) == ("one", "number one", "two")
    assert [path.name for path in one.files["real"]] == [f"000{i}.png" for i in range(5)]
    assert [path.name for path in one.files["pretrained"]] == [f"{i}.png" for i in range(11)]  # 10 behind 9
    assert [path.name for path in two.files["finetuned"]] == [f"finetuned-000{i}.png" for i in range(6)]
    (first,) = find_samples(run, 1, 2)
    counts = {source: len(files) for source, files in first.files.items()}
    assert counts == {"real": 2, **dict.fromkeys(get_args(SourceName), 0), "pretrained": 2, "finetuned": 2}


def test_blocks_are_those_with_images(tmp_path: Path) -> None:
    write_data(tmp_path, CLASSES)
    assert blocks_of(find_samples(tmp_path, 2, 3)) == ["real", "pretrained", "finetuned"]
    write_images(tmp_path, CLASSES, preview=0, sources=("import", "sdedit"))
    found = find_samples(tmp_path, 2, 3)
    assert blocks_of(found) == ["real", "sdedit", "import"]
    assert [path.name for path in found[1].files["sdedit"]] == [f"sdedit-000{i}.png" for i in range(3)]


def test_the_set_comes_before_the_preview(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    (run / "preview" / "finetuned").mkdir()
    (run / "preview" / "pretrained" / "one").rename(run / "preview" / "finetuned" / "one")
    one, two = find_samples(run, 2, 8)
    assert {path.parent.parent.name for path in one.files["finetuned"]} == {"train"}
    assert one.files["pretrained"] == [] and len(two.files["pretrained"]) == 4
    (run / "synthetic" / "train" / "metadata.jsonl").unlink()
    one, two = find_samples(run, 2, 8)
    assert [path.parent.parent.name for path in one.files["finetuned"]] == ["finetuned"] * 4
    assert two.files["finetuned"] == []


def test_sheet_pixels(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    sheet = sample_sheet(run, classes=2, samples=8)
    step = 48 + GAP  # images of 16 pixels are enlarged to three times their side
    counts = {"real": 5, "pretrained": 4, "finetuned": 6}
    width = 2 * MARGIN + sum(count * step - GAP for count in counts.values()) + 2 * BETWEEN
    assert (sheet.mode, sheet.size) == ("RGB", (width, 2 * MARGIN + HEADING + 2 * step - GAP))
    left = MARGIN
    pixels = np.asarray(sheet)
    for source, count in counts.items():
        # The heading is black on white above its block.
        block = pixels[MARGIN : MARGIN + HEADING, left : left + count * step - GAP]
        assert block.min() < 60 and (block == 255).mean() > 0.8
        for row in range(2):
            for column in range(count):
                x, y = left + column * step, MARGIN + HEADING + row * step
                inside = pixels[y : y + 48, x : x + 48].reshape(-1, 3)
                assert (inside == colour(source, row, column)).all(), (source, row, column)
                assert (pixels[y, x - 1] == 255).all() and (pixels[y : y + 48, x + 48] == 255).all()
        left += count * step - GAP + BETWEEN
    assert left - BETWEEN + MARGIN == width


def test_sheet_with_more_sources(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    write_images(run, CLASSES, synthetic=1, preview=1, sources=("finetuned", "import"))
    sheet = sample_sheet(run, classes=2, samples=1)
    assert sheet.width == 2 * MARGIN + 4 * 48 + 3 * BETWEEN
    left = MARGIN + 3 * (48 + BETWEEN)
    block = np.asarray(sheet)[MARGIN + HEADING : MARGIN + HEADING + 48, left : left + 48]
    assert (block == colour("import", 0, 0)).all()


def test_sheet_needs_all_three(tmp_path: Path) -> None:
    write_data(tmp_path, CLASSES)
    with pytest.raises(DataError, match="holds no pre-trained images"):
        sample_sheet(tmp_path, 2, 8)


def test_strip_leaves_places_clear(tmp_path: Path) -> None:
    run = write_run(tmp_path, CLASSES)
    files = find_samples(run, 2, 2)[1].files["finetuned"]
    row = strip(files, columns=3, sides=(16, 32))
    assert (row.mode, row.size) == ("RGBA", (3 * 32 + 2 * GAP, 32))
    pixels = np.asarray(row)
    for place in range(2):
        block = pixels[:, place * (32 + GAP) : place * (32 + GAP) + 32]
        assert (block == (*colour("finetuned", 1, place), 255)).all()
    assert (pixels[:, 32 : 32 + GAP, 3] == 0).all() and (pixels[:, 2 * (32 + GAP) :, 3] == 0).all()
    header, _, code = data_uri(row).partition(",")
    assert header == "data:image/png;base64"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(base64.b64decode(code)))), pixels)


def test_small_images_are_enlarged_by_repeating_pixels(tmp_path: Path) -> None:
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3) * 5
    Image.fromarray(pixels).save(tmp_path / "small.png")
    enlarged = np.asarray(tile(tmp_path / "small.png", (4, 12)))
    assert np.array_equal(enlarged, pixels.repeat(3, axis=0).repeat(3, axis=1))


@pytest.mark.parametrize(("side", "sides"), [(16, (16, 96)), (40, (40, 80)), (96, (96, 96)), (200, (TILE, TILE))])
def test_sides_follow_the_generated_images(tmp_path: Path, side: int, sides: tuple[int, int]) -> None:
    write_data(tmp_path, CLASSES, side=150)
    assert tile_sides(find_samples(tmp_path, 2, 8)) == (TILE, TILE)
    write_images(tmp_path, CLASSES, side=side, preview=0)
    assert tile_sides(find_samples(tmp_path, 2, 8)) == sides


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, out = write_run(tmp_path / "run", CLASSES), tmp_path / "new" / "sheet.png"
    assert main([str(run), str(out)]) == 0
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(sample_sheet(run, 12, 8)))
    write_text(run / "experiment.yaml", to_yaml(Experiment(report=ReportSection(samples=3, classes=1))))
    assert main([str(run), str(out)]) == 0
    assert np.array_equal(np.asarray(Image.open(out)), np.asarray(sample_sheet(run, 1, 3)))
    capsys.readouterr()
    assert main([str(run)]) == 2
    assert "do: python -m mvc.report.pictures RUN OUT.png" in capsys.readouterr().err
    assert main([str(tmp_path / "other"), str(out)]) == 3
    assert "classes.json is missing" in capsys.readouterr().err
