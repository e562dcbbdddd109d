"""Sizes by formula against what a real training keeps and writes."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from mvc.disk import bytes_below
from mvc.train.checkpoints import checkpoints
from mvc.train.lora import add_lora, trained
from mvc.train.sizes import Entry, checkpoint_bytes, checkpoints_to_come, file_bytes, memory_parts, optimizer_entries
from tests.train.toy import train, wide_unet

EIGHT_BIT = pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@pytest.mark.parametrize("ema", [True, False])
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("adamw8bit", marks=EIGHT_BIT)])
def test_a_checkpoint_is_as_large_as_the_formula_says(optimizer: Any, ema: bool, tmp_path: Path) -> None:
    unet, _ = train(tmp_path, max_train_steps=1, optimizer=optimizer, use_ema=ema)
    (folder,) = checkpoints(tmp_path / "checkpoints")
    files = [folder / f"{name}.safetensors" for name in ("unet", "ema", "optimizer")]
    said = checkpoint_bytes(trained(unet), optimizer, ema)
    assert said == sum(path.stat().st_size for path in files)
    assert said == pytest.approx(bytes_below(folder), rel=2e-2)
    kept = load_file(folder / "optimizer.safetensors")
    entries = {entry.name: entry for entry in optimizer_entries(trained(unet), optimizer)}
    assert {name: (tuple(value.shape), value.element_size()) for name, value in kept.items()} == {
        name: (entry.shape, entry.width) for name, entry in entries.items()
    }


def test_a_file_of_known_content_has_its_exact_size() -> None:
    # {"a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]}} has 57 letters, padded to 64.
    assert file_bytes([Entry("a", (2, 3))]) == 8 + 64 + 24
    assert file_bytes([]) == 8 + 8


def test_lora_trains_and_saves_the_additions_alone() -> None:
    plain, unet = wide_unet(), wide_unet()
    add_lora(unet, 4, 4.0, ["to_q"], False, seed=0)
    additions = sum(value.numel() for name, value in unet.named_parameters() if "lora_" in name)
    learnt = additions + sum(value.numel() for value in plain.conv_in.parameters())
    parts = memory_parts(list(unet.named_parameters()), trained(unet), "adamw", average_on_device=True)
    everything = sum(value.numel() for value in plain.parameters()) + additions
    assert (parts.weights, parts.gradients, parts.average) == (4 * everything, 4 * learnt, 4 * learnt)
    assert parts.moments == 8 * learnt + 4 * len(trained(unet))
    assert parts.total == parts.weights + parts.gradients + parts.moments + parts.average
    assert memory_parts(list(unet.named_parameters()), trained(unet), "adamw", False).average == 0
    small, large = (checkpoint_bytes(trained(one), "adamw", True) for one in (unet, plain))
    assert 16 * learnt < small < large / 5


def test_checkpoints_that_are_there_need_no_more_room(tmp_path: Path) -> None:
    assert checkpoints_to_come(tmp_path / "checkpoints", 100, 2) == 400
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    (tmp_path / "checkpoints" / "step-000002" / "x").write_bytes(b"x" * 150)
    assert checkpoints_to_come(tmp_path / "checkpoints", 100, 2) == 250
    assert checkpoints_to_come(tmp_path / "checkpoints", 10, 2) == 0
