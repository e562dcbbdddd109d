"""The finished synthetic set on disk: what is read of it, and that other libraries read the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvc.candidates import add_candidates, close_pool, pool_of, put_in_place, write_image
from mvc.errors import DataError
from mvc.synthetic import (
    METADATA,
    REJECTED,
    Candidate,
    read_rejected,
    read_synthetic,
    rejected_folder,
    rows_text,
    synthetic_folder,
    write_rows,
)
from tests.mvc.rows import candidate, pixels_of

CLASSES = ("cat", "big dog")


@pytest.fixture
def rows() -> list[Candidate]:
    tuned = [candidate(name, index) for name in CLASSES for index in range(3)]
    return [*tuned, candidate("cat", 0, "pretrained"), candidate("big dog", 0, "pretrained")]


@pytest.fixture
def run(tmp_path: Path, rows: list[Candidate]) -> Path:
    """A finished set: each third image was refused."""
    pool = pool_of(tmp_path)
    for row in rows:
        row["sha256"] = write_image(pool.accepted, row["file_name"], pixels_of(row))
    add_candidates(pool, rows)
    close_pool(pool, {row["file_name"]: row for row in rows})
    put_in_place(pool, {row["file_name"]: row["index"] != 2 for row in rows})
    scores = {"spread": 70.0, "nearest_train": None}
    kept = [{**row, "scores": scores, "accepted": True} for row in rows if row["index"] != 2]
    refused = [{**row, "scores": scores, "accepted": False, "reasons": ["grey"]} for row in rows if row["index"] == 2]
    write_rows(pool.folder / REJECTED, refused)
    write_rows(pool.accepted / METADATA, kept)
    return tmp_path


def test_what_was_written_is_read_back(run: Path, rows: list[Candidate]) -> None:
    images = read_synthetic(run)
    kept = sorted((row for row in rows if row["index"] != 2), key=lambda row: (row["class_name"], row["id"]))
    assert [image.path.relative_to(synthetic_folder(run)).as_posix() for image in images] == [
        row["file_name"] for row in kept
    ]
    for image, row in zip(images, kept, strict=True):
        with Image.open(image.path) as picture:
            assert np.array_equal(np.asarray(picture), pixels_of(row))
        verdict = {"scores": {"spread": 70.0, "nearest_train": None}, "accepted": True, "reasons": []}
        assert image.row == {**row, **verdict}
        assert (image.class_name, image.source) == (row["class_name"], row["source"])


def test_what_was_refused_is_read_with_its_reasons(run: Path) -> None:
    refused = read_rejected(run)
    assert [(row["file_name"], row["reasons"], row["accepted"]) for row in refused] == [
        (f"{name}/finetuned-00002.png", ["grey"], False) for name in sorted(CLASSES)
    ]
    assert all((rejected_folder(run) / row["file_name"]).is_file() for row in refused)
    assert read_rejected(run / "elsewhere") == []


def test_rows_are_written_in_one_order_and_form(tmp_path: Path, rows: list[Candidate]) -> None:
    write_rows(tmp_path / "rows.jsonl", rows)
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    assert text == rows_text(reversed(rows)) and text.count("\n") == len(rows)
    names = [line.split('"')[3] for line in text.splitlines()]
    assert names == sorted(names)


def test_an_unfinished_set_and_a_missing_image_are_said(run: Path) -> None:
    path = synthetic_folder(run) / "cat" / "finetuned-00001.png"
    path.unlink()
    with pytest.raises(DataError, match="finetuned-00001.png is missing") as caught:
        read_synthetic(run)
    assert "only what is missing is made" in caught.value.do
    (synthetic_folder(run) / METADATA).unlink()
    with pytest.raises(DataError, match="no finished synthetic set"):
        read_synthetic(run)


@pytest.mark.parametrize("place", ["synthetic", "synthetic/train"])
def test_datasets_reads_images_and_labels(
    run: Path, rows: list[Candidate], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    datasets: Any = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    cache = str(run / "cache")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(run / place), cache_dir=cache)["train"]
    assert loaded.num_rows == 6
    for row in loaded:
        own = next(one for one in rows if (one["label"], one["id"]) == (row["label"], row["id"]))
        assert own["index"] != 2 and np.array_equal(np.asarray(row["image"]), pixels_of(own))
        assert row["source_image"] == own["source_image"] and row["caption_partners"] == own["caption_partners"]
        assert (row["plan"] or None) == own["plan"] and row["scores"] == {"spread": 70.0, "nearest_train": None}


def test_torchvision_reads_images_and_labels(run: Path) -> None:
    from torchvision.datasets import ImageFolder

    loaded = ImageFolder(str(synthetic_folder(run)))
    assert loaded.classes == sorted(CLASSES) and len(loaded) == 6
    for path, label in loaded.samples:
        assert Path(path).parent.name == loaded.classes[label]
