"""Plots: the moving mean against its definition, points at their places, colours left to the page."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pytest

from mvc.randomness import numpy_generator
from mvc.report.plots import MOST_POINTS, accuracies, loss_curve, smooth, timestep_curve

ARMS = [("real", [0.80, 0.82, 0.84]), ("two_phase", [0.90, 0.90, 0.90])]


def marks(svg: str, colour: str) -> list[tuple[float, float]]:
    """Places of the markers drawn in a colour of the page; ticks, unlike them, have an outline."""
    found = re.findall(r'<use href="#[^"]+" x="([-\d.]+)" y="([-\d.]+)" style="([^"]*)"', svg)
    return [
        (float(x), float(y)) for x, y, style in found if f"fill: var({colour})" in style and "stroke-width" not in style
    ]


@pytest.mark.parametrize("window", [1, 3, 7, 21])
def test_smooth_is_the_mean_of_the_neighbours(window: int) -> None:
    values = numpy_generator(0, "test smooth").normal(size=15)
    half = window // 2
    expected = [values[max(0, i - half) : i + half + 1].mean() for i in range(15)]
    np.testing.assert_allclose(smooth(list(values), window), expected, atol=1e-12)


def test_accuracy_dots_lie_on_one_scale() -> None:
    svg = accuracies(ARMS)
    real, other = marks(svg, "--real"), marks(svg, "--accent")
    assert len(real) == len(other) == 3
    per_point = (real[2][0] - real[0][0]) / 4  # 84 against 80 per cent
    assert per_point > 5
    assert [x - real[0][0] for x, _ in other] == pytest.approx([10 * per_point] * 3, abs=1e-3)
    assert real[1][0] - real[0][0] == pytest.approx(2 * per_point, abs=1e-3)
    # Equal accuracies stay apart, rows do not mix.
    assert len({y for _, y in other}) == 3 and max(y for _, y in real) < min(y for _, y in other)
    assert ">real<" in svg and ">two_phase<" in svg and ">test accuracy, per cent<" in svg


def test_loss_points() -> None:
    svg = loss_curve([10, 20, 30], [0.4, 0.2, 0.1])
    places = marks(svg, "--faint")
    xs, ys = [x for x, _ in places], [y for _, y in places]
    assert len(places) == 3 and xs[2] - xs[1] == pytest.approx(xs[1] - xs[0], abs=1e-3)
    assert (ys[1] - ys[0]) / (ys[2] - ys[1]) == pytest.approx(2.0, abs=1e-3)
    assert 'aria-label="Loss over 3 logged steps; moving mean 0.4 at first, 0.1 at last"' in svg


def test_validation_losses_share_the_axes_of_the_training_s() -> None:
    svg = loss_curve([10, 20, 30], [0.4, 0.2, 0.1], [10, 30], [0.4, 0.2])
    raw, validated = marks(svg, "--faint"), marks(svg, "--real")
    # A legend repeats the marker of each line that has one; it comes last.
    assert len(raw) == 3 and len(validated) == 3
    assert validated[0] == pytest.approx(raw[0], abs=1e-3)
    assert validated[1] == pytest.approx((raw[2][0], raw[1][1]), abs=1e-3)
    assert ">validation<" in svg and ">training, moving mean<" in svg
    assert "validation loss 0.4 at first, 0.2 at last, least 0.2 at step 30" in svg
    assert ">validation<" not in loss_curve([10, 20], [0.4, 0.2])


def test_losses_by_timestep_lie_on_a_log_scale() -> None:
    svg = timestep_curve([1.0, 0.1, None, 0.01], [0.1, 0.01, 0.001, None])
    early, late = marks(svg, "--faint")[:3], marks(svg, "--accent")[:3]
    decade = early[1][1] - early[0][1]
    assert decade > 20 and early[2][1] - early[1][1] == pytest.approx(decade, abs=1e-3)
    assert [y - early[0][1] for _, y in late] == pytest.approx([decade, 2 * decade, 3 * decade], abs=1e-3)
    width = late[1][0] - late[0][0]
    assert late[2][0] - late[1][0] == pytest.approx(width, abs=1e-3)
    assert [x - early[0][0] for x, _ in early] == pytest.approx([0, width, 3 * width], abs=1e-3)
    assert "at the beginning 1, 0.1, none, 0.01; at the end 0.1, 0.01, 0.001, none" in svg
    assert len(marks(timestep_curve([None, 0.5], [None, None]), "--faint")) == 2  # one point, one in the legend


def test_long_logs_are_thinned() -> None:
    count = 2 * MOST_POINTS + 1
    svg = loss_curve(list(range(count)), [1.0] * count)
    assert len(marks(svg, "--faint")) == -(-count // 3)
    assert f"Loss over {count} logged steps" in svg


def test_colours_and_fonts_are_the_page_s() -> None:
    curves = loss_curve([1, 2], [0.5, 0.4], [2], [0.6]), timestep_curve([0.5, 0.1], [0.4, None])
    for svg in (accuracies(ARMS), *curves):
        colours = set(re.findall(r"#[0-9a-f]{6}\b", svg))
        assert not colours, colours
        assert "<text" in svg and "<style" not in svg and "<metadata" not in svg and "http" not in svg


def test_same_plot_same_text_whatever_the_user_s_style() -> None:
    plain = accuracies(ARMS)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.hashsalt": None}):
        assert accuracies(ARMS) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_one_seed_and_one_step() -> None:
    assert len(marks(accuracies([("real", [0.5])]), "--real")) == 1
    assert len(marks(loss_curve([1], [0.5]), "--faint")) == 1


def test_arm_names_are_text() -> None:
    svg = accuracies([('<b>"$x$', [0.5, 0.6])])
    assert "<b>" not in svg and "&lt;b&gt;" in svg and "$x$" in svg
