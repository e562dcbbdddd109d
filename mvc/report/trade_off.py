"""The trade-off of `mvc tune` as a picture: class agreement against nearness to the training images."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox

from mvc.progress import say
from mvc.storage import write_bytes

_FRONT, _OTHER, _REAL, _INK, _FAINT = "#0072B2", "#D55E00", "#009E73", "#222222", "#999999"
"""Of Okabe and Ito, which can be told apart with any eyes; the shapes differ too."""
_DOTS = 130
"""Pixels an inch."""
_WRAP = 54
"""Letters a line of the list of points."""
_FIXED = "\N{NO-BREAK SPACE}"
_STYLE: dict[Any, Any] = {"text.parse_math": False, "font.size": 11, "text.color": _INK, "axes.labelcolor": _INK}
_PLACES = [(radius, angle) for radius in (13, 22, 34, 48) for angle in range(45, 405, 45)]
"""Where a number may stand beside its dot, in points and degrees: the first place that is free."""


def write_trade_off(path: Path, summary: Mapping[str, Any]) -> bool:
    """Draw the points of tune.json as numbered dots with their standard errors, and list their settings beside them.

    Args:
        path: the PNG file; an old one is removed where nothing can be drawn.
        summary: as in tune.json.

    Returns:
        whether there is something to draw: a point that has both figures.

    Raises:
        EnvironmentFault: the place cannot be written.
    """
    drawn = [point for point in summary["points"] if None not in (point["class_agreement"], point["distance_ratio"])]
    if not drawn:
        path.unlink(missing_ok=True)
        say("tune: no plot, because no point has both a class agreement and a distance ratio")
        return False
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        write_bytes(path, _picture(drawn, summary["real"]["validation"]["class_agreement"]))
    return True


def _picture(points: Sequence[Mapping[str, Any]], unseen: float | None) -> bytes:
    lines = [_listed(point) for point in points]
    rows = sum(text.count("\n") + 1 for text in lines)
    figure = Figure(figsize=(10.5, max(5.2, 0.19 * rows + 0.6)), layout="constrained")
    FigureCanvasAgg(figure)
    axes, beside = figure.subplots(1, 2, width_ratios=(1.7, 1))
    _draw_dots(axes, points)
    _draw_real(axes, unseen)
    axes.set_xlabel("distance to the nearest training image, unseen real images = 1")
    axes.set_ylabel("read as their class, per cent")
    axes.spines[["top", "right"]].set_visible(False)
    beside.axis("off")
    beside.text(0, 1, "\n".join(lines), va="top", fontsize=9, transform=beside.transAxes)
    figure.legend(loc="outside lower left", ncols=3, frameon=False, fontsize=9.5)
    figure.draw_without_rendering()
    _number_dots(axes, points)
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=_DOTS, metadata={"Software": None})
    return content.getvalue()


def _listed(point: Mapping[str, Any]) -> str:
    """Number and settings of a point; lines break between settings."""
    settings = [setting.replace(" ", _FIXED) for setting in str(point["label"]).split(", ")]
    head = f"{point['number']:>2}".replace(" ", _FIXED)
    return textwrap.fill(f"{head}{_FIXED * 2}{', '.join(settings)}", _WRAP, subsequent_indent=_FIXED * 6)


def _place(point: Mapping[str, Any]) -> tuple[float, float]:
    return point["distance_ratio"], 100 * point["class_agreement"]


def _draw_dots(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    labels = {True: "on the front of agreement, coverage, distance", False: "another point is better"}
    for front, colour, shape in ((True, _FRONT, "o"), (False, _OTHER, "s")):
        own = [point for point in points if bool(point["front"]) is front]
        if not own:
            continue
        x, y = np.array([_place(point) for point in own]).T
        across = [point["distance_ratio_error"] or 0.0 for point in own]
        along = [100 * point["class_agreement_error"] for point in own]
        axes.errorbar(x, y, xerr=across, yerr=along, fmt="none", ecolor=colour, alpha=0.3, zorder=1)
        face = colour if front else "white"
        axes.plot(x, y, shape, color=colour, markerfacecolor=face, markersize=8, label=labels[front])


def _draw_real(axes: Axes, unseen: float | None) -> None:
    """Where unseen real images are: a line at their distance, another at how often they are read as their class."""
    low, high = axes.get_xlim()
    room = 0.06 * (max(high, 1) - min(low, 1))
    axes.set_xlim(min(low, 1 - room), max(high, 1 + room))
    axes.axvline(1, color=_REAL, linewidth=1.5, linestyle=(0, (5, 3)), zorder=0, label="unseen real images")
    if unseen is not None:
        axes.axhline(100 * unseen, color=_REAL, linewidth=1.5, linestyle=(0, (5, 3)), zorder=0)
    # Standard errors reach above 100 per cent; the axis need not.
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, -2), min(max(top, 100 * (unseen or 0) + 2), 102))
    axes.annotate(
        "nearer than unseen real images",
        (1, 0),
        (-4, 6),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="right",
        va="bottom",
        rotation=90,
        fontsize=9,
        color=_REAL,
        zorder=0,
    )


def _number_dots(axes: Axes, points: Sequence[Mapping[str, Any]]) -> None:
    """Write each point's number where neither a dot nor another number is."""
    figure = axes.get_figure()
    assert figure is not None, "the axes are in a figure"
    scale = figure.dpi / 72
    centres = axes.transData.transform([_place(point) for point in points])
    taken = [Bbox.from_bounds(x - 6 * scale, y - 6 * scale, 12 * scale, 12 * scale) for x, y in centres]
    for point, centre in zip(points, centres, strict=True):
        width = 7.5 * len(str(point["number"])) * scale
        best = None
        for radius, angle in _PLACES:
            offset = radius * np.array([np.cos(np.radians(angle)), np.sin(np.radians(angle))])
            x, y = centre + offset * scale
            box = Bbox.from_bounds(x - width / 2, y - 6 * scale, width, 12 * scale)
            if best is None or not any(box.overlaps(other) for other in taken):
                best = (offset, box)
                if not any(box.overlaps(other) for other in taken):
                    break
        assert best is not None, "there are places"
        taken.append(best[1])
        far = float(np.hypot(*best[0])) > 30
        axes.annotate(
            str(point["number"]),
            _place(point),
            (float(best[0][0]), float(best[0][1])),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=10,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.8} if far else None,
        )
