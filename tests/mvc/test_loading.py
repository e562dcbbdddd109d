"""Pickles are refused whatever they are called, and nothing outside a part's folder is opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from mvc.errors import EnvironmentFault
from mvc.loading import is_pickled, load_part, quiet, require_safetensors
from tests.tiny_parts import tiny_unet


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_pickles_are_known_by_name_and_by_content(tmp_path: Path) -> None:
    for suffix in (".bin", ".pt", ".pth", ".ckpt", ".CKPT", ".pkl"):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(b"anything")
        assert is_pickled(path)
    for protocol in (2, 3, 4, 5):
        (tmp_path / "named.safetensors").write_bytes(pickle.dumps({"a": 1}, protocol))
        assert is_pickled(tmp_path / "named.safetensors")
    torch.save({"a": torch.zeros(2)}, tmp_path / "zipped.safetensors")
    assert is_pickled(tmp_path / "zipped.safetensors")


def test_safetensors_are_no_pickles_whatever_their_header_length(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    assert not is_pickled(path)
    for first in (2, 3, 4, 5):  # lengths whose first two bytes are those of a pickle
        length = first * 256 + 0x80
        header = json.dumps({"__metadata__": {"pad": ""}}).ljust(length).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        assert path.read_bytes()[:2] == bytes([0x80, first]) and not is_pickled(path)


@pytest.mark.parametrize("zipped", [False, True])
def test_a_renamed_pickle_is_refused_unopened(tmp_path: Path, zipped: bool) -> None:
    tiny_unet().save_pretrained(tmp_path / "unet")
    weights = tmp_path / "unet/diffusion_pytorch_model.safetensors"
    trap = tmp_path / "sprung"
    if zipped:
        torch.save(Trap(trap), weights)
    else:
        weights.write_bytes(pickle.dumps(Trap(trap)))
    with pytest.raises(EnvironmentFault, match=r"safetensors is a pickled file\nwhy: .*any program"):
        load_part(UNet2DConditionModel, tmp_path / "unet")
    assert not trap.exists()


@pytest.mark.parametrize(
    "name", ["diffusion_pytorch_model-1.bin", "../other/weights.safetensors", "/weights.safetensors"]
)
def test_the_list_of_shards_names_safetensors_beside_it_alone(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "unet"
    with quiet():
        tiny_unet().save_pretrained(folder, max_shard_size="100KB")
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    content = json.loads(index.read_text())
    assert len(set(content["weight_map"].values())) > 1
    loaded = load_part(UNet2DConditionModel, folder)
    for key, value in tiny_unet().state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    content["weight_map"]["conv_in.bias"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(EnvironmentFault, match=rf"index.json names {name}\n"):
        load_part(UNet2DConditionModel, folder)


def test_other_files_are_no_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("not weights at all")
    with pytest.raises(EnvironmentFault, match="model.base notes is no safetensors file"):
        require_safetensors(tmp_path / "notes.txt", "model.base notes")
