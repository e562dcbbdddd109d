"""The synthetic set on disk: what is kept, what is refused, and that other libraries read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mvc.errors import DataError, EnvironmentFault
from mvc.synthetic import (
    METADATA,
    PARTIAL,
    Recipe,
    SyntheticRow,
    add_rows,
    begin_set,
    finished_rows,
    is_finished,
    publish_set,
    read_synthetic,
    synthetic_folder,
    write_image,
)

CLASSES = ("cat", "big dog")


def recipe(class_name: str, index: int, source: str = "finetuned", scale: float = 2.0) -> Recipe:
    tuned = source == "finetuned"
    return Recipe(
        file_name=f"{class_name}/{source}-{index:05d}.png",
        label=class_name,
        id=f"{source}-{index:05d}",
        source=source,
        class_name=class_name,
        source_image=f"train/{class_name}/1.png" if tuned else None,
        caption_base=f"train/{class_name}/0.png",
        plan={"base": 0, "coarse": [[1, 2, 9]], "fine": []} if tuned else None,
        seed=0,
        index=index,
        guidance="paper",
        guidance_scale=scale,
        image_guidance_scale=None,
        num_inference_steps=4,
        scheduler="ddim",
        image_size=8,
        model="abc",
    )


def pixels_of(recipe: Recipe) -> np.ndarray:
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8) + recipe["index"]
    return np.stack([grey, grey, grey + CLASSES.index(recipe["class_name"])], axis=-1)


def write(folder: Path, recipes: list[Recipe]) -> dict[str, SyntheticRow]:
    rows = {}
    for item in recipes:
        sha256 = write_image(folder, item["file_name"], pixels_of(item))
        rows[item["file_name"]] = SyntheticRow(**item, attempt=1, sha256=sha256)
    return rows


@pytest.fixture
def recipes() -> list[Recipe]:
    tuned = [recipe(name, index) for name in CLASSES for index in range(3)]
    return [*tuned, recipe("cat", 0, "pretrained"), recipe("big dog", 0, "pretrained")]


@pytest.fixture
def run(tmp_path: Path, recipes: list[Recipe]) -> Path:
    folder = synthetic_folder(tmp_path)
    begin_set(folder, {})
    rows = write(folder, recipes)
    add_rows(folder, list(rows.values()))
    publish_set(folder, recipes, rows)
    return tmp_path


def test_what_was_written_is_read_back(run: Path, recipes: list[Recipe]) -> None:
    images = read_synthetic(run)
    assert [image.path.relative_to(synthetic_folder(run)).as_posix() for image in images] == sorted(
        item["file_name"] for item in recipes
    )
    for image in images:
        item = next(item for item in recipes if item["file_name"] == image.row["file_name"])
        with Image.open(image.path) as picture:
            assert np.array_equal(np.asarray(picture), pixels_of(item))
        assert image.row == {**item, "attempt": 1, "sha256": image.row["sha256"]}
        assert (image.class_name, image.source) == (item["class_name"], item["source"])
    assert not (synthetic_folder(run) / PARTIAL).exists()


def test_only_equal_recipes_with_whole_files_are_kept(run: Path, recipes: list[Recipe]) -> None:
    folder = synthetic_folder(run)
    names = [item["file_name"] for item in recipes]
    assert list(finished_rows(folder, recipes)) == sorted(names)
    (folder / names[0]).unlink()
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-1])
    changed = [*recipes[:2], recipe("cat", 2, scale=3.0), *recipes[3:]]
    assert set(finished_rows(folder, changed)) == set(names[3:])


def test_a_row_cut_short_by_a_kill_is_dropped(tmp_path: Path, recipes: list[Recipe]) -> None:
    folder = synthetic_folder(tmp_path)
    begin_set(folder, {})
    rows = write(folder, recipes)
    add_rows(folder, [rows[item["file_name"]] for item in recipes[:4]])
    content = (folder / PARTIAL).read_bytes()
    (folder / PARTIAL).write_bytes(content[:-20])
    assert set(finished_rows(folder, recipes)) == {item["file_name"] for item in recipes[:3]}
    add_rows(folder, [rows[recipes[4]["file_name"]]])
    assert set(finished_rows(folder, recipes)) == {recipes[number]["file_name"] for number in (0, 1, 2, 4)}
    with pytest.raises(DataError, match="no finished synthetic set"):
        read_synthetic(tmp_path)


def test_an_open_set_is_not_finished(run: Path, recipes: list[Recipe]) -> None:
    folder = synthetic_folder(run)
    rows = finished_rows(folder, recipes)
    assert is_finished(folder, rows, recipes)
    begin_set(folder, rows)
    assert not (folder / METADATA).exists() and not is_finished(folder, rows, recipes)
    assert finished_rows(folder, recipes) == rows


def test_publishing_proves_that_all_is_there_and_removes_what_is_not_wanted(run: Path, recipes: list[Recipe]) -> None:
    folder = synthetic_folder(run)
    rows = finished_rows(folder, recipes)
    cats = [item for item in recipes if item["class_name"] == "cat"]
    kept = {item["file_name"]: rows[item["file_name"]] for item in cats}
    publish_set(folder, cats, kept)
    assert sorted(path.name for path in folder.iterdir()) == ["cat", METADATA]
    assert [image.class_name for image in read_synthetic(run)] == ["cat"] * 4
    (folder / cats[1]["file_name"]).write_bytes(b"something else")
    with pytest.raises(EnvironmentFault, match="finetuned-00001.png is not there") as caught:
        publish_set(folder, cats, kept)
    assert "not what was written" in caught.value.why
    (folder / cats[1]["file_name"]).unlink()
    with pytest.raises(DataError, match="finetuned-00001.png is missing"):
        read_synthetic(run)


def test_datasets_reads_images_and_labels(run: Path, recipes: list[Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    cache = str(run / "cache")
    loaded = datasets.load_dataset("imagefolder", data_dir=str(run / "synthetic"), cache_dir=cache)["train"]
    assert loaded.num_rows == len(recipes)
    for row in loaded:
        item = next(item for item in recipes if (item["label"], item["id"]) == (row["label"], row["id"]))
        assert np.array_equal(np.asarray(row["image"]), pixels_of(item))
        assert row["source_image"] == item["source_image"]
        assert (row["plan"] or None) == item["plan"]


def test_torchvision_reads_images_and_labels(run: Path, recipes: list[Recipe]) -> None:
    from torchvision.datasets import ImageFolder

    loaded = ImageFolder(str(synthetic_folder(run)))
    assert loaded.classes == sorted(CLASSES) and len(loaded) == len(recipes)
    for path, label in loaded.samples:
        assert Path(path).parent.name == loaded.classes[label]
