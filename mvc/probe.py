"""Every image of a folder is read once in full: its facts, or the reason why it cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import imagehash
from PIL import Image

from mvc.errors import DataError
from mvc.images import decode_with_mode
from mvc.progress import meter
from mvc.stopping import flag
from mvc.storage import sha256_file

THREADS = 2
"""Pillow and hashlib release the interpreter lock, so threads do; more than two gain little."""


@dataclass(frozen=True)
class ImageFacts:
    """What one reading of an image file tells.

    Attributes:
        sha256: of the file's bytes.
        width, height: in pixels, upright (after EXIF rotation).
        mode: Pillow's mode of the file as stored.
        phash: 64-bit perceptual hash of the decoded image as 16 hexadecimal digits (Zauner 2010).
        note: what is odd about it, though it can be used; mostly empty.
    """

    sha256: str
    width: int
    height: int
    mode: str
    phash: str
    note: str


def probe(path: Path, background: str) -> ImageFacts:
    """Decode one image in full and return its facts.

    Raises:
        DataError: it cannot be decoded by the rules of `mvc.images`.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path!a} cannot be used", why="its path is not UTF-8 text", do="rename it") from error
    image, mode = decode_with_mode(path, background)
    # decode() proved the file to be readable an instant ago.
    return ImageFacts(
        sha256=sha256_file(path),
        width=image.width,
        height=image.height,
        mode=mode,
        phash=str(imagehash.phash(image)),
        note=_note(image, mode),
    )


def _note(image: Image.Image, mode: str) -> str:
    low, high = image.convert("L").getextrema()
    if mode.startswith("I;16") and isinstance(high, int) and high < 16:
        return "16-bit values stay below 4096, so the image is nearly black"
    return "one colour only" if low == high else ""


def probe_all(root: Path, paths: Sequence[str], background: str) -> tuple[dict[str, ImageFacts], dict[str, str]]:
    """Probe many images and show the progress.

    Args:
        root: the data folder.
        paths: relative to `root`.
        background: colour behind transparent pixels.

    Returns:
        Facts of the good ones and reasons of the bad ones, both by path and in the order of `paths`.

    Raises:
        Stopped: a signal came.
    """

    def attempt(path: str) -> ImageFacts | str:
        try:
            return probe(root / path, background)
        except DataError as error:
            return error.why

    good: dict[str, ImageFacts] = {}
    bad: dict[str, str] = {}
    workers = ThreadPoolExecutor(THREADS)
    try:
        with meter("checking images", len(paths), "images") as shown:
            for path, result in zip(paths, workers.map(attempt, paths), strict=True):
                if isinstance(result, str):
                    bad[path] = result
                else:
                    good[path] = result
                shown.advance()
                flag.check("nothing of the data stage needs saving")
    finally:
        workers.shutdown(cancel_futures=True)
    return good, bad
