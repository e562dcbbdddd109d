"""Scores of planted images: real ones of the class, of the other class, and copies; the test split is not there."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mvc.candidates import write_image
from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.generate.tune import pool_of_point
from mvc.generate.tune_points import Point, points_of
from mvc.generate.tune_scores import score_points
from mvc.images import decode, to_uint8
from mvc.randomness import numpy_generator
from mvc.storage import read_json_lines, sha256_file, write_json_lines
from tests.classify.runs import CLASSES, make_run

SIZE = 16


def bars(label: int, *index: int) -> np.ndarray[Any, Any]:
    """(16, 16, 3) uint8: an upright or a lying bar somewhere, which no perceptual hash takes for another one."""
    drawn = numpy_generator(0, "bars", label, *index)
    pixels = drawn.integers(0, 50, (SIZE, SIZE, 3))
    place, width = int(drawn.integers(2, 11)), int(drawn.integers(2, 5))
    pixels[:, place : place + width] += 150
    return np.asarray(pixels if label == 0 else pixels.transpose(1, 0, 2), dtype=np.uint8)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of upright and lying bars without its test images."""
    run = make_run(tmp_path_factory.mktemp("scores") / "run", {"train": 12, "validation": 16, "test": 4}, False)
    for number, record in enumerate(load_index(run).records):
        path = run / "data" / "images" / record.path
        write_image(path.parent, path.name, bars(record.label, 0, number))
    rows = read_json_lines(run / "data" / "index.jsonl")
    for row in rows:
        row["sha256"] = sha256_file(run / "data" / "images" / row["path"])
    write_json_lines(run / "data" / "index.jsonl", rows)
    shutil.rmtree(run / "data" / "images" / "test")
    return run


def experiment(**sections: Any) -> Experiment:
    scales = [{"generate.guidance_scale": scale} for scale in (1.0, 2.0, 3.0)]
    return Experiment.model_validate({"run": {"device": "cpu"}, "tune": {"points": scales}, **sections})


def plant(run: Path, point: Point, picture: Callable[[int, int], np.ndarray[Any, Any] | None], count: int = 6) -> None:
    """Fill the pool of a point: `count` images a class."""
    pool, rows = pool_of_point(run, point), []
    for label, name in enumerate(CLASSES):
        for index in range(count):
            pixels, file = picture(label, index), f"{name}/finetuned-{index:05d}.png"
            digest = None if pixels is None else write_image(pool.accepted, file, pixels)
            facts: dict[str, Any] = {
                "id": Path(file).stem,
                "file_name": file,
                "sha256": digest,
                "class_name": name,
                "index": index,
            }
            facts |= {"source": "finetuned", "attempt": 1, "source_image": None, "caption_base": None}
            rows.append({**facts, "caption_partners": []})
    write_json_lines(pool.folder / "candidates.jsonl", rows)


def training(run: Path, label: int, index: int) -> np.ndarray[Any, Any]:
    dataset = load_index(run)
    own = [record for record in dataset.split("train") if record.label == label]
    return to_uint8(decode(dataset.image_path(own[index]), "white"), SIZE)


def test_planted_images_get_the_scores_that_they_deserve(prepared: Path) -> None:
    made = experiment()
    fresh, wrong, copied = points_of(made)
    plant(prepared, fresh, lambda label, index: bars(label, 1, index))
    plant(prepared, wrong, lambda label, index: bars(1 - label, 1, index))
    plant(prepared, copied, lambda label, index: training(prepared, label, index) if index else None)
    found = score_points(prepared, made, [fresh, wrong, copied], SIZE)
    assert found["agreement_by"].startswith("cross-fitted classifiers of") and "tiny CLIP" in found["extractor"]
    real, (first, second, third) = found["real"], found["points"]
    assert real["validation"]["images"] == 16 and real["train"]["images"] == 12
    assert real["validation"]["class_agreement"] >= 0.9 and real["validation"]["copies"] == 0.0
    assert first["class_agreement"] >= 0.9 and second["class_agreement"] <= 0.1
    assert first["coverage"] > 0.5 > second["coverage"]
    assert 0.6 < first["distance_ratio"] < 1.6
    # The same pictures under the other class: as near to training images, which are looked at over all classes.
    assert second["distance_ratio"] == pytest.approx(first["distance_ratio"])
    assert first["copies"] == second["copies"] == 0.0
    # One of six a class was not finite; the others are training images.
    assert third["distance_ratio"] == 0.0 and third["copies"] == pytest.approx(5 / 6, rel=1e-5)
    assert (third["drawn"], third["images"]) == (12, 10)
    assert [point["front"] for point in found["points"]][:2] == [True, False]
    assert score_points(prepared, made, [fresh, wrong, copied], SIZE) == found


def test_a_clip_reads_classes_where_the_user_names_one(prepared: Path) -> None:
    made = experiment(filter={"clip": "tiny"})
    point = points_of(made)[0]
    plant(prepared, point, lambda label, index: bars(label, 1, index))
    found = score_points(prepared, made, [point], SIZE)
    assert found["agreement_by"].startswith("class prompts of") and 0 <= found["points"][0]["class_agreement"] <= 1


def test_a_class_with_one_image_is_read_by_the_clip(prepared: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(prepared, tmp_path / "run"))
    rows = read_json_lines(run / "data" / "index.jsonl")
    first = next(row["id"] for row in rows if row["split"] == "train" and row["label"] == 0)
    for row in rows:
        row["used"] = row["label"] == 1 or row["split"] != "train" or row["id"] == first
    write_json_lines(run / "data" / "index.jsonl", rows)
    made = experiment()
    point = points_of(made)[0]
    plant(run, point, lambda label, index: bars(label, 1, index), count=2)
    assert score_points(run, made, [point], SIZE)["agreement_by"].startswith("class prompts of")


def test_one_class_has_no_agreement(prepared: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(prepared, tmp_path / "run"))
    rows = [{**row, "used": row["label"] == 0} for row in read_json_lines(run / "data" / "index.jsonl")]
    write_json_lines(run / "data" / "index.jsonl", rows)
    made = experiment()
    point = points_of(made)[0]
    plant(run, point, lambda label, index: bars(0, 1, index) if label == 0 else None, count=2)
    pool = pool_of_point(run, point)
    own = [row for row in read_json_lines(pool.folder / "candidates.jsonl") if row["class_name"] == CLASSES[0]]
    write_json_lines(pool.folder / "candidates.jsonl", own)
    found = score_points(run, made, [point], SIZE)
    assert found["agreement_by"] is None and found["points"][0]["class_agreement"] is None
    assert found["points"][0]["distance_ratio"] is not None
