"""Pretrained models of transformers: found or named, loaded whole or refused, and known by their content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from mvc.errors import EnvironmentFault
from mvc.pretrained import FILES, find_model, identity_of, load_network, load_whole
from mvc.randomness import seeded_global

CPU, WHAT, KEY = torch.device("cpu"), "language model", "language_model.model"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    config = GPT2Config(vocab_size=20, n_positions=16, n_embd=8, n_layer=1, n_head=2, tie_word_embeddings=False)
    with seeded_global(0, "test gpt2"):
        GPT2LMHeadModel(config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder: Path, **settings: object) -> torch.nn.Module:
    network: torch.nn.Module = load_network(GPT2LMHeadModel, folder, CPU, WHAT, KEY, **settings)  # type: ignore[arg-type]
    return network


def change(folder: Path, **weights: torch.Tensor | None) -> None:
    """Replace weights of a checkpoint, or take them out."""
    path = folder / "model.safetensors"
    stored = load_file(path)
    for name, value in weights.items():
        full = next(own for own in stored if own.endswith(name.replace("__", ".")))
        stored.pop(full)
        if value is not None:
            stored[full] = value
    save_file(stored, path, {"format": "pt"})


def test_a_whole_model_is_loaded_for_inference_in_float32(folder: Path) -> None:
    network = load(folder)
    assert not network.training and {value.dtype for value in network.state_dict().values()} == {torch.float32}
    assert find_model(folder, None, WHAT, KEY) == folder


def test_what_is_not_whole_is_refused(folder: Path) -> None:
    change(folder, h__0__mlp__c_fc__bias=torch.full((32,), torch.nan))
    with pytest.raises(EnvironmentFault, match="cannot load the language model .*\nwhy: weights are not finite"):
        load(folder)
    change(folder, h__0__mlp__c_fc__bias=None)
    with pytest.raises(EnvironmentFault, match="weights are missing: .*mlp.c_fc.bias(.|\n)*language_model.model"):
        load(folder)
    assert load(folder, new=[r"mlp\.c_fc\.bias$"]) is not None  # to be trained
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(EnvironmentFault, match="cannot load the language model"):
        load(folder)


def test_what_cannot_be_had_or_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match="cannot load the language model nobody/nothing at revision v9"):
        find_model("nobody/nothing", "v9", WHAT, KEY)
    (folder / "config.json").write_text("{")
    with pytest.raises(EnvironmentFault, match="cannot load the language model .*model"):
        load_whole(AutoTokenizer.from_pretrained, folder, WHAT, KEY)


def test_identity_is_of_all_that_counts(folder: Path) -> None:
    before = identity_of(folder)
    (folder / "README.md").write_text("no part of it")
    assert identity_of(folder) == before
    seen = {before}
    for name in ("chat_template.jinja", "source.spm", "tokenizer.model", "vocab.json"):
        (folder / name).write_text("{}")
        seen.add(identity_of(folder))
    assert len(seen) == 5
    assert {"*.spm", "*.jinja", "*.safetensors"} <= set(FILES) and not any("bin" in one for one in FILES)
