"""The picture of docs/multimodal/synchronised.md: two printed characters, and what each change does to all of a pair.

python -m benchmarks.picture_synchronised [--out docs/multimodal/synchronised.png]
"""

from __future__ import annotations

import argparse
import io
import textwrap
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torchvision import tv_tensors

from mvc.multimodal.drawn import random_crop
from mvc.multimodal.paired import PairedSample, corners_of
from mvc.multimodal.policies import Policy, apply_policy, draw_operations
from mvc.multimodal.synchronised import horizontal_flip, rotate
from mvc.randomness import numpy_generator
from mvc.storage import write_bytes
from mvc.tiny.world import COLOURS, draw_character, render

PLACE = Path(__file__).resolve().parents[1] / "docs" / "multimodal" / "synchronised.png"
INKS = tuple(name for name in COLOURS if name != "black")
"""Colours that can be told from the black background."""
_PAPER = (5, 5, 5)
_SEEN = 48
"""Levels by which a pixel has to differ from the background to be part of a character."""
_BOX, _LOST, _INK = "#56B4E9", "#D55E00", "#222222"
"""Of Okabe and Ito."""
_SHOWN, _CROP, _ANGLE, _POLICY = 7, (32, 40), 20.0, Policy(num_ops=3, magnitude=4)
_WANTED = {"horizontal_flip", "shear_x", "brightness"}
"""What the policy's panel shows: a draw of a mirror, another movement and a colour."""


def scene(seed: int, index: int) -> PairedSample:
    """Two characters side by side, 32 x 64 pixels, with a box each and a caption such as "a red 3 left of a blue 7".

    Their colours differ. Randomness: (seed, "world", 2 index and 2 index + 1) and (seed, "scene colours", index).
    """
    inks = numpy_generator(seed, "scene colours", index).permutation(len(INKS))[:2]
    pictures, labels, boxes = [], [], []
    for side, ink in enumerate(inks):
        name = INKS[int(ink)]
        drawn = replace(draw_character(seed, 2 * index + side), ink=COLOURS[name], paper=_PAPER)
        picture = render(drawn)
        seen = np.abs(picture.astype(int) - _PAPER).max(axis=2) > _SEEN
        rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
        boxes.append([columns[0] + 32 * side, rows[0], columns[-1] + 1 + 32 * side, rows[-1] + 1])
        pictures.append(picture)
        labels.append(f"{name} {drawn.digit}")
    image = Image.fromarray(np.concatenate(pictures, axis=1))
    return PairedSample(
        image,
        f"{_article(labels[0])} left of {_article(labels[1])}",
        boxes=tv_tensors.BoundingBoxes(np.array(boxes, np.float32), format="XYXY", canvas_size=(32, 64)),
        labels=labels,
    )


def _article(label: str) -> str:
    return f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def _panels() -> list[tuple[str, PairedSample]]:
    sample = scene(0, _SHOWN)
    # The first draw that loses a character, to show what is said of it.
    index = next(one for one in range(100) if random_crop(sample, _CROP, 0, one).dropped)
    policy = next(one for one in range(1000) if _WANTED <= {drawn.name for drawn in draw_operations(_POLICY, 0, one)})
    return [
        ("the pair", sample),
        ("horizontal_flip", horizontal_flip(sample)),
        (f"rotate, {_ANGLE:g} degrees", rotate(sample, _ANGLE)),
        ("random_crop", random_crop(sample, _CROP, 0, index)),
        ("random_crop, attempts=20", random_crop(sample, _CROP, 0, index, attempts=20, min_visible=0.4)),
        (f"apply_policy, N = {_POLICY.num_ops}, M = {_POLICY.magnitude}", apply_policy(sample, _POLICY, 0, policy)),
    ]


def _draw(axes: Axes, title: str, sample: PairedSample) -> None:
    height, width = sample.size
    axes.imshow(np.asarray(sample.image), extent=(0, width, height, 0), interpolation="nearest")
    for left, top, right, bottom in corners_of(sample.boxes).tolist():
        axes.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, color=_BOX, linewidth=1.6))
    axes.set_xlim(0, 64)
    axes.set_axis_off()
    axes.set_title(title, loc="left", fontsize=10)
    axes.text(0, height + 2, textwrap.fill(sample.caption, 34), va="top", fontsize=10)
    if sample.dropped:
        axes.text(0, height + 8, f"dropped: {', '.join(map(str, sample.dropped))}", va="top", fontsize=10, color=_LOST)


def picture() -> bytes:
    """The PNG's bytes; the same each time on one machine."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"text.color": _INK, "text.parse_math": False})
        figure = Figure(figsize=(9.6, 4.9), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, sample) in zip(figure.subplots(2, 3).flat, _panels(), strict=True):
            _draw(axes, title, sample)
        content = io.BytesIO()
        figure.savefig(content, format="png", dpi=100, metadata={"Software": None})
    return content.getvalue()


def main(arguments: list[str] | None = None) -> None:
    """Draw and write."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture_synchronised", description=__doc__)
    parser.add_argument("--out", type=Path, default=PLACE)
    write_bytes(parser.parse_args(arguments).out, picture())


if __name__ == "__main__":
    main()
