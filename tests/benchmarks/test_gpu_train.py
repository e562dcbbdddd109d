"""The GPU ladder refuses without a GPU, and at toy size all of it runs on the CPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_train import LADDER
from benchmarks.results import Section

ROOT = Path(__file__).resolve().parents[2]
COMMAND = [sys.executable, "-m", "benchmarks.gpu_train"]


def test_without_a_gpu_it_refuses_in_one_line() -> None:
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(COMMAND, cwd=ROOT, env=hidden, capture_output=True, text=True)
    assert done.returncode == 4 and done.stdout == ""
    said = "gpu_train: there is no CUDA device here; --toy runs the same code on the CPU"
    assert done.stderr.splitlines()[-1] == said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_whole_ladder_at_toy_size(tmp_path: Path) -> None:
    found = tmp_path / "section.json"
    command = [*COMMAND, "--toy", "--rounds", "1", "--json", str(found)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ladder, parity = Section.from_json(found.read_text()).tables
    assert [row[0] for row in ladder.rows] == [rung.name for rung in LADDER]
    assert all(float(row[1]) > 0 and row[4] == "4" for row in ladder.rows)
    assert [row[0].split(", ")[-1] for row in parity.rows] == ["eager", "compiled"]
    assert all(float(row[1]) > 0.999 for row in parity.rows)
