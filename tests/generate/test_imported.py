"""Images of another tool: found by class, brought to size, filtered like ours, and their folder never changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvc.candidates import pool_of, read_candidates
from mvc.errors import ConfigError, DataError
from mvc.generate import drawing
from mvc.generate.filter_stage import run_filter
from mvc.generate.imported import find_imported, read_imported
from mvc.generate.stage import run_generate
from mvc.storage import read_json, sha256_file
from mvc.synthetic import read_rejected, read_synthetic
from tests.folders import sha256_folder
from tests.generate.toy_run import contents, experiment, picture, real_picture, write_run
from tests.tiny_parts import IMAGE_SIZE

CLASSES, THEIRS = ["big dog", "café", "cat"], {"big dog": "big dog", "café": "coffee house", "cat": "cat"}


def save(path: Path, *number: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(real_picture(9, *number)).save(path)
    return path


def test_class_folders_are_found_by_name_or_words_at_any_depth(tmp_path: Path) -> None:
    names = ["cat/b.png", "cat/deep/er/a.png", "big dog/x.webp", "cafe\u0301/1.png", "coffee house/2.jpg", "stray.png"]
    for number, name in enumerate(names):
        save(tmp_path / name, number)
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    save(tmp_path / ".hidden" / "x.png", 9)
    found = find_imported(tmp_path, CLASSES, THEIRS)
    assert found.files == {
        "big dog": ["big dog/x.webp"],
        "café": ["cafe\u0301/1.png", "coffee house/2.jpg"],
        "cat": ["cat/b.png", "cat/deep/er/a.png"],
    }


def test_a_train_folder_is_looked_into_unless_it_is_a_class(tmp_path: Path) -> None:
    save(tmp_path / "train" / "cat" / "1.png", 1)
    save(tmp_path / "rejected" / "cat" / "2.png", 2)
    assert find_imported(tmp_path, CLASSES, {}).files["cat"] == ["cat/1.png"]
    assert find_imported(tmp_path, ["rejected", "train"], {}).files["train"] == ["train/cat/1.png"]


def test_what_cannot_be_imported_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere is not a folder"):
        find_imported(tmp_path / "nowhere", CLASSES, THEIRS)
    (tmp_path / "cat").mkdir()
    save(tmp_path / "stray.png", 1)
    with pytest.raises(DataError, match="holds no image of any class"):
        find_imported(tmp_path, CLASSES, THEIRS)
    save(tmp_path / "Cat" / "1.png", 1)
    save(tmp_path / "cow\u202e" / "1.png", 1)
    with pytest.raises(DataError, match=r"folders that are no class: \n  Cat\n  cow\\u202e") as caught:
        find_imported(tmp_path, CLASSES, THEIRS)
    assert "the classes are" in caught.value.why and "big dog" in caught.value.why


def test_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = bytes(tmp_path / "cat") + b"/\xff.png"
    save(tmp_path / "cat" / "1.png", 1)
    with open(path, "wb") as file:
        file.write(b"")
    with pytest.raises(DataError, match="has names that are not UTF-8"):
        find_imported(tmp_path, CLASSES, THEIRS)


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path) -> None:
    save(tmp_path / "secret" / "1.png", 1)
    save(tmp_path / "theirs" / "cat" / "1.png", 2)
    (tmp_path / "theirs" / "cat" / "2.png").symlink_to(tmp_path / "secret" / "1.png")
    assert find_imported(tmp_path / "theirs", CLASSES, THEIRS).files["cat"] == ["cat/1.png"]


def test_an_image_is_brought_to_size_as_real_ones_are(tmp_path: Path) -> None:
    # White beside a red square in the middle; only the square is left.
    wide = np.full((32, 96, 3), 255, np.uint8)
    wide[:, 32:64] = (255, 0, 0)
    (tmp_path / "cat").mkdir()
    Image.fromarray(wide).save(tmp_path / "cat" / "1.png")
    pixels = read_imported(find_imported(tmp_path, CLASSES, THEIRS), "cat/1.png", 16, "white")
    assert pixels.shape == (16, 16, 3) and pixels.dtype == np.uint8
    assert np.abs(pixels[:, 2:-2].astype(int) - (255, 0, 0)).max() <= 1


IMPORT: dict[str, Any] = {"sources": {"import": 1.0}, "preview": 2}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run without a fine-tuned model, and a folder of 6 cats and 3 dogs beside it."""
    for name, count in {"cat": 6, "dog": 3}.items():
        for number in range(count):
            save(tmp_path / "theirs" / name / f"{number}.png", len(name) + ord(name[0]), number)
    return write_run(tmp_path / "run", held_out=1, tuned=False)


def generate(run: Path, looks: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """Both stages, as `mvc generate` does them; returns the summary."""
    settings = {**IMPORT, "import_path": str(run.parent / "theirs"), **changes}
    run_generate(run, experiment(run, looks, **settings))
    run_filter(run, experiment(run, looks, **settings))
    summary: dict[str, Any] = read_json(run / "synthetic" / "summary.json")
    return summary


def test_a_folder_becomes_a_set_without_any_model(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = sha256_folder(run.parent / "theirs")
    monkeypatch.setattr(drawing, "load_source", lambda *arguments: pytest.fail("a model was loaded"))
    summary = generate(run, per_class=3)
    assert summary["accepted"] == summary["wanted"] == 6 and not (run / "preview").exists()
    for image in read_synthetic(run):
        row, path = image.row, run.parent / "theirs" / str(image.row["imported_file"])
        assert row["imported_file"] == f"{image.class_name}/{row['index']}.png" and row["model"] == sha256_file(path)
        assert (row["id"], row["source"]) == (f"import-{row['index']:05d}", "import")
        assert picture(image.path).shape == (IMAGE_SIZE, IMAGE_SIZE, 3)
        assert row["seed"] == 5 and row["guidance_scale"] is None and row["caption_base"] is None
    made = contents(run)
    assert generate(run, per_class=3)["drawn"] == 6 and contents(run) == made
    assert sha256_folder(run.parent / "theirs") == before


def test_too_few_files_are_a_shortfall_and_not_padded(run: Path) -> None:
    summary = generate(run, per_class=5)
    assert summary["shortfall"] == {"dog": 2} and summary["accepted"] == summary["drawn"] == 8
    # New files fill it.
    save(run.parent / "theirs" / "dog" / "z.png", 77)
    save(run.parent / "theirs" / "dog" / "zz.png", 78)
    assert generate(run, per_class=5)["shortfall"] == {}


def test_copies_and_repeats_are_refused_and_later_files_take_their_place(run: Path) -> None:
    theirs = run.parent / "theirs" / "cat"
    shutil.copy(run / "pictures" / "cat" / "1.png", theirs / "0.png")  # a training image
    shutil.copy(run / "pictures" / "cat" / "5.png", theirs / "1.png")  # a test image
    shutil.copy(theirs / "2.png", theirs / "3.png")
    summary = generate(run, per_class=4)
    cats = {row["index"]: row for row in (image.row for image in read_synthetic(run)) if row["class_name"] == "cat"}
    reasons = {str(row["imported_file"]): row["reasons"] for row in read_rejected(run)}
    assert reasons == {
        "cat/0.png": ["copy of a training image"],
        "cat/1.png": ["copy of a held-out image"],
        "cat/3.png": ["repeat"],
    }
    # Two files were left for three places.
    assert [(row["imported_file"], row["attempt"]) for _, row in sorted(cats.items())] == [
        ("cat/4.png", 2),
        ("cat/5.png", 2),
        ("cat/2.png", 1),
    ]
    assert summary["shortfall"] == {"cat": 1, "dog": 1} and summary["drawn"] == 9
    made = contents(run)
    assert generate(run, per_class=4)["drawn"] == 9 and contents(run) == made
    shutil.rmtree(run / "synthetic")
    generate(run, per_class=4)
    assert contents(run) == made


def test_only_files_that_changed_are_imported_again(run: Path) -> None:
    generate(run, per_class=3)
    before = {path.name: path.stat().st_mtime_ns for path in (run / "synthetic" / "train" / "cat").iterdir()}
    save(run.parent / "theirs" / "cat" / "1.png", 99)
    generate(run, per_class=3)
    now = {path.name: path.stat().st_mtime_ns for path in (run / "synthetic" / "train" / "cat").iterdir()}
    assert [name for name in now if now[name] != before[name]] == ["import-00001.png"]
    assert picture(run / "synthetic/train/cat/import-00001.png").shape == (IMAGE_SIZE, IMAGE_SIZE, 3)


def test_a_file_that_is_no_image_is_named(run: Path) -> None:
    (run.parent / "theirs" / "cat" / "2.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="2.png"):
        generate(run, per_class=3)
    # Those before it are kept, and nothing counts as finished.
    assert 0 < len(read_candidates(pool_of(run))) < 6 and not (run / "synthetic/train/metadata.jsonl").exists()
    save(run.parent / "theirs" / "cat" / "2.png", 50)
    assert generate(run, per_class=3)["accepted"] == 6


def test_the_own_set_is_not_imported(run: Path) -> None:
    generate(run, per_class=3)
    for place in ("synthetic", "synthetic/train"):
        with pytest.raises(ConfigError, match="is the run's own synthetic set"):
            generate(run, per_class=3, import_path=str(run / place))
    assert len(read_synthetic(run)) == 6


def test_a_synthetic_set_of_another_run_is_imported_as_it_was_accepted(run: Path, tmp_path: Path) -> None:
    generate(run, per_class=3)
    other = write_run(tmp_path / "other", tuned=False)
    run_generate(other, experiment(other, **{**IMPORT, "per_class": 3, "import_path": str(run / "synthetic")}))
    run_filter(other, experiment(other, **{**IMPORT, "per_class": 3, "import_path": str(run / "synthetic")}))
    ours, theirs = read_synthetic(other), read_synthetic(run)
    assert [picture(one.path).tobytes() for one in ours] == [picture(one.path).tobytes() for one in theirs]
