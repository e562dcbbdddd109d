"""Sample pictures of a training: laid out and read back, pixel by pixel, and shown on the page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from mvc.errors import DataError
from mvc.images import decode
from mvc.randomness import numpy_generator
from mvc.report.grids import MOST_STEPS, read_grids, write_grid
from mvc.report.pictures import GAP, TILE
from mvc.storage import write_json, write_text


def pictures(count: int, side: int, name: str) -> list[NDArray[np.uint8]]:
    drawn = numpy_generator(0, name).integers(0, 256, (count, side, side, 3))
    return list(drawn.astype(np.uint8))


def pixels_of(uri: str) -> NDArray[np.uint8]:
    header, _, code = uri.partition(",")
    assert header == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(code))) as image:
        return np.asarray(image)


def write(run: Path, step: int, count: int = 3, side: int = 16) -> None:
    drawn = pictures(count, side, f"step {step}")
    write_grid(run, step, [f"class {i}" for i in range(count)], pictures(count, side, "conditions"), drawn)


@pytest.mark.parametrize(("count", "columns", "lines"), [(1, 1, 1), (8, 8, 1), (11, 8, 2)])
def test_every_sample_stands_below_its_condition(tmp_path: Path, count: int, columns: int, lines: int) -> None:
    write(tmp_path, 250, count)
    picture = np.asarray(decode(tmp_path / "samples/step-000250.png"))
    white = np.ones(picture.shape[:2], dtype=bool)
    pairs = zip(pictures(count, 16, "conditions"), pictures(count, 16, "step 250"), strict=True)
    for number, pair in enumerate(pairs):
        for row, expected in enumerate(pair):
            top = number // 8 * (2 * (16 + GAP) + GAP) + row * (16 + GAP)
            left = number % 8 * (16 + GAP)
            assert np.array_equal(picture[top : top + 16, left : left + 16], expected)
            white[top : top + 16, left : left + 16] = False
    assert (picture[white] == 255).all()
    assert picture.shape[:2] == (lines * (2 * (16 + GAP) + GAP) - 2 * GAP, columns * (16 + GAP) - GAP)


def test_rows_of_a_page_are_those_of_the_pictures(tmp_path: Path) -> None:
    for step in (0, 20, 100):
        write(tmp_path, step, count=10)
    found, factor = read_grids(tmp_path), TILE // 16
    assert [step for step, _ in found.steps] == [0, 20, 100]
    assert found.classes == [f"class {i}" for i in range(8)] and found.hidden == 2
    assert (found.width, found.height) == (8 * (TILE + GAP) - GAP, TILE)
    rows = [("conditions", found.conditions), *((f"step {step}", uri) for step, uri in found.steps)]
    for name, uri in rows:
        row = pixels_of(uri)
        assert row.shape == (TILE, found.width, 4)
        for column, expected in enumerate(pictures(10, 16, name)[:8]):
            left = column * (TILE + GAP)
            enlarged = expected.repeat(factor, axis=0).repeat(factor, axis=1)
            assert np.array_equal(row[:, left : left + TILE, :3], enlarged)
            assert (row[:, left + TILE : left + TILE + GAP, 3] == 0).all()


def test_large_samples_are_made_smaller(tmp_path: Path) -> None:
    flat = [np.full((200, 200, 3), 10 * i, dtype=np.uint8) for i in range(4)]
    write_grid(tmp_path, 5, ["a", "b"], flat[:2], flat[2:])
    found = read_grids(tmp_path)
    assert (found.width, found.height) == (2 * TILE + GAP, TILE)
    for uri, values in ((found.conditions, (0, 10)), (found.steps[0][1], (20, 30))):
        row = pixels_of(uri)
        assert (row[:, :TILE, :3] == values[0]).all() and (row[:, TILE + GAP :, :3] == values[1]).all()


@pytest.mark.parametrize("count", [1, 2, MOST_STEPS, MOST_STEPS + 1, 47])
def test_a_page_shows_a_few_steps_evenly_apart(tmp_path: Path, count: int) -> None:
    for step in range(count):
        write(tmp_path, 10 * step, count=1, side=4)
    steps = [step for step, _ in read_grids(tmp_path).steps]
    assert len(steps) == min(count, MOST_STEPS) and steps[0] == 0 and steps[-1] == 10 * (count - 1)
    gaps = {after - before for before, after in zip(steps, steps[1:], strict=False)}
    assert not gaps or max(gaps) - min(gaps) <= 10


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No samples were drawn on the way: train.sample_steps is 0"):
        read_grids(tmp_path)
    write(tmp_path, 1)
    write_json(tmp_path / "samples/samples.json", {"side": 99, "columns": 3, "classes": []})
    with pytest.raises(DataError, match="step-000001.png is not laid out as its samples.json says"):
        read_grids(tmp_path)
    write_json(tmp_path / "samples/samples.json", {"side": 16})
    with pytest.raises(DataError, match="samples.json cannot be used"):
        read_grids(tmp_path)
    write(tmp_path, 1)
    write_text(tmp_path / "samples/step-000002.png", "torn")
    with pytest.raises(DataError, match="step-000002.png cannot be read as an image"):
        read_grids(tmp_path)
