"""Two processes train on the same samples as one, and come to the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvc.storage import read_json_lines
from mvc.train import stage
from tests.train.small_run import experiment_for, write_run

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = """
import sys
from pathlib import Path
import torch
from mvc.train import stage
from tests.train.small_run import experiment_for
run = Path(sys.argv[1])
stage.run_train(run, experiment_for(run))
assert torch.distributed.get_world_size() == 2
"""


@pytest.mark.slow
def test_two_gloo_processes_equal_one(tmp_path: Path) -> None:
    alone, together = write_run(tmp_path / "alone"), write_run(tmp_path / "together")
    stage.run_train(alone, experiment_for(alone))
    experiment_for(together)  # writes the base model, which the two processes would do at once
    script = tmp_path / "train_script.py"
    script.write_text(SCRIPT)
    # torchrun, because `accelerate launch --cpu --num_processes 2` silently starts one process.
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), str(together)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    losses = [[row["loss"] for row in read_json_lines(run / "logs/train.jsonl")] for run in (alone, together)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    weights = [load_file(run / "model/unet/diffusion_pytorch_model.safetensors") for run in (alone, together)]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5, msg=name)
