"""The real digits come back from their folder exactly as scikit-learn has them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mvc.errors import DataError
from mvc.tiny import DIGIT_WORDS
from mvc.tiny.digits import stratified_split, write_digits


def test_digits_are_written_and_read_back_exactly(tmp_path: Path) -> None:
    folder = tmp_path / "digits"
    write_digits(folder)
    source = load_digits()
    files = sorted(folder.rglob("*.png"))
    assert len(files) == 1797 and len(list((folder / "train").rglob("*.png"))) == 1000
    for file in files:
        index = int(file.stem)
        assert file.parent.name == DIGIT_WORDS[source.target[index]]
        with Image.open(file) as image:
            assert image.mode == "L" and image.size == (8, 8)
            assert np.array_equal(np.rint(np.asarray(image, dtype=float) * 16 / 255), source.images[index])
    assert {int(file.stem) for file in files} == set(range(1797))
    assert not list(tmp_path.glob(".tmp-*"))


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="is not empty"):
        write_digits(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_the_split_is_stratified() -> None:
    labels = np.asarray(load_digits().target, dtype=np.int64)
    chosen = stratified_split(labels)
    assert chosen.sum() == 1000
    counts, all_counts = np.bincount(labels[chosen]), np.bincount(labels)
    assert np.abs(counts - all_counts * 1000 / 1797).max() < 1
    assert np.array_equal(chosen, stratified_split(labels))
