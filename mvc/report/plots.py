"""Plots as inline SVG that takes its colours and its font from the page, in light and in dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

INK, FAINT, REAL, OTHER = "#010203", "#010204", "#010205", "#010206"
_VARIABLES = {INK: "--ink", FAINT: "--faint", REAL: "--real", OTHER: "--accent"}
"""Stand-in colours, replaced by variables of the page's style sheet once the plot is drawn."""
WIDTH = 420
"""Width of a plot in its own units; narrow, so that its text stays readable on a telephone."""
MOST_POINTS = 800
"""Raw losses that are drawn; of longer logs every so many-th one."""
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mvc",
    "text.parse_math": False,
    "font.size": 12,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
}


def smooth(values: Sequence[float], window: int) -> NDArray[np.float64]:
    """Centred moving mean; at both ends of the values that are there.

    Args:
        values: (n), finite.
        window: odd number of values, at least 1.
    """
    sums = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    places = np.arange(len(values))
    low, high = np.maximum(places - window // 2, 0), np.minimum(places + window // 2 + 1, len(values))
    mean: NDArray[np.float64] = (sums[high] - sums[low]) / (high - low)
    return mean


def loss_curve(
    steps: Sequence[int],
    losses: Sequence[float],
    validated: Sequence[int] = (),
    validation: Sequence[float] = (),
) -> str:
    """The loss over the training steps: raw values as points, their moving mean over 1/20 of them as a line.

    Args:
        steps: (n) with n >= 1, ascending.
        losses: (n), finite.
        validated: (v) steps of the validation loss, ascending; drawn as a line with points of its own.
        validation: (v), finite.
    """
    window = 2 * (len(losses) // 40) + 1
    every = -(-len(losses) // MOST_POINTS)
    mean = smooth(losses, window)
    with _style():
        figure, axes = _figure(300)
        axes.plot(steps[::every], losses[::every], "o", color=FAINT, markersize=2.2, markeredgewidth=0)
        axes.plot(steps[::every], mean[::every], color=OTHER, linewidth=2, label="training, moving mean")
        label = f"Loss over {len(losses)} logged steps; moving mean {mean[0]:.3g} at first, {mean[-1]:.3g} at last"
        if len(validated):
            axes.plot(
                validated,
                validation,
                "-o",
                color=REAL,
                linewidth=2,
                markersize=5,
                markeredgewidth=0,
                label="validation",
            )
            axes.legend(frameon=False)
            least = int(np.argmin(validation))
            label += f"; validation loss {validation[0]:.3g} at first, {validation[-1]:.3g} at last"
            label += f", least {validation[least]:.3g} at step {validated[least]}"
        axes.set_ylim(bottom=0)
        axes.set_xlabel("step")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        return _svg(figure, "loss", label)


def timestep_curve(early: Sequence[float | None], late: Sequence[float | None]) -> str:
    """Mean loss in each part of the noise schedule, at the beginning and at the end of the training, on a log scale.

    Args:
        early: (b), one for each of b equal parts of the schedule, positive; None where there is none.
        late: (b), likewise.
    """
    with _style():
        figure, axes = _figure(300)
        places = (np.arange(len(early)) + 0.5) * 100 / len(early)
        for values, colour, label in ((early, FAINT, "first fifth of the steps"), (late, OTHER, "last fifth")):
            heights = np.array([np.nan if not value else value for value in values], dtype=np.float64)
            axes.plot(places, heights, "-o", color=colour, linewidth=2, markersize=5, markeredgewidth=0, label=label)
        axes.set_yscale("log")
        # Figures such as 0.05, whatever the range: powers of ten alone would leave most of these plots without any.
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlim(0, 100)
        axes.set_xlabel("timestep, per cent of the noise schedule")
        axes.set_ylabel("loss")
        axes.legend(frameon=False)
        ends = "; ".join(
            f"{name} {_told(values)}" for name, values in (("at the beginning", early), ("at the end", late))
        )
        return _svg(figure, "timesteps", f"Loss from the least noise to the most: {ends}")


def _told(values: Sequence[float | None]) -> str:
    return ", ".join("none" if value is None else f"{value:.3g}" for value in values)


def accuracies(arms: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Test accuracy of each arm: one dot a seed, a bar at the mean, a dashed line at the mean of `real`.

    Args:
        arms: name and accuracies in [0, 1], one a seed; at least one arm.
    """
    with _style():
        figure, axes = _figure(90 + 34 * len(arms))
        for row, (arm, values) in enumerate(arms):
            colour, shares = _colour(arm), 100 * np.asarray(values, dtype=np.float64)
            if arm == "real":
                axes.axvline(float(shares.mean()), color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
            axes.plot(shares, _spread(row, len(shares)), "o", color=colour, markersize=6, alpha=0.6, markeredgewidth=0)
            axes.vlines(float(shares.mean()), row - 0.3, row + 0.3, color=colour, linewidth=2.5)
        axes.set_yticks(range(len(arms)), [arm for arm, _ in arms])
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("test accuracy, per cent")
        means = "; ".join(f"{arm} {100 * float(np.mean(values)):.1f}" for arm, values in arms)
        return _svg(figure, "accuracy", f"Test accuracy in per cent, mean over seeds: {means}")


def gains(arms: Sequence[tuple[str, float, float | None, float | None]], chosen: str = "") -> str:
    """What each arm gains over its reference, with the 95 % interval as a line, and a dashed line at no gain.

    Args:
        arms: name, difference of accuracies, low and high end of its interval, as shares; without ends only a dot is
            drawn. At least one arm.
        chosen: name of the arm that is written in bold.
    """
    with _style():
        figure, axes = _figure(90 + 34 * len(arms))
        axes.axvline(0, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), zorder=0)
        for row, (arm, difference, low, high) in enumerate(arms):
            colour = _colour(arm)
            if low is not None and high is not None:
                axes.hlines(row, 100 * low, 100 * high, color=colour, linewidth=2)
                axes.vlines([100 * low, 100 * high], row - 0.12, row + 0.12, color=colour, linewidth=2)
            axes.plot([100 * difference], [row], "o", color=colour, markersize=8, markeredgewidth=0)
        axes.set_yticks(range(len(arms)), [arm for arm, *_ in arms])
        for label in axes.get_yticklabels():
            label.set_fontweight("bold" if label.get_text() == chosen else "normal")
        axes.set_ylim(len(arms) - 0.5, -0.5)
        axes.margins(x=0.08)
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.set_xlabel("gain in points of test accuracy")
        told = "; ".join(
            f"{arm} {100 * difference:+.1f}"
            + ("" if low is None or high is None else f" ({100 * low:+.1f} to {100 * high:+.1f})")
            for arm, difference, low, high in arms
        )
        return _svg(figure, "gains", f"Gain in points with its 95 % interval: {told}")


def ratio_curves(sweeps: Sequence[tuple[str, Sequence[float], Sequence[Sequence[float]], float]]) -> str:
    """Validation accuracy at each ratio that was tried, a small plot for each arm: dots are seeds, the line their mean.

    Args:
        sweeps: name of the arm, ascending ratios, accuracies in [0, 1] at each of them, the chosen ratio; at least one.
    """
    columns = min(2, len(sweeps))
    rows = -(-len(sweeps) // columns)
    with _style():
        figure = Figure(figsize=(WIDTH / 72, (60 + 160 * rows) / 72), layout="constrained")
        figure.patch.set_visible(False)
        panels = list(figure.subplots(rows, columns, sharey=True, squeeze=False).flat)
        for axes in panels[len(sweeps) :]:
            axes.remove()
        for axes, (arm, ratios, accuracies, chosen) in zip(panels, sweeps, strict=False):
            places, means = np.arange(len(ratios)), [100 * float(np.mean(own)) for own in accuracies]
            for place, own in zip(places, accuracies, strict=True):
                dots = 100 * np.asarray(own, dtype=np.float64)
                axes.plot([place] * len(own), dots, "o", color=FAINT, markersize=4, alpha=0.6, markeredgewidth=0)
            axes.plot(places, means, "-", color=OTHER, linewidth=2)
            best = list(ratios).index(chosen)
            axes.plot([best], [means[best]], "D", color=OTHER, markersize=9, markeredgewidth=0)
            axes.set_xticks(places, [f"{ratio:g}" for ratio in ratios])
            axes.get_xticklabels()[best].set_fontweight("bold")
            axes.margins(x=0.12, y=0.1)
            axes.set_title(arm, fontsize=12)
            axes.yaxis.set_major_locator(MaxNLocator(4))
        figure.supxlabel("synthetic images for each real one", fontsize=12)
        figure.supylabel("validation accuracy, per cent", fontsize=12)
        told = "; ".join(
            f"{arm}: best at {chosen:g} of {', '.join(f'{r:g}' for r in ratios)}" for arm, ratios, _, chosen in sweeps
        )
        return _svg(figure, "ratios", f"Validation accuracy by ratio: {told}")


def _colour(arm: str) -> str:
    """Of an arm that sees synthetic images, or of one that does not."""
    return REAL if arm.startswith(("real", "duplicate")) else OTHER


def _spread(row: int, count: int) -> NDArray[np.float64]:
    """Heights of an arm's dots: a little apart, so that equal accuracies do not hide each other."""
    return row + (np.linspace(-0.15, 0.15, count) if count > 1 else np.zeros(count))


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's defaults and `_STYLE`, whatever style file the user has; put back at the end."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def _figure(height: int) -> tuple[Figure, Axes]:
    # An SVG unit is 1/72 inch to matplotlib.
    figure = Figure(figsize=(WIDTH / 72, height / 72), layout="constrained")
    figure.patch.set_visible(False)
    return figure, figure.add_subplot()


def _svg(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element for use inside a page; equal figures give equal text."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # This style would reach out of the plot; the page's own style sheet holds it, for plots alone.
    text = re.sub(r"<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None, "matplotlib writes a viewBox"
    opening = f'<svg class="plot" role="img" aria-label="{html.escape(label)}" {view.group()}>'
    text = opening + text[text.index(">") + 1 :]
    # Names must differ between the plots of one page.
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text).replace("xlink:href", "href")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.strip()
