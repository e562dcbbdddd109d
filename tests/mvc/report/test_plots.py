"""Plots: the moving mean against its definition, points at their places, colours left to the page."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import pytest

from mvc.randomness import numpy_generator
from mvc.report.plots import MOST_POINTS, accuracies, gains, loss_curve, ratio_curves, smooth, timestep_curve

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


def lines(svg: str, colour: str) -> list[list[tuple[float, float]]]:
    """Corners of the lines drawn in a colour of the page."""
    paths = re.findall(r'<path d="([^"]*)"[^>]*style="([^"]*)"', svg)
    corners = [
        re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", path) for path, style in paths if f"stroke: var({colour})" in style
    ]
    return [[(float(x), float(y)) for x, y in path] for path in corners]


GAINS = [("real+randaugment", 0.01, -0.02, 0.04), ("rsp", 0.03, 0.01, 0.05), ("combined", -0.02, None, None)]


def test_gains_and_their_intervals_lie_on_one_scale() -> None:
    svg = gains(GAINS, "rsp")
    (real,), (rsp, combined) = marks(svg, "--real"), marks(svg, "--accent")
    per_point = (rsp[0] - real[0]) / 2
    assert per_point > 5 and combined[0] == pytest.approx(real[0] - 3 * per_point, abs=1e-3)
    assert real[1] < rsp[1] < combined[1]
    ((left, right),) = [path for path in lines(svg, "--accent") if path[0][1] == pytest.approx(path[1][1])]
    assert left == pytest.approx((rsp[0] - 2 * per_point, rsp[1]), abs=1e-3)
    assert right == pytest.approx((rsp[0] + 2 * per_point, rsp[1]), abs=1e-3)
    # No gain, dashed.
    (zero,) = [
        path
        for path in lines(svg, "--faint")
        if path[0][0] == path[1][0] == pytest.approx(real[0] - per_point, abs=1e-3)
    ]
    assert len(zero) == 2
    assert re.findall(r"font-weight: 700[^>]*>([^<]*)<", svg) == ["rsp"]
    told = "real+randaugment +1.0 (-2.0 to +4.0); rsp +3.0 (+1.0 to +5.0); combined -2.0"
    assert f'aria-label="Gain in points with its 95 % interval: {told}"' in svg


def test_arms_without_synthetic_images_have_the_colour_of_real() -> None:
    svg = accuracies([("real", [0.5]), ("real+mixup", [0.5]), ("duplicate", [0.5]), ("rsp:2+mixup", [0.5])])
    assert len(marks(svg, "--real")) == 3 and len(marks(svg, "--accent")) == 1


SWEEPS = [
    ("rsp", [0.5, 1.0, 4.0], [[0.6, 0.8], [0.8, 0.9], [0.7, 0.7]], 1.0),
    ("combined", [1.0, 2.0], [[0.5], [0.6]], 2.0),
    ("weighted", [1.0], [[0.5]], 1.0),
]


def test_ratios_have_a_panel_for_each_arm_and_the_chosen_one_is_marked() -> None:
    svg = ratio_curves(SWEEPS)
    seeds = marks(svg, "--faint")
    assert len(seeds) == 6 + 2 + 1
    # 60, 80, 80, 90, 70, 70 per cent, upwards, and ratios evenly apart.
    per_point = (seeds[0][1] - seeds[1][1]) / 20
    assert per_point > 0.5
    assert [(seeds[0][1] - y) / per_point for _, y in seeds[:6]] == pytest.approx([0, 20, 20, 30, 10, 10], abs=0.01)
    assert seeds[2][0] - seeds[0][0] == pytest.approx(seeds[4][0] - seeds[2][0], abs=1e-3)
    # The mean of 80 and 90 at ratio 1, of 60 at 2, of 50 at 1.
    chosen = marks(svg, "--accent")
    assert chosen[0] == pytest.approx((seeds[2][0], seeds[0][1] - 25 * per_point), abs=1e-2)
    assert [place[0] for place in chosen[1:]] == [seeds[7][0], seeds[8][0]]
    assert re.findall(r"font-weight: 700[^>]*>([^<]*)<", svg) == ["1", "2", "1"]
    assert all(f">{name}<" in svg for name, *_ in SWEEPS)
    assert "rsp: best at 1 of 0.5, 1, 4; combined: best at 2 of 1, 2; weighted: best at 1 of 1" in svg
    assert len(marks(ratio_curves(SWEEPS[:1]), "--faint")) == 6


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
    for svg in (accuracies(ARMS), gains(GAINS), ratio_curves(SWEEPS), *curves):
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
