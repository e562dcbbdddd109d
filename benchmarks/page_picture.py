"""What the scripts that draw the pictures of the documentation's pages share: their command line, and the file."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

PAGES = Path(__file__).resolve().parent.parent / "docs" / "multimodal"


def write_picture(name: str, about: str | None, picture: Callable[[], Figure], dots: int) -> None:
    """Draw a picture with matplotlib's own settings, whatever the user's, and write it: the same bytes each time.

    Args:
        name: of the page, and of its picture.
        about: what `--help` says.
        picture: draws it.
        dots: per inch.
    """
    options = argparse.ArgumentParser(prog=f"python -m benchmarks.picture_{name}", description=about)
    options.add_argument("--out", type=Path, default=PAGES / f"{name}.png", help="the file to write")
    place = options.parse_args().out
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        picture().savefig(place, dpi=dots, metadata={"Software": None})
