"""A made-up run folder, written file by file as the stages leave it, with small real PNG files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mvc.report.grids import write_grid
from mvc.storage import sha256_file, write_json, write_json_lines, write_text

COLOURS = {
    "real": (200, 40, 30),
    "pretrained": (30, 160, 60),
    "finetuned": (40, 70, 210),
    "sdedit": (170, 60, 170),
    "import": (90, 90, 20),
}
SENTENCE = "two_phase beats real by 3.1 +- 0.8 points over 3 seeds, p = 0.012"
TABLE = """arm,mean,standard_deviation,seeds,values,difference,p_value,validation_mean
real,0.850333,0.0120554,3,0.838000 0.851000 0.862000,,,0.86
duplicate,0.852,0.011,3,0.841000 0.852000 0.863000,0.00166667,0.61,0.861
two_phase,0.881333,0.00737,3,0.873000 0.883000 0.888000,0.031,0.0123,0.89
"""


def colour(source: str, label: int, index: int) -> tuple[int, int, int]:
    """The one colour of a made-up image."""
    red, green, blue = COLOURS[source]
    return red + 10 * label, green + 5 * index, blue


def _image(path: Path, source: str, label: int, index: int, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((side, side, 3), colour(source, label, index), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_data(run: Path, classes: list[str], real: int = 5, side: int = 16) -> None:
    """run/data, with `real` training images a class and one each for validation and test."""
    rows: list[dict[str, Any]] = []
    for label, folder in enumerate(classes):
        for split, count in (("train", real), ("validation", 1), ("test", 1)):
            for index in range(count):
                name = f"{split}/{folder}/{index:04d}.png"
                _image(run / "data" / "images" / name, "real", label, index, side)
                facts = {"id": name, "path": name, "class_name": folder, "label": label, "split": split}
                facts["sha256"] = sha256_file(run / "data" / "images" / name)
                rows.append({**facts, "width": side, "height": side, "mode": "RGB", "used": True})
    listed = [{"folder": name, "words": f"number {name}", "label": place} for place, name in enumerate(classes)]
    write_json(run / "data" / "classes.json", {"root": "data/images", "classes": listed})
    write_json_lines(run / "data" / "index.jsonl", rows)
    summary = {"images": 40, "left_out": 12, "made": ["validation"], "skipped": 2, "warnings": ["3 copies in test"]}
    write_json(run / "data" / "summary.json", summary)


def write_captions(run: Path, classes: list[str], text: str = "a white figure") -> None:
    """run/captions.jsonl and what was counted."""
    rows = [
        {"id": f"train/{name}/{i:04d}.png", "class_name": name, "caption": f"{text} {i} {name}", "captioner": "blip"}
        for name in classes
        for i in range(5)
    ]
    write_json_lines(run / "captions.jsonl", rows)
    none = {"count": 0, "examples": []}
    counts: dict[str, Any] = {"captions": len(rows), "captioners": {"blip": len(rows)}, "empty": none}
    counts |= {"repeated": {"count": 7, "examples": [], "share": 0.7}, "over_long": {**none, "limit": 77}}
    counts |= {"single_caption_classes": [], "same_caption_classes": ["one"]}
    write_json(run / "caption_summary.json", counts)


def write_training(run: Path, steps: int = 60) -> None:
    """run/logs/train.jsonl, the last line torn by a kill."""
    rows = [{"step": i, "loss": 0.3 / i + 0.1, "learning_rate": 1e-4, "seconds": 0.1 * i} for i in range(1, steps + 1)]
    write_json_lines(run / "logs" / "train.jsonl", rows)
    with open(run / "logs" / "train.jsonl", "a") as file:
        file.write('{"step": 61, "lo')


def write_watched_training(run: Path, classes: list[str], steps: int = 50) -> None:
    """run/logs as the train stage leaves them, steps 7 and 9 skipped, and samples at three steps."""
    rows: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        bins = [None if place == step % 10 else 2.0**-place / step for place in range(10)]
        row = {"step": step, "loss": None if step == 9 else 0.3 / step, "learning_rate": 1e-4, "seconds": 0.1}
        rows.append({**row, "skipped": step in (7, 9), "loss_by_timestep": bins})
    write_json_lines(run / "logs" / "train.jsonl", rows)
    losses = [(0, 0.8), (20, None), (40, 0.25), (50, 0.5)]
    write_json_lines(
        run / "logs" / "validation.jsonl",
        [{"step": step, "loss": loss, "on": "held-out images"} for step, loss in losses],
    )
    for step in (0, 25, 50):
        tiles = [np.full((16, 16, 3), 5 * step + place, dtype=np.uint8) for place in range(len(classes))]
        write_grid(run, step, classes, tiles, tiles)


def write_images(
    run: Path,
    classes: list[str],
    synthetic: int = 6,
    preview: int = 4,
    side: int = 16,
    sources: tuple[str, ...] = ("finetuned",),
) -> None:
    """A finished synthetic set, `synthetic` images a class and source, and a preview of pre-trained ones."""
    folder, rows = run / "synthetic" / "train", []
    for label, name in enumerate(classes):
        for source, index in ((source, index) for source in sources for index in range(synthetic)):
            path = f"{name}/{source}-{index:04d}.png"
            _image(folder / path, source, label, index, side)
            row = {"file_name": path, "label": name, "id": f"{source}-{index:04d}", "class_name": name}
            facts = {"source": source, "image_size": side, "sha256": sha256_file(folder / path)}
            rows.append({**row, **facts})
        for index in range(preview):
            _image(run / "preview" / "pretrained" / name / f"{index}.png", "pretrained", label, index, side)
    write_json_lines(folder / "metadata.jsonl", rows)


REFUSED = {
    "other class (clip)": 3,
    "copy of a training image": 2,
    "blank": 1,
    "not finite": 1,
    "surplus": 2,
}
"""Refused images by their first reason."""


def write_filters(run: Path, classes: list[str], side: int = 16) -> None:
    """run/synthetic/summary.json, rejected.jsonl and the refused images, all of the first class."""
    rows: list[dict[str, Any]] = []
    for reason, count in REFUSED.items():
        for place in range(count):
            index = len(rows)
            path = f"{classes[0]}/finetuned-{index:05d}-2.png"
            if reason != "not finite":
                _image(run / "synthetic" / "rejected" / path, "finetuned", 3, index, side)
            also = ["repeat"] if reason == "other class (clip)" and place else []
            scores = {"nearest_train_id": f"train/{classes[0]}/{place:04d}.png", "clip_margin": -0.25}
            row = {"file_name": path, "id": path.split("/")[1][:-4], "class_name": classes[0], "source": "finetuned"}
            rows.append({**row, "scores": scores, "accepted": False, "reasons": [reason, *also]})
    write_json_lines(run / "synthetic" / "rejected.jsonl", rows)
    counts = {"wanted": 14, "drawn": 21, "accepted": 12, "rejected": REFUSED}
    more: dict[str, Any] = {"shortfall": {classes[0]: 2}, "by_source": {"finetuned": counts}, "held_out": 40}
    more |= {"false_rejects": {"other class (clip)": 0.05, "copy of a training image": 0.0, "grey": 0.125, "any": 0.15}}
    write_json(run / "synthetic" / "summary.json", {**counts, **more})


def write_quality(run: Path, classes: list[str], held_out: int = 2) -> None:
    """run/quality as the quality stage leaves it, for the images of `write_images`; the figures are made up."""
    names = ("frechet_distance", "kernel_distance", "cmmd", "precision", "recall", "density", "coverage")

    def said(*values: float | None) -> dict[str, float | None]:
        return dict(zip(names, values, strict=True))

    ours = said(12.3456, 0.00123, 0.75, 0.9, 0.25, 1.1, 0.5)
    floor = said(8.125, -0.0000001, 0.0125, 0.95, 0.875, 1.0, 0.925)
    equal = {"images": 10, "synthetic": {**ours, "frechet_distance": 15.5}, "floor": floor}
    group = {"images": 12, "held_out": held_out, **ours, "equal": equal}
    few = {**group, **said(3.0, 0.5, 1250.4, None, None, None, None)}
    few["equal"] = {
        "images": 5,
        "synthetic": said(4.0, 0.5, 2.0, *[None] * 4),
        "floor": said(1.0, 0.25, 1.0, *[None] * 4),
    }
    real = {"images": 10, "held_out": held_out, **floor}
    spread = {"mean": 2.0, "median": 1.5, "least": 0.25, "nearer": 0.75, "same_class": 1.0}
    summary: dict[str, Any] = {"extractor": "the tiny CLIP", "extractor_identity": "0" * 64, "image_size": 16}
    summary |= {"neighbours": 5, "counts": {"synthetic": 12, "train": 10, "validation": held_out}, "overall": group}
    summary |= {"by_source": {"finetuned": group}, "by_class": dict.fromkeys(classes, few)}
    summary |= {"floor": {"overall": real, "by_class": dict.fromkeys(classes, {**real, "images": 5})}}
    usual = {**spread, "mean": 4.0, "nearer": 0.5, "same_class": 0.9}
    summary |= {"nearest": {"synthetic": spread, "held_out": usual, "by_source": {"finetuned": spread}}}
    write_json(run / "quality" / "quality.json", {**summary, "notes": ["too few of one & two"]})
    rows = []
    for index in range(6):
        for name in classes:
            row = {"id": f"finetuned-{index:04d}", "file_name": f"{name}/finetuned-{index:04d}.png", "class_name": name}
            row |= {"source": "finetuned", "nearest_id": f"train/{classes[0]}/{index % 5:04d}.png"}
            rows.append({**row, "nearest_class_name": classes[0], "distance": index + 0.25, "nearer": index < 4})
    write_json_lines(run / "quality" / "nearest.jsonl", rows)


def write_results(run: Path, sentence: str = SENTENCE, table: str = TABLE) -> None:
    """run/results with a finished comparison."""
    verdict: dict[str, Any] = {"sentence": sentence, "best_arm": "two_phase", "helped": True, "seeds": 3}
    verdict |= {"difference": 0.031, "standard_deviation": 0.008, "p_value": 0.0123}
    verdict |= {"warnings": ["only 2 validation images"], "test_set": "2 test images: standard error 7.1 points"}
    write_json(run / "results" / "verdict.json", verdict)
    write_text(run / "results" / "table.csv", table)


def write_record(run: Path) -> None:
    """run/run.json."""
    stages = {
        "train": {"state": "finished", "seconds": 245.2, "at": "2025-01-02T03:09:05+00:00", "dependencies": {}},
        "data": {"state": "finished", "seconds": 1.24, "at": "2025-01-02T03:04:05+00:00", "dependencies": {}},
        "report": {"state": "started", "seconds": 98.7, "at": "2025-01-02T03:19:05+00:00", "dependencies": {}},
    }
    record: dict[str, Any] = {"created": "2025-01-02T03:04:05+00:00", "stages": stages, "seed": 0}
    record |= {"versions": {"mvc": "0.1.0", "torch": "2.15.0"}, "hardware": {"cores": 2, "memory_gib": 7.8}}
    write_json(run / "run.json", record)


def write_run(run: Path, classes: list[str]) -> Path:
    """A whole finished run; returns its folder."""
    write_data(run, classes)
    write_captions(run, classes)
    write_training(run)
    write_images(run, classes)
    write_filters(run, classes)
    write_quality(run, classes)
    write_results(run)
    write_record(run)
    return run
