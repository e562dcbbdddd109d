"""FSDP over two gloo processes: parts become whole tensors and parts again, and training comes to the same weights."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mvc.train.sharding import like, whole
from tests.train import toy

ROOT = Path(__file__).resolve().parents[2]

PARTS = """
import torch
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from mvc.train.sharding import like, whole
from tests.train import toy

torch.distributed.init_process_group("gloo")
unet = toy.wide_unet()
before = {name: value.detach().clone() for name, value in unet.named_parameters()}
fully_shard(unet)
parts = dict(unet.named_parameters())
held = sum(value.to_local().numel() for value in parts.values())
everything = sum(value.numel() for value in before.values())
assert held < 0.6 * everything, (held, everything)
for name, part in parts.items():
    assert isinstance(part, DTensor)
    assert torch.equal(whole(part.detach()), before[name]), name
    again = like(part, before[name])
    assert isinstance(again, DTensor) and again.placements == part.placements
    assert torch.equal(again.to_local(), part.to_local()), name
plain = torch.arange(3.0)
assert whole(plain) is plain and like(plain, plain) is plain
torch.distributed.destroy_process_group()
"""

TRAINING = """
import sys
from pathlib import Path
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType
from mvc.train.loop import fit
from tests.tiny_parts import sd_scheduler
from tests.train import toy

# accelerate offers FSDP on accelerators alone, although torch's works on gloo; what follows is its own code unchanged.
PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
accelerator = Accelerator()
assert accelerator.is_fsdp2 and accelerator.num_processes == 2
steps = int(sys.argv[2])
recipe = toy.recipe(max_train_steps=steps, gradient_accumulation_steps=2, checkpointing_steps=3)
fit(toy.wide_unet(), sd_scheduler(), toy.make_batch, Path(sys.argv[1]), recipe, {"seed": 0}, accelerator)
"""


def run_two(script: Path, text: str, *arguments: str) -> None:
    script.write_text(text)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    fsdp = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}
    here = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_TORCH_DEVICE": "cpu"}
    environment = {**os.environ, **fsdp, **here}
    done = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, env=environment, check=False, timeout=240
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_one_process_has_whole_tensors() -> None:
    tensor = torch.arange(3.0)
    assert whole(tensor) is tensor and like(torch.zeros(3), tensor) is tensor


@pytest.mark.slow
def test_parts_are_made_whole_and_back(tmp_path: Path) -> None:
    run_two(tmp_path / "parts_script.py", PARTS)


@pytest.mark.slow
def test_sharded_training_equals_one_process_and_goes_on_to_the_bit(tmp_path: Path) -> None:
    toy.train(tmp_path / "alone", gradient_accumulation_steps=2, checkpointing_steps=3)
    script = tmp_path / "training_script.py"
    run_two(script, TRAINING, str(tmp_path / "through"), "6")
    run_two(script, TRAINING, str(tmp_path / "resumed"), "3")
    run_two(script, TRAINING, str(tmp_path / "resumed"), "6")
    for part in ("unet", "ema", "optimizer"):
        name = f"checkpoints/step-000006/{part}.safetensors"
        alone, through, resumed = (load_file(tmp_path / run / name) for run in ("alone", "through", "resumed"))
        assert set(alone) == set(through) == set(resumed)
        for key, value in alone.items():
            torch.testing.assert_close(through[key], value, rtol=0, atol=1e-5, msg=key)
            assert torch.equal(resumed[key], through[key]), key
