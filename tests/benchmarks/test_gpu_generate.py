"""The generation ladder refuses without a GPU, and at toy size all of it runs on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.generate import CLASS, Guidance, difference, jobs_of, one_by_one, our_latents, pipeline_of
from benchmarks.gpu_generate import (
    EAGER,
    FULL,
    LADDER,
    TOY,
    TOY_SIZE,
    Bench,
    Pace,
    Rung,
    cosine,
    image_flops,
    knee,
    measure,
    new_bench,
    write_while_drawing,
)
from benchmarks.results import Section
from mvc.generate.source import draw
from mvc.images import to_pixels
from mvc.storage import read_json_lines, sha256_file

# diffusers' schedulers turn tensors into numpy arrays in the old way.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.gpu_generate"]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def bench() -> Bench:
    return new_bench(TOY, TOY_SIZE, 1, CPU)


def test_without_a_gpu_it_refuses_in_one_line() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(COMMAND, cwd=ROOT, env=hidden, capture_output=True, text=True)
    assert done.returncode == 4 and done.stdout == ""
    said = "gpu_generate: there is no CUDA device here; --toy runs the same code on the CPU"
    assert done.stderr.splitlines()[-1] == said


@pytest.mark.slow
def test_the_ladder_at_toy_size() -> None:
    section = measure(1, TOY, [TOY_SIZE], CPU, eager=True)
    ladder, swept, decoding, files = section.tables
    assert [row[0] for row in ladder.rows] == [rung.name for rung in LADDER if not rung.compile]
    for rate, hourly, *_, least in (row[1:] for row in ladder.rows):
        assert float(hourly) == pytest.approx(3600 * float(rate), rel=0.01)
        assert float(least) > 0.999
    assert [float(row[-1]) for row in ladder.rows if not rung_of(row[0]).bf16] == [1.0, 1.0, 1.0]
    assert [row[0] for row in swept.rows] == [str(batch) for batch in TOY.batches]
    # The last rungs are at the batch that the sweep chose.
    assert ladder.rows[-1][5] in {row[0] for row in swept.rows}
    assert [row[0] for row in decoding.rows] == ["float32", "bfloat16"]
    assert [row[2] for row in files.rows][0] == "100.0%" and "2 threads" in files.rows[1][0]
    assert section.passed and [gate.what for gate in section.gates] == ["32 px: least cosine"]


def rung_of(name: str) -> Rung:
    return next(rung for rung in LADDER if rung.name == name)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_all_rungs_at_toy_size(tmp_path: Path) -> None:
    found = tmp_path / "section.json"
    command = [*COMMAND, "--toy", "--rounds", "1", "--json", str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ladder = Section.from_json(found.read_text()).tables[0]
    assert [row[0] for row in ladder.rows] == [rung.name for rung in LADDER]
    assert all(float(row[-1]) > 0.999 for row in ladder.rows)


@pytest.mark.parametrize(("guidance", "image_scale"), [("dual", 1.5), ("paper", 7.5)])
def test_latents_are_those_of_the_pipeline(bench: Bench, guidance: Guidance, image_scale: float) -> None:
    source, jobs = bench.source(Rung("", guidance), steps=6), jobs_of(guidance, 3)
    theirs = one_by_one(source, pipeline_of(source), jobs, image_scale, "latent")
    assert difference(our_latents(source, guidance, jobs), theirs) < 1e-4
    assert source.image_latents is not None and len(source.image_latents[CLASS]) == max(TOY.batches)


def test_files_are_the_drawn_images(bench: Bench, tmp_path: Path) -> None:
    source, jobs = bench.source(EAGER), jobs_of("paper", 3)
    assert write_while_drawing(source, [jobs[:2], jobs[2:]], tmp_path, 2) > 0
    rows = read_json_lines(tmp_path / "rows.jsonl")
    files = sorted(tmp_path.glob("*.png"))
    assert [row["sha256"] for row in rows] == [sha256_file(path) for path in files]
    drawn = torch.cat([draw(source, part).pixels for part in (jobs[:2], jobs[2:])])
    for path, pixels in zip(files, drawn, strict=True):
        with Image.open(path) as image:
            assert np.array_equal(np.array(image), to_pixels(pixels))


def test_flops_of_an_image_are_those_of_stable_diffusion() -> None:
    """0.803 TFLOP for a pass of SD 1.5 at 512 px and 2.49 for decoding, by independent counts."""
    assert image_flops(FULL.shape, 64, 2, 20) == pytest.approx((2 * 20 * 0.803 + 2.49) * 1e12, rel=0.01)


def test_the_knee_is_the_smallest_batch_that_is_nearly_as_fast_as_the_fastest() -> None:
    rates = {1: 2.0, 2: 3.9, 4: 7.0, 8: 9.6, 16: 10.0, 32: 9.9}
    assert knee({batch: Pace(rate, batch, 0.0, 1.0) for batch, rate in rates.items()}) == 8


def test_the_cosine_is_that_of_the_worst_image() -> None:
    image = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    both = torch.stack([image, image])
    assert cosine(both, both) == pytest.approx(1.0)
    assert cosine(torch.stack([image, 1 - image]), both) == pytest.approx(-1.0)
