"""scikit-learn's real handwritten digits, written as an ordinary folder of class folders.

They are the demo's data set: none of them is ever used to train anything in `mvc.tiny`.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from mvc.errors import DataError
from mvc.randomness import numpy_generator
from mvc.tiny import DIGIT_WORDS

TRAIN_COUNT = 1000
"""Images in train/; the other 797 of the 1,797 are in test/."""


def digit_images() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Return the 1,797 real digits.

    Returns:
        Images of shape (1797, 8, 8), uint8, the source's 0..16 scaled to 0..255 (rounded); and labels of
        shape (1797,), int64, 0..9. Source: the test part of the UCI "Optical Recognition of Handwritten
        Digits" set, as scikit-learn ships it.
    """
    source = load_digits()
    images = np.rint(source.images * (255 / 16)).astype(np.uint8)
    return images, source.target.astype(np.int64)


def stratified_split(labels: NDArray[np.int64], train_count: int = TRAIN_COUNT) -> NDArray[np.bool_]:
    """Mark the training images; every class gives its share, to within one image.

    Randomness: (0, "digits split"). The shares are rounded by largest remainder, so that they add up.

    Returns:
        Bool array of the length of `labels`, True where an image belongs to train.
    """
    random = numpy_generator(0, "digits split")
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * (train_count / len(labels))
    shares = np.floor(exact).astype(np.int64)
    largest_remainders = np.argsort(-(exact - shares), kind="stable")[: train_count - int(shares.sum())]
    shares[largest_remainders] += 1
    chosen = np.zeros(len(labels), dtype=np.bool_)
    for label, share in zip(classes, shares, strict=True):
        members = np.flatnonzero(labels == label)
        chosen[random.permutation(members)[:share]] = True
    return chosen


def write_digits(folder: Path) -> None:
    """Write the digits as 8-bit grey PNG files of 8x8 pixels, `folder/{train,test}/<word>/<index>.png`.

    The index is the image's place in scikit-learn's order. The folder appears whole or not at all.

    Args:
        folder: a folder that doesn't exist yet, or is empty.

    Raises:
        DataError: the folder exists and holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is not empty", why="the digits are written as a whole", do="name a new folder")
    images, labels = digit_images()
    in_train = stratified_split(labels)
    temporary = folder.with_name(f".tmp-{os.getpid()}-{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            place = temporary / ("train" if in_train[index] else "test") / DIGIT_WORDS[int(label)]
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(place / f"{index:04d}.png")
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
