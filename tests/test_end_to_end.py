"""The whole job by the command, on pictures made here, with the embedded models and few steps."""

from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from PIL import Image, ImageDraw

from mvc.randomness import numpy_generator
from tests.folders import sha256_folder
from tests.real_data import real_data

ROOT = Path(__file__).resolve().parent.parent
QUICK = [
    "train.max_train_steps=6",
    "train.train_batch_size=4",
    "train.checkpointing_steps=2",
    "generate.per_real=1",
    "generate.num_inference_steps=2",
    "generate.preview=2",
    # After so few steps an image shows neither its class nor anything of its own.
    "filter.classifier=false",
    "filter.repeats=false",
    "classify.max_train_steps=4",
    "classify.evaluation_steps=2",
    "classify.seeds=2",
    "classify.train_batch_size=8",
]


def mvc(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mvc", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment, check=False)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of ten pictures each, all different."""
    folder = tmp_path_factory.mktemp("pictures") / "shapes"
    for name in ("disc", "bar"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            draws = numpy_generator(0, f"shapes {name}", number)
            image = Image.new("RGB", (48, 40), tuple(draws.integers(0, 90, 3)))
            left, top = int(draws.integers(2, 14)), int(draws.integers(2, 10))
            box = (left, top, left + (24 if name == "disc" else 8), top + 24)
            draw = ImageDraw.Draw(image)
            ink = tuple(int(value) for value in draws.integers(150, 255, 3))
            draw.ellipse(box, fill=ink) if name == "disc" else draw.rectangle(box, fill=ink)
            image.save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def finished(shapes: Path) -> Path:
    done = mvc("run", "--data", "shapes", "run.dir=whole", *QUICK, folder=shapes.parent)
    assert done.returncode == 0, done.stderr
    assert "verdict:" in done.stdout and "whole/report/index.html" in done.stdout
    return shapes.parent / "whole"


def test_every_stage_left_what_it_promises(finished: Path) -> None:
    captions = [json.loads(line) for line in (finished / "captions.jsonl").read_text().splitlines()]
    # 10 a class: 2 for the test split, 20 % of the other 8 for validation.
    assert len(captions) == 2 * 6
    assert all(row["caption"].startswith(f"This is an image of {row['class_name']}.") for row in captions)
    made = [json.loads(line) for line in (finished / "synthetic" / "train" / "metadata.jsonl").read_text().splitlines()]
    assert len(made) == 12 and {row["source"] for row in made} == {"finetuned"}
    assert all((finished / "synthetic" / "train" / row["file_name"]).exists() for row in made)
    assert len(list((finished / "preview" / "pretrained").rglob("*.png"))) == 4
    with open(finished / "results" / "table.csv", newline="") as file:
        arms = [row["arm"] for row in csv.DictReader(file)]
    assert arms == ["real", "duplicate", "combined", "rsp", "two_phase"]
    results = [json.loads(path.read_text()) for path in (finished / "results").glob("*-seed*.json")]
    assert len(results) == 10 and {row["steps"] for row in results} == {4}
    assert "<img" in (finished / "report" / "index.html").read_text()


def test_model_opens_in_plain_diffusers(finished: Path) -> None:
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(
        finished / "model", safety_checker=None, dtype=torch.float32, use_safetensors=True
    )
    assert pipeline.unet.config.in_channels == 8


def computed() -> float:
    """Seconds of processor time of commands that have ended, which a busy machine doesn't change."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_second_run_does_nothing_and_says_so_in_seconds(finished: Path) -> None:
    before = sha256_folder(finished)
    start = computed()
    done = mvc("run", "--data", "shapes", "run.dir=whole", *QUICK, folder=finished.parent)
    assert done.returncode == 0 and "nothing to do" in done.stderr and "verdict:" in done.stdout
    assert computed() - start < 10
    assert sha256_folder(finished) == before


def test_changed_setting_is_refused_by_name(finished: Path) -> None:
    done = mvc("run", "whole", "train.learning_rate=5e-5", folder=finished.parent)
    assert done.returncode == 2 and "train.learning_rate: 0.0001 -> 5e-05" in done.stderr


def test_more_images_and_seeds_go_on_from_what_is_there(finished: Path) -> None:
    more = finished.parent / "more"
    subprocess.run(["cp", "-r", str(finished), str(more)], check=True)
    before = {path.name: path.read_bytes() for path in (more / "synthetic" / "train" / "disc").glob("*.png")}
    done = mvc("run", "more", "generate.per_real=1.5", "classify.seeds=3", folder=finished.parent)
    assert done.returncode == 0, done.stderr
    after = {path.name: path.read_bytes() for path in (more / "synthetic" / "train" / "disc").glob("*.png")}
    assert len(after) == 9 and before.items() <= after.items()
    assert len(list((more / "results").glob("*-seed*.json"))) == 15


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.slow)])
def test_killed_in_training_it_goes_on_to_the_same_bits(finished: Path, number: signal.Signals) -> None:
    folder = finished.parent
    name = f"killed-{number.name}"
    command = [sys.executable, "-m", "mvc", "run", "--data", "shapes", f"run.dir={name}", *QUICK]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 120
        while not (folder / name / "checkpoints" / "step-000002").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, messages = process.communicate()
    assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGKILL), messages
    done = mvc("run", "--data", "shapes", f"run.dir={name}", *QUICK, folder=folder)
    assert done.returncode == 0, done.stderr
    for part in ("model/unet/diffusion_pytorch_model.safetensors", "captions.jsonl", "results/table.csv"):
        assert (folder / name / part).read_bytes() == (finished / part).read_bytes(), part
    made = sorted(path.relative_to(finished) for path in (finished / "synthetic").rglob("*.png"))
    assert len(made) == 12
    assert all((folder / name / path).read_bytes() == (finished / path).read_bytes() for path in made)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["brain_tumor_mri", "caltech101_20"])
def test_real_images_run_through_without_a_line_of_code(name: str, tmp_path: Path) -> None:
    done = mvc("run", "--data", str(real_data(name)), "data.shots=6", *QUICK, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / name / "report" / "index.html").exists()
