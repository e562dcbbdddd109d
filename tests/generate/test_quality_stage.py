"""The quality stage on real digits: figures against direct computation, a planted copy, runs that lack something."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console

from mvc.config import Experiment
from mvc.dataset import load_index
from mvc.errors import ConfigError, DataError, Stopped
from mvc.extractors import Extractor, find_extractor
from mvc.features import FOLDER
from mvc.generate.quality_stage import print_quality, run_quality
from mvc.images import decode, to_uint8
from mvc.quality import FIGURES, figures
from mvc.stopping import flag
from mvc.storage import read_json, read_json_lines, sha256_file, write_json, write_json_lines
from mvc.tiny.digits import digit_images

SIZE = 32
CLASSES = ("one", "seven", "two words")
DIGITS = (1, 7, 2)
SPLITS = {"train": 6, "validation": 7, "test": 2}
COPIED = "train/one/3.png"


@pytest.fixture(scope="module")
def extractor() -> Extractor:
    return find_extractor("tiny").load(torch.device("cpu"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose set is measured; tests that change something take a copy."""
    run = write_run(tmp_path_factory.mktemp("quality") / "run")
    run_quality(run, experiment())
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def experiment(**quality: Any) -> Experiment:
    return Experiment.model_validate({"run": {"seed": 3}, "quality": {"neighbours": 2, **quality}})


def enlarged(pixels: NDArray[np.uint8], side: int) -> Image.Image:
    return Image.fromarray(pixels).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def save(image: Image.Image, path: Path) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return sha256_file(path)


def write_run(run: Path, per_source: int = 5, splits: dict[str, int] = SPLITS) -> Path:
    """Real digits at 40 px, and a set of 2 sources at 32 px: other digits shifted; one is an exact copy."""
    images, labels = digit_images()
    index: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for label, (name, digit) in enumerate(zip(CLASSES, DIGITS, strict=True)):
        own: Iterator[NDArray[np.uint8]] = iter(images[labels == digit])
        for split, count in splits.items():
            for number in range(count):
                path = f"{split}/{name}/{number}.png"
                digest = save(enlarged(next(own), 40), run / "pictures" / path)
                facts = {"id": path, "path": path, "class_name": name, "label": label, "split": split}
                index.append({**facts, "sha256": digest, "width": 40, "height": 40, "mode": "RGB", "used": True})
        for source in ("finetuned", "pretrained"):
            for number in range(per_source):
                image = enlarged(np.roll(next(own), 1 if source == "pretrained" else 0, axis=1), SIZE)
                if (name, source, number) == ("one", "finetuned", 4):
                    image = Image.fromarray(to_uint8(decode(run / "pictures" / COPIED), SIZE))
                file_name = f"{name}/{source}-{number:05d}.png"
                digest = save(image, run / "synthetic" / "train" / file_name)
                row = {"file_name": file_name, "id": f"{source}-{number:05d}", "class_name": name, "source": source}
                rows.append({**row, "image_size": SIZE, "sha256": digest})
    listed = [{"folder": name, "words": f"a {name}", "label": place} for place, name in enumerate(CLASSES)]
    write_json(run / "data" / "classes.json", {"root": "pictures", "classes": listed})
    write_json_lines(run / "data" / "index.jsonl", index)
    write_json_lines(run / "synthetic" / "train" / "metadata.jsonl", rows)
    return run


def features(run: Path, extractor: Extractor, split: str) -> dict[str, NDArray[np.float32]]:
    """The features of each real image of a split, by id; or of each synthetic one by file name."""
    if split == "synthetic":
        names = [row["file_name"] for row in read_json_lines(run / "synthetic" / "train" / "metadata.jsonl")]
        return {name: extractor.encode(pixels(run / "synthetic" / "train" / name)) for name in sorted(names)}
    dataset = load_index(run)
    return {record.id: extractor.encode(pixels(dataset.image_path(record))) for record in dataset.split(split)}


def pixels(path: Path) -> NDArray[np.uint8]:
    return to_uint8(decode(path), SIZE)


def rows_of(table: dict[str, NDArray[np.float32]], part: str = "") -> NDArray[np.float32]:
    return np.stack([vector for name, vector in table.items() if part in name])


def part_of(said: dict[str, Any]) -> dict[str, Any]:
    return {name: said[name] for name in FIGURES}


def test_figures_are_those_of_the_features(finished: Path, extractor: Extractor) -> None:
    summary = read_json(finished / "quality" / "quality.json")
    made, train = features(finished, extractor, "synthetic"), features(finished, extractor, "train")
    held_out = features(finished, extractor, "validation")
    assert summary["counts"] == {"synthetic": 30, "train": 18, "validation": 21}
    assert (summary["extractor"], summary["image_size"], summary["neighbours"]) == ("the tiny CLIP", SIZE, 2)
    expected = figures(rows_of(made), rows_of(held_out), 2, seed=3)
    assert part_of(summary["overall"]) == pytest.approx(expected, rel=1e-5)
    assert (summary["overall"]["images"], summary["overall"]["held_out"]) == (30, 21)
    floor = figures(rows_of(train), rows_of(held_out), 2, seed=3)
    assert part_of(summary["floor"]["overall"]) == pytest.approx(floor, rel=1e-5)
    assert list(summary["by_source"]) == ["finetuned", "pretrained"]
    ours = figures(rows_of(made, "/finetuned"), rows_of(held_out), 2, seed=3)
    assert part_of(summary["by_source"]["finetuned"]) == pytest.approx(ours, rel=1e-5)
    own = figures(rows_of(made, "two words/"), rows_of(held_out, "two words/"), 2, seed=3)
    assert part_of(summary["by_class"]["two words"]) == pytest.approx(own, rel=1e-5)
    own = figures(rows_of(train, "two words/"), rows_of(held_out, "two words/"), 2, seed=3)
    assert part_of(summary["floor"]["by_class"]["two words"]) == pytest.approx(own, rel=1e-5)
    assert summary["notes"] == []


def test_equal_numbers_of_each_class(finished: Path) -> None:
    summary = read_json(finished / "quality" / "quality.json")
    # 10 synthetic and 6 training images of each class; 5 of each class from one source.
    assert summary["overall"]["equal"]["images"] == 18
    assert summary["overall"]["equal"]["floor"] == part_of(summary["floor"]["overall"])
    assert summary["overall"]["equal"]["synthetic"] != part_of(summary["overall"])
    assert summary["by_source"]["pretrained"]["equal"]["images"] == 15
    assert summary["by_source"]["pretrained"]["equal"]["synthetic"] == part_of(summary["by_source"]["pretrained"])
    assert summary["by_class"]["one"]["equal"]["images"] == 6
    # Moved digits are further from real ones than others like them, and both further than real ones.
    distance = [
        summary["by_source"][name]["equal"]["synthetic"]["kernel_distance"] for name in ("pretrained", "finetuned")
    ]
    assert distance[0] > distance[1]


def test_nearest_images_by_brute_force(finished: Path, extractor: Extractor) -> None:
    rows = read_json_lines(finished / "quality" / "nearest.jsonl")
    summary = read_json(finished / "quality" / "quality.json")["nearest"]
    made, train = features(finished, extractor, "synthetic"), features(finished, extractor, "train")
    held_out = features(finished, extractor, "validation")

    def least(vector: NDArray[np.float32]) -> tuple[float, str]:
        return min((float(np.linalg.norm(vector.astype(np.float64) - other)), name) for name, other in train.items())

    usual = [least(vector)[0] for vector in held_out.values()]
    assert [row["distance"] for row in rows] == sorted(row["distance"] for row in rows)
    assert sorted(row["file_name"] for row in rows) == list(made)
    for row in rows:
        distance, name = least(made[row["file_name"]])
        assert (row["nearest_id"], row["nearest_class_name"]) == (name, name.split("/")[1])
        assert row["distance"] == pytest.approx(distance, rel=1e-5, abs=1e-9)
        assert row["nearer"] == (distance < np.mean(usual))
    assert rows[0]["file_name"] == "one/finetuned-00004.png" and rows[0]["nearest_id"] == COPIED
    assert rows[0]["distance"] == 0.0 and rows[1]["distance"] > 0.0
    assert summary["synthetic"]["least"] == 0.0
    assert summary["held_out"]["mean"] == pytest.approx(np.mean(usual), rel=1e-5)
    assert summary["held_out"]["nearer"] == pytest.approx(np.mean(usual < np.mean(usual)), rel=1e-5)
    assert summary["synthetic"]["mean"] == pytest.approx(np.mean([row["distance"] for row in rows]), rel=1e-5)
    assert summary["synthetic"]["nearer"] == pytest.approx(np.mean([row["nearer"] for row in rows]), rel=1e-5)
    same = [row["class_name"] == row["nearest_class_name"] for row in rows]
    assert summary["synthetic"]["same_class"] == pytest.approx(np.mean(same), rel=1e-5)
    own = [row["distance"] for row in rows if row["source"] == "pretrained"]
    assert summary["by_source"]["pretrained"]["median"] == pytest.approx(np.median(own), rel=1e-5)


def test_equal_bytes_from_the_cache_and_without(run: Path) -> None:
    before = {name: (run / "quality" / name).read_bytes() for name in ("quality.json", "nearest.jsonl")}
    # What was seen is in the cache, and the test split is not asked for: no real image is opened again.
    shutil.rmtree(run / "pictures")
    run_quality(run, experiment())
    assert {name: (run / "quality" / name).read_bytes() for name in before} == before
    shutil.rmtree(run / FOLDER)
    with pytest.raises(DataError, match="cannot be read as an image"):
        run_quality(run, experiment())


def test_the_test_split_is_not_looked_at(run: Path) -> None:
    before = (run / "quality" / "quality.json").read_bytes()
    shutil.rmtree(run / FOLDER)
    shutil.rmtree(run / "pictures" / "test")
    run_quality(run, experiment())
    assert (run / "quality" / "quality.json").read_bytes() == before


def test_other_seeds_and_neighbours(run: Path) -> None:
    before = read_json(run / "quality" / "quality.json")
    run_quality(run, experiment(neighbours=6))
    after = read_json(run / "quality" / "quality.json")
    assert after["overall"]["frechet_distance"] == before["overall"]["frechet_distance"]
    assert after["overall"]["precision"] >= before["overall"]["precision"] and after != before
    # Six real training images a class have no sixth neighbour, seven validation images have.
    assert after["floor"]["by_class"]["one"]["recall"] is None and after["floor"]["by_class"]["one"]["coverage"] >= 0
    assert after["notes"] == []
    run_quality(run, experiment(neighbours=7))
    after = read_json(run / "quality" / "quality.json")
    assert after["by_class"]["one"]["precision"] is None and after["by_class"]["one"]["recall"] is not None
    assert after["notes"] == []
    run_quality(run, experiment(neighbours=21))
    assert read_json(run / "quality" / "quality.json")["notes"] == [
        "30 synthetic and 21 validation images with quality.neighbours=21 are too few for precision, density, coverage"
    ]


def test_no_validation_image(run: Path) -> None:
    index = [row for row in read_json_lines(run / "data" / "index.jsonl") if row["split"] != "validation"]
    write_json_lines(run / "data" / "index.jsonl", index)
    run_quality(run, experiment())
    summary = read_json(run / "quality" / "quality.json")
    assert summary["notes"] == [
        "there is no validation image, so nothing is compared with real images that no training saw"
    ]
    assert part_of(summary["overall"]) == dict.fromkeys(FIGURES) and summary["overall"]["equal"] is None
    assert summary["nearest"]["held_out"] == dict.fromkeys(("mean", "median", "least", "nearer", "same_class"))
    assert summary["nearest"]["synthetic"]["mean"] > 0 and summary["nearest"]["synthetic"]["nearer"] is None
    rows = read_json_lines(run / "quality" / "nearest.jsonl")
    assert len(rows) == 30 and {row["nearer"] for row in rows} == {None}
    console = Console(width=160, record=True)
    print_quality(run, console)
    assert "There is no validation image" in console.export_text()


def test_one_image_of_each_kind(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", per_source=1, splits={"train": 1, "validation": 1})
    run_quality(run, experiment(neighbours=5))
    summary = read_json(run / "quality" / "quality.json")
    assert part_of(summary["by_class"]["one"]) == dict.fromkeys(FIGURES)
    assert summary["by_class"]["one"]["equal"] is None
    assert [name for name in FIGURES if summary["overall"][name] is None] == ["precision", "density", "coverage"]
    assert summary["overall"]["equal"]["images"] == 3
    assert summary["notes"][0].endswith("quality.neighbours=5 are too few for precision, density, coverage")


def test_an_empty_set(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", per_source=0, splits={"train": 4, "validation": 4})
    run_quality(run, experiment())
    summary = read_json(run / "quality" / "quality.json")
    assert summary["notes"] == ["there is no synthetic image, so only real images are compared"]
    assert summary["image_size"] is None and summary["by_source"] == {}
    assert part_of(summary["overall"]) == dict.fromkeys(FIGURES)
    assert None not in summary["floor"]["overall"].values()
    assert read_json_lines(run / "quality" / "nearest.jsonl") == []


def test_the_extractor_is_that_of_the_filters_unless_named(run: Path) -> None:
    settings: dict[str, Any] = {"filter": {"extractor": "timm:no such model:x.safetensors"}}
    with pytest.raises(ConfigError, match=r"^filter\.extractor: x\.safetensors is no file"):
        run_quality(run, Experiment.model_validate(settings))
    with pytest.raises(ConfigError, match=r"^quality\.extractor: 'nothing' is no extractor"):
        run_quality(run, Experiment.model_validate({**settings, "quality": {"extractor": "nothing"}}))
    run_quality(run, Experiment.model_validate({**settings, "quality": {"extractor": "tiny"}}))


def test_a_stop_writes_nothing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(run / "quality")
    monkeypatch.setattr(flag, "signal", 15)
    with pytest.raises(Stopped, match="what was seen of the images is kept"):
        run_quality(run, experiment())
    assert not (run / "quality").exists()


def test_without_a_set(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", per_source=0)
    (run / "synthetic" / "train" / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match="holds no finished synthetic set\ndo: run `mvc generate`"):
        run_quality(run, experiment())
    with pytest.raises(DataError, match="No figures of quality yet"):
        print_quality(run)


def test_printed_tables_fit_into_80_columns(finished: Path) -> None:
    console = Console(width=80, record=True)
    print_quality(finished, console)
    lines = console.export_text().splitlines()
    summary = read_json(finished / "quality" / "quality.json")
    said = {"synthetic": summary["overall"], "real training": summary["floor"]["overall"]}
    for name, values in said.items():
        distances = [f"{values[figure]:.3g}" for figure in FIGURES[:3]]
        cells = [str(values["images"]), *distances, *(f"{values[figure]:.2f}" for figure in FIGURES[3:])]
        assert " ".join([name, *cells]) in [" ".join(line.split()) for line in lines]
    assert any(line.startswith(" fine-tuned ") for line in lines)
    equal = summary["by_class"]["two words"]["equal"]
    cell = f"{equal['synthetic']['coverage']:.2f} ({equal['floor']['coverage']:.2f})"
    assert any(line.startswith(" a two words 6 of 10 ") and line.rstrip().endswith(cell) for line in lines)
    assert "Compared with 21 real validation images by the features of the tiny CLIP" in " ".join(lines)
    table = lines[: next(number for number, line in enumerate(lines) if line.startswith("Compared"))]
    assert max(len(line) for line in table) <= 80 and not any("…" in line for line in table)
