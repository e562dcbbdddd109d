from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from torch.nn import Conv2d, Linear, Sequential

from mvc.errors import ConfigError, EnvironmentFault
from mvc.randomness import seeded_global
from mvc.train.optimizers import make_optimizer, optimizer_tensors, require_optimizer, restore_optimizer
from tests.train.toy import normal

ROOT = Path(__file__).resolve().parents[2]
SHARDED = """
import torch
from torch.distributed.fsdp import fully_shard
from mvc.train.optimizers import optimizer_tensors, restore_optimizer
from mvc.train.sharding import whole
from tests.train.test_optimizers import names_of, network, optimizer_for, steps

torch.distributed.init_process_group("gloo")
models = [network(), network(), network()]
for model in models[1:]:
    fully_shard(model, mesh=torch.distributed.init_device_mesh("cpu", (2,)))
alone, straight, resumed = models
steps(alone, optimizer_for("adamw", alone), range(6))
steps(straight, optimizer_for("adamw", straight), range(6))
first = optimizer_for("adamw", resumed)
steps(resumed, first, range(3))
saved = {name: whole(value).clone() for name, value in optimizer_tensors(first, names_of(resumed)).items()}
assert saved["0.weight/exp_avg"].shape == (64, 8, 3, 3)
second = optimizer_for("adamw", resumed)
restore_optimizer(second, names_of(resumed), saved)
steps(resumed, second, range(3, 6))
for one, other, plain in zip(resumed.parameters(), straight.parameters(), alone.parameters(), strict=True):
    assert torch.equal(whole(one), whole(other))
    torch.testing.assert_close(whole(one), plain, rtol=0, atol=1e-6)
torch.distributed.destroy_process_group()
"""
CPU = torch.device("cpu")
Name = Literal["adamw", "adamw8bit"]
eight_bit = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs the extra 8bit")
NAMES = [pytest.param("adamw"), pytest.param("adamw8bit", marks=eight_bit)]


def network(channels_last: bool = False) -> Any:
    """A convolution of 4,608 weights, which 8-bit AdamW quantises, and tensors below its limit of 4,096."""
    with seeded_global(0, "test network"):
        made = Sequential(Conv2d(8, 64, 3), torch.nn.Flatten(), Linear(64, 3))
    return made.to(memory_format=torch.channels_last) if channels_last else made


def optimizer_for(name: Name, model: Any, rate: float = 1e-2) -> torch.optim.Optimizer:
    return make_optimizer(name, model.parameters(), rate, (0.9, 0.999), 0.1, 1e-8, CPU)


def names_of(model: Any) -> list[str]:
    return [name for name, _ in model.named_parameters()]


def steps(model: Any, optimizer: torch.optim.Optimizer, numbers: Sequence[int]) -> Any:
    for number in numbers:
        optimizer.zero_grad()
        model(normal(4, 8, 3, 3, seed=number)).square().mean().backward()
        optimizer.step()
    return model


def test_adamw_is_its_closed_form() -> None:
    """One weight, three steps: decay, both moments, bias correction."""
    weight = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = make_optimizer("adamw", [weight], 0.1, (0.8, 0.9), 0.05, 1e-3, CPU)
    expected, m, v = 2.0, 0.0, 0.0
    for t, gradient in enumerate([0.5, -1.0, 0.25], start=1):
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        m, v = 0.8 * m + 0.2 * gradient, 0.9 * v + 0.1 * gradient**2
        expected *= 1 - 0.1 * 0.05
        expected -= 0.1 * (m / (1 - 0.8**t)) / ((v / (1 - 0.9**t)) ** 0.5 + 1e-3)
        torch.testing.assert_close(weight.item(), expected)


@pytest.mark.parametrize("through_accelerate", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_it_goes_on_to_the_bit(tmp_path: Path, name: Name, through_accelerate: bool) -> None:
    whole = network()
    steps(whole, optimizer_for(name, whole), range(6))
    part = network()
    first: Any = optimizer_for(name, part)
    first = Accelerator(cpu=True).prepare(first) if through_accelerate else first
    steps(part, first, range(3))
    save_file(optimizer_tensors(first, names_of(part)), tmp_path / "optimizer.safetensors")
    again = network()
    again.load_state_dict(part.state_dict())
    second: Any = optimizer_for(name, again)
    second = Accelerator(cpu=True).prepare(second) if through_accelerate else second
    tensors = load_file(tmp_path / "optimizer.safetensors")
    restore_optimizer(second, names_of(again), tensors)
    kept = optimizer_tensors(second, names_of(again))
    assert kept.keys() == tensors.keys()
    assert all(torch.equal(kept[key], tensors[key]) and kept[key].dtype == tensors[key].dtype for key in tensors)
    steps(again, second, range(3, 6))
    for one, other in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(one, other)


def test_the_layout_of_the_weights_is_kept() -> None:
    """Saved moments are laid out plainly; a fused kernel refuses them beside weights that are channels last."""
    whole = network(channels_last=True)
    steps(whole, optimizer_for("adamw", whole), range(6))
    part = network(channels_last=True)
    first = optimizer_for("adamw", part)
    steps(part, first, range(3))
    plain = {key: value.contiguous() for key, value in optimizer_tensors(first, names_of(part)).items()}
    assert plain["0.weight/exp_avg"].stride() != part[0].weight.stride()
    second = optimizer_for("adamw", part)
    restore_optimizer(second, names_of(part), plain)
    assert optimizer_tensors(second, names_of(part))["0.weight/exp_avg"].stride() == part[0].weight.stride()
    steps(part, second, range(3, 6))
    assert all(torch.equal(one, other) for one, other in zip(part.parameters(), whole.parameters(), strict=True))


def test_restored_tensors_are_copies() -> None:
    model = network()
    optimizer = optimizer_for("adamw", model)
    steps(model, optimizer, range(2))
    saved = {key: value.clone() for key, value in optimizer_tensors(optimizer, names_of(model)).items()}
    other = optimizer_for("adamw", model)
    restore_optimizer(other, names_of(model), saved)
    before = {key: value.clone() for key, value in saved.items()}
    steps(model, other, range(2, 4))
    assert all(torch.equal(saved[key], before[key]) for key in saved)


@pytest.mark.parametrize("name", NAMES)
def test_there_is_no_state_before_the_first_step(name: Name) -> None:
    model = network()
    optimizer = optimizer_for(name, model)
    assert optimizer_tensors(optimizer, names_of(model)) == {}
    restore_optimizer(optimizer, names_of(model), {})
    steps(model, optimizer, range(1))
    assert len(optimizer_tensors(optimizer, names_of(model))) >= 12


@eight_bit
def test_eight_bits_take_a_quarter_of_the_memory() -> None:
    model = network()
    optimizer = optimizer_for("adamw8bit", model)
    steps(model, optimizer, range(1))
    tensors = optimizer_tensors(optimizer, names_of(model))
    keys = {name: {key.rpartition("/")[2] for key in tensors if key.startswith(name)} for name in names_of(model)}
    assert keys["0.weight"] == {"step", "state1", "state2", "absmax1", "absmax2"}
    assert keys["2.weight"] == {"step", "state1", "state2"}
    size = {key: value.numel() * value.element_size() for key, value in tensors.items()}
    weights = 8 * 64 * 9
    # Two bytes a weight, two float32 scales for each 256 of them, one int64 count.
    assert sum(size[key] for key in size if key.startswith("0.weight")) == 2 * weights + 8 * (weights // 256) + 8
    assert sum(size[key] for key in size if key.startswith("2.weight")) == 8 * 64 * 3 + 8


@eight_bit
def test_eight_bits_go_where_thirty_two_go() -> None:
    start, wide, small = network(), network(), network()
    steps(wide, optimizer_for("adamw", wide, 1e-3), range(20))
    steps(small, optimizer_for("adamw8bit", small, 1e-3), range(20))
    moved = [w - s for w, s in zip(wide.parameters(), start.parameters(), strict=True)]
    other = [w - s for w, s in zip(small.parameters(), start.parameters(), strict=True)]
    # The convolution is quantised; the others differ only by what flows through it.
    for one, two in zip(moved, other, strict=True):
        cosine = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
        assert float(cosine.detach()) > 0.98 and 0.95 < float(two.detach().norm() / one.detach().norm()) < 1.05
    assert not torch.equal(moved[0], other[0])


def test_eight_bits_refuse_channels_last() -> None:
    require_optimizer("adamw", channels_last=True)
    attempts = (
        lambda: require_optimizer("adamw8bit", channels_last=True),
        lambda: optimizer_for("adamw8bit", network(channels_last=True)),
    )
    for attempt in attempts:
        with pytest.raises(ConfigError, match="adamw8bit and train.channels_last=true do not go together"):
            attempt()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "bitsandbytes"] + ["bitsandbytes"]:
        monkeypatch.setitem(sys.modules, name, None)  # imports of it fail, as they do where it is not installed
    require_optimizer("adamw")
    for attempt in (lambda: require_optimizer("adamw8bit"), lambda: optimizer_for("adamw8bit", network())):
        with pytest.raises(EnvironmentFault, match=r"needs the package bitsandbytes(.|\n)*pip install 'mvc\[8bit\]'"):
            attempt()


@pytest.mark.slow
def test_two_sharded_processes_go_on_to_the_bit(tmp_path: Path) -> None:
    script = tmp_path / "sharded.py"
    script.write_text(SHARDED)
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
