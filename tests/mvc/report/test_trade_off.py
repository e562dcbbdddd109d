"""The plot of the trade-off: where its dots are, and that equal scores give equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from mvc.report.trade_off import write_trade_off

FRONT, OTHER = (0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)


def point(number: int, ratio: float | None, agreement: float | None, front: bool) -> dict[str, Any]:
    figures = {"distance_ratio": ratio, "class_agreement": agreement, "front": front}
    errors = {"distance_ratio_error": None if number == 2 else 0.02, "class_agreement_error": 0.03}
    return {"number": number, "label": f"guidance_scale {number}, coarse $2, a_b", **figures, **errors}


def summary(*points: dict[str, Any], unseen: float | None = 0.95) -> dict[str, Any]:
    return {"points": list(points), "real": {"validation": {"class_agreement": unseen}}}


SIX = summary(
    point(1, 0.8, 0.99, True),
    point(2, 0.9, 0.6, False),
    point(3, 1.1, 0.9, True),
    point(4, 1.4, 0.7, False),
    point(5, 1.2, 0.5, False),
    point(6, None, 0.5, False),
)


def dots(path: Path, colour: tuple[int, int, int]) -> list[tuple[float, float]]:
    """Centres (x, y) of the dots of a colour in the part of the plot above its legend, from left to right."""
    with Image.open(path) as picture:
        pixels = np.array(picture.convert("RGB")).astype(int)
    same = (np.abs(pixels - np.array(colour)).max(axis=2) < 40)[: int(0.85 * len(pixels))]
    areas, count = ndimage.label(ndimage.binary_fill_holes(same))
    sizes = ndimage.sum_labels(np.ones_like(areas), areas, range(1, count + 1))
    centres = ndimage.center_of_mass(same, areas, [number + 1 for number in range(count) if sizes[number] > 80])
    return sorted((x, -y) for y, x in centres)


def test_each_point_is_a_dot_at_its_place(tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    assert write_trade_off(path, SIX)
    front, other = dots(path, FRONT), dots(path, OTHER)
    # The sixth point lacks a ratio.
    assert len(front) == 2 and len(other) == 3
    places = {1: front[0], 3: front[1], 2: other[0], 5: other[1], 4: other[2]}
    known = {1: (0.8, 0.99), 2: (0.9, 0.6), 3: (1.1, 0.9), 4: (1.4, 0.7), 5: (1.2, 0.5)}
    for axis in (0, 1):
        values, pixels = [[found[number][axis] for number in known] for found in (known, places)]
        slope, start = np.polyfit(values, pixels, 1)
        assert slope > 0 and np.abs(slope * np.array(values) + start - pixels).max() < 2


def test_equal_scores_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        write_trade_off(tmp_path / name, SIX)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_one_point_and_many_points_can_be_drawn(tmp_path: Path) -> None:
    assert write_trade_off(tmp_path / "one.png", summary(point(1, 1.3, 0.5, True), unseen=None))
    assert len(dots(tmp_path / "one.png", FRONT)) == 1
    points = [point(number, 1 + number / 50, 0.9 - number / 60, False) for number in range(1, 41)]
    assert write_trade_off(tmp_path / "many.png", summary(*points))
    with Image.open(tmp_path / "one.png") as one, Image.open(tmp_path / "many.png") as many:
        assert many.height > one.height and many.width == one.width


def test_without_both_figures_there_is_no_plot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "plot.png").write_bytes(b"old")
    assert not write_trade_off(tmp_path / "plot.png", summary(point(1, None, 0.5, True), point(2, 0.9, None, True)))
    assert not (tmp_path / "plot.png").exists() and "no plot" in capsys.readouterr().err
