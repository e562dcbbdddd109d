"""Back-captioning from the command line, on real digits with the embedded models: a whole run, stopped and changed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mvc.stages import BACK_CAPTIONS
from mvc.storage import read_json, read_json_lines, write_json_lines
from mvc.synthetic import read_synthetic

pytestmark = pytest.mark.slow

SETTINGS = [
    "data.shots=2",
    "generate.sources={back_captioning: 0.5, pretrained: 0.5}",
    "generate.per_real=4",
    "generate.num_inference_steps=4",
    "generate.preview=0",
    "filter.classifier=false",
    "classify.arms=[real, combined@back_captioning, combined@pretrained]",
    "classify.seeds=1",
    "classify.max_train_steps=20",
]


def mvc(command: str, run: Path, *more: str) -> subprocess.CompletedProcess[str]:
    given = [sys.executable, "-m", "mvc", command, "digits", *SETTINGS, f"run.dir={run}", *more]
    return subprocess.run(given, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def test_a_whole_run_with_a_kill_and_changes(tmp_path: Path) -> None:
    run, rows = tmp_path / "run", tmp_path / "run" / BACK_CAPTIONS
    given = [sys.executable, "-m", "mvc", "back-caption", "digits", *SETTINGS, f"run.dir={run}"]
    with subprocess.Popen(given, stderr=subprocess.PIPE) as process:
        journal, end = run / "cache" / "back_captions" / "outputs.jsonl", time.monotonic() + 120
        while not journal.exists() and time.monotonic() < end:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
    assert not rows.exists()
    done = mvc("back-caption", run)
    assert done.returncode == 0 and done.stdout.strip() == f"back captions: {rows}", done.stderr
    whole = mvc("back-caption", tmp_path / "whole")
    assert whole.returncode == 0 and rows.read_bytes() == (tmp_path / "whole" / BACK_CAPTIONS).read_bytes()

    edited = read_json_lines(rows)
    first, said = edited[0]["id"], f"This is an image of {edited[0]['class_name']}. a large red one."
    edited = [{**row, "text": said} if row["id"] == first else row for row in edited]
    write_json_lines(rows, edited)
    done = mvc("run", run)
    assert done.returncode == 0, done.stderr
    assert "train: no image of the fine-tuned model is asked for" in done.stderr
    images = read_synthetic(run)
    assert {image.source for image in images} == {"back_captioning", "pretrained"}
    assert {image.row["text"] for image in images if image.row["source_image"] == first} <= {said, None}
    assert said in {image.row["text"] for image in images}
    assert read_json(run / "results" / "verdict.json")["best_arm"].startswith("combined@")
    page = (run / "report" / "index.html").read_text()
    assert "back-captioned" in page and "combined@back_captioning" in page
    again = mvc("run", run)
    assert again.returncode == 0 and "everything was done before" in again.stderr

    refused = mvc("generate", run, "back_captioning.captions=3")
    assert refused.returncode == 2 and "back_captioning.captions: 2 -> 3" in refused.stderr
    redone = mvc("back-caption", run, "back_captioning.captions=3", "--redo")
    assert redone.returncode == 0, redone.stderr
    assert len(read_json_lines(rows)) == 20 * 3 * 2
    assert read_json_lines(run / "back_captions.before-redo.jsonl") == edited
    too_many = mvc("generate", tmp_path / "whole", "generate.per_real=20")
    assert too_many.returncode == 2 and "images give 8 each" in too_many.stderr
