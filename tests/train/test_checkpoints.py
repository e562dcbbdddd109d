from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from mvc.errors import ConfigError, EnvironmentFault, NumericError
from mvc.train.checkpoints import (
    TrainingState,
    checkpoints,
    load_newest,
    save_checkpoint,
)
from mvc.train.optimizers import optimizer_tensors, restore_optimizer
from tests.train.toy import normal

SETTINGS = {"train.learning_rate": 1e-3, "run.seed": 0}


def state(step: int) -> TrainingState:
    unet, optimizer = {"w": normal(3, seed=step)}, {"w/exp_avg": normal(3, seed=step + 1), "w/step": torch.tensor(2.0)}
    return TrainingState(step, unet, {"w": normal(3, seed=step + 2)}, step + 3, optimizer, {"scale": 2.0})


def equal(one: TrainingState, other: TrainingState) -> bool:
    tensors = ("unet", "ema", "optimizer")
    same = all(
        getattr(one, part).keys() == getattr(other, part).keys()
        and all(torch.equal(value, getattr(other, part)[key]) for key, value in getattr(one, part).items())
        for part in tensors
    )
    return same and (one.step, one.ema_updates, one.scaler) == (other.step, other.ema_updates, other.scaler)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def newest(folder: Path) -> TrainingState:
    found = load_newest(folder, SETTINGS)
    assert found is not None
    return found


def test_what_is_saved_comes_back_and_old_ones_go(tmp_path: Path) -> None:
    assert load_newest(tmp_path, SETTINGS) is None
    for step in (5, 50, 1_000_000, 2_000_000):
        save_checkpoint(tmp_path, state(step), SETTINGS, keep=2)
    assert names(tmp_path) == ["step-1000000", "step-2000000"]
    assert equal(newest(tmp_path), state(2_000_000))


@pytest.mark.parametrize("file", ["unet.safetensors", "optimizer.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["bit", "cut", "gone"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(
    tmp_path: Path, file: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        save_checkpoint(tmp_path, state(step), SETTINGS, keep=2)
    path = tmp_path / "step-000002" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 128
    path.unlink()
    if damage != "gone":
        path.write_bytes(bytes(content) if damage == "bit" else bytes(content[:-20]))
    assert equal(newest(tmp_path), state(1))
    assert "step-000002 is damaged" in capsys.readouterr().err


def test_half_written_ones_are_no_checkpoints(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), SETTINGS, keep=2)
    left = tmp_path / ".tmp-123-step-000002"
    left.mkdir()
    (left / "unet.safetensors").write_bytes(b"half")
    assert equal(newest(tmp_path), state(1))
    assert names(tmp_path) == ["step-000001"]


def test_other_settings_are_refused_by_name(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), SETTINGS, keep=2)
    with pytest.raises(ConfigError, match=r"train.learning_rate: 0.001 -> 0.01") as caught:
        load_newest(tmp_path, {**SETTINGS, "train.learning_rate": 1e-2})
    assert caught.value.exit_code == 2
    assert equal(newest(tmp_path), state(1))


@pytest.mark.parametrize("part", ["unet", "ema", "optimizer"])
def test_numbers_that_are_not_finite_are_never_saved(tmp_path: Path, part: str) -> None:
    save_checkpoint(tmp_path, state(1), SETTINGS, keep=2)
    bad = state(2)
    next(iter(getattr(bad, part).values()))[1] = float("inf")
    with pytest.raises(NumericError, match=r"after step 2(.|\n)*last checkpoint is .*step-000001"):
        save_checkpoint(tmp_path, bad, SETTINGS, keep=2)
    assert names(tmp_path) == ["step-000001"]


def test_a_full_disk_leaves_the_older_ones(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, state(1), SETTINGS, keep=2)
    large = state(2)
    large = TrainingState(2, {"w": torch.zeros(200_000)}, large.ema, 1, large.optimizer, {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(EnvironmentFault, match=r"cannot write .*step-000002"):
            save_checkpoint(tmp_path, large, SETTINGS, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["step-000001"]
    assert equal(newest(tmp_path), state(1))


def test_checkpoints_are_sorted_by_number(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 2):
        (tmp_path / f"step-{step:06d}").mkdir()
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1000000", "step-999999", "step-000002"]


def linear(seed: int) -> tuple[Any, torch.optim.AdamW]:
    layer = torch.nn.utils.skip_init(torch.nn.Linear, 3, 2)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        for value in layer.parameters():
            value.copy_(normal(*value.shape, seed=seed))
    return layer, torch.optim.AdamW(layer.parameters(), lr=0.1)


def test_the_optimizer_goes_on_to_the_bit() -> None:
    def steps(layer: Any, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
        for number in range(first, last):
            layer(normal(5, 3, seed=number)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    whole, optimizer = linear(0)
    steps(whole, optimizer, 0, 6)
    part, first = linear(0)
    steps(part, first, 0, 3)
    saved = {key: value.clone() for key, value in optimizer_tensors(first, ["weight", "bias"]).items()}
    assert sorted(saved) == [
        f"{name}/{key}" for name in ("bias", "weight") for key in ("exp_avg", "exp_avg_sq", "step")
    ]
    again, second = linear(1)
    again.load_state_dict(part.state_dict())
    restore_optimizer(second, ["weight", "bias"], saved)
    steps(again, second, 3, 6)
    assert torch.equal(again.weight, whole.weight) and torch.equal(again.bias, whole.bias)
