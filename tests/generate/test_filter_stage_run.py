"""`mvc generate` and `mvc filter` on one run: other thresholds move images, only lacking ones are drawn, all libraries
see what was accepted."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mvc.candidates import CANDIDATES
from mvc.config import Experiment
from mvc.errors import DataError
from mvc.generate import drawing
from mvc.pipeline import run_stages
from mvc.storage import read_json, read_json_lines
from mvc.synthetic import METADATA, read_rejected, read_synthetic, synthetic_folder
from tests.generate.toy_run import contents, picture
from tests.mvc.pictures import fill
from tests.tiny_parts import IMAGE_SIZE, write_pipeline

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

STRICT = {"copy_bits": 64, "copy_similarity": 0.75}
FILTER = ("train", "generate")
"""Stages that `mvc filter` leaves as they are."""


def stages(run: Path, places: Path, looks: dict[str, Any] | None = None, keep: Any = (), **changes: Any) -> bool:
    """Do the stages of a run up to its published set.

    Args:
        run: its folder.
        places: folder with the data and the base model.
        looks: section filter.
        keep: FILTER for `mvc filter`; nothing for `mvc generate`.
        changes: of section generate.
    """
    settings = {"sources": {"pretrained": 1.0}, "preview": 0, "num_inference_steps": 2, "batch_size": 4}
    content = {
        "run": {"dir": str(run), "device": "cpu"},
        "data": {"path": str(places / "data"), "image_size": IMAGE_SIZE},
        "captions": {"captioner": "template"},
        "model": {"base": str(places / "base")},
        "generate": {**settings, "per_class": 6, **changes},
        # Random pictures show no class.
        "filter": {"classifier": False, **(looks or {})},
    }
    return run_stages(Experiment.model_validate(content), "filter", keep=keep)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 3 classes with spaces and signs in their names, and a set of 18 images, all accepted."""
    folder = tmp_path_factory.mktemp("start")
    fill(folder / "data", {"big dog": 5, "-cat, ünder 'quotes'": 5, "🐢": 5})
    write_pipeline(folder / "base")
    stages(folder / "run", folder)
    assert len(read_synthetic(folder / "run")) == 18
    return folder


@pytest.fixture
def run(start: Path, tmp_path: Path) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(start / "run", tmp_path / "run"))


def forbid_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawing, "draw", lambda *arguments: pytest.fail("an image was drawn"))


def as_before(run: Path, start: Path) -> bool:
    return contents(run) == contents(start / "run")


def pictures_of(run: Path) -> dict[str, bytes]:
    """Bytes of all images by class and name, wherever the filters put them."""
    return {name.split("/", 2)[2]: data for name, data in contents(run).items() if name.endswith(".png")}


def test_other_thresholds_move_images_and_draw_none(run: Path, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(start / "run")
    forbid_drawing(monkeypatch)
    assert stages(run, start, STRICT, keep=FILTER)
    accepted, refused = read_synthetic(run), read_rejected(run)
    assert 0 < len(accepted) < 18 and len(accepted) + len(refused) == 18
    assert all((run / "synthetic" / "rejected" / row["file_name"]).is_file() for row in refused)
    assert all(row["reasons"] and not row["accepted"] for row in refused)
    assert pictures_of(run) == pictures_of(start / "run")
    assert (run / "synthetic" / CANDIDATES).read_bytes() == before[f"synthetic/{CANDIDATES}"]
    summary = read_json(run / "synthetic" / "summary.json")
    assert sum(summary["shortfall"].values()) == len(refused) == sum(summary["rejected"].values())
    # A second time there is nothing to do, and the old thresholds bring back the old set.
    assert not stages(run, start, STRICT, keep=FILTER)
    assert stages(run, start, keep=FILTER)
    assert as_before(run, start)


def test_generate_then_draws_what_is_lacking_and_nothing_else(run: Path, start: Path) -> None:
    stages(run, start, STRICT, keep=FILTER)
    lacking = {(row["class_name"], row["index"]) for row in read_rejected(run)}
    assert stages(run, start, STRICT)
    rows = read_json_lines(run / "synthetic" / CANDIDATES)
    again = {(row["class_name"], row["index"]) for row in rows if row["attempt"] > 1}
    assert again == lacking
    kept = pictures_of(start / "run")
    assert {name: data for name, data in pictures_of(run).items() if name in kept} == kept
    # The same as if these thresholds had been set from the beginning.
    other = run.with_name("other")
    stages(other, start, STRICT)
    assert contents(other) == contents(run)
    # Looser ones again: the first images are accepted, the others too many; none is thrown away.
    assert stages(run, start)
    assert {image.row["attempt"] for image in read_synthetic(run)} == {1}
    assert {reason for row in read_rejected(run) for reason in row["reasons"]} == {"surplus"}
    assert len(read_rejected(run)) == len(rows) - 18


def test_a_deleted_image_is_noticed_and_made_again(run: Path, start: Path) -> None:
    assert not stages(run, start)
    (synthetic_folder(run) / "🐢" / "pretrained-00003.png").unlink()
    assert stages(run, start)
    assert as_before(run, start)


def test_a_damaged_image_is_no_part_of_a_set_that_is_filtered_again(run: Path, start: Path) -> None:
    path = synthetic_folder(run) / "big dog" / "pretrained-00000.png"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="pretrained-00000.png is damaged") as caught:
        stages(run, start, STRICT, keep=FILTER)
    assert "mvc generate" in caught.value.do and not (synthetic_folder(run) / METADATA).exists()
    assert stages(run, start)
    assert as_before(run, start)


def test_a_filter_that_refuses_all_says_so_and_looser_ones_bring_the_set_back(run: Path, start: Path) -> None:
    all_alike = {"copy_bits": 64, "copy_similarity": -1.0, "attempts": 1}
    with pytest.raises(DataError, match="the filters refuse all 18 images"):
        stages(run, start, all_alike, keep=FILTER)
    stages(run, start, keep=FILTER)
    assert as_before(run, start)


def test_more_images_and_another_batch_size_keep_the_first_ones(run: Path, start: Path) -> None:
    assert stages(run, start, per_class=8, batch_size=7)
    assert len(read_synthetic(run)) == 24
    kept = pictures_of(start / "run")
    assert {name: data for name, data in pictures_of(run).items() if name in kept} == kept
    assert stages(run, start)
    assert as_before(run, start)


@pytest.fixture
def strict(run: Path, start: Path) -> Path:
    """A run whose filters refused some images."""
    stages(run, start, STRICT, keep=FILTER)
    return run


def accepted_pictures(run: Path) -> dict[str, list[bytes]]:
    """Pixels of the accepted images by class, sorted."""
    found: dict[str, list[bytes]] = {}
    for image in read_synthetic(run):
        found.setdefault(image.class_name, []).append(picture(image.path).tobytes())
    return {name: sorted(all_of_it) for name, all_of_it in found.items()}


@pytest.mark.parametrize("place", ["synthetic", "synthetic/train"])
def test_datasets_sees_exactly_the_accepted_images(
    strict: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_OFFLINE", True)
    loaded = datasets.load_dataset("imagefolder", data_dir=str(strict / place), cache_dir=str(tmp_path / "hub"))
    assert list(loaded) == ["train"]
    found: dict[str, list[bytes]] = {}
    for row in loaded["train"]:
        found.setdefault(row["label"], []).append(np.asarray(row["image"]).tobytes())
        assert row["accepted"] and row["scores"]["spread"] > 2 and "reasons" not in row
    assert {name: sorted(all_of_it) for name, all_of_it in found.items()} == accepted_pictures(strict)


def test_torchvision_sees_exactly_the_accepted_images(strict: Path) -> None:
    from torchvision.datasets import ImageFolder

    loaded = ImageFolder(str(synthetic_folder(strict)))
    found: dict[str, list[bytes]] = {}
    for image, label in loaded:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        found.setdefault(loaded.classes[label], []).append(np.asarray(Image.open(buffer)).tobytes())
    assert {name: sorted(all_of_it) for name, all_of_it in found.items()} == accepted_pictures(strict)
