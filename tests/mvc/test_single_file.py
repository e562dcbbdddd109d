"""A model in one file becomes a folder with the same tensors, once; anything else is refused."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mvc import models
from mvc.errors import ConfigError, EnvironmentFault
from mvc.single_file import cache_folder, converted
from tests.original_layout import original_tensors, weights_of, write_original
from tests.tiny_parts import write_pipeline, write_sd2_pipeline, write_xl_pipeline

WRITERS: dict[str, Callable[[Path], Path]] = {
    "sd1": write_pipeline,
    "sd2": write_sd2_pipeline,
    "xl": write_xl_pipeline,
    "pix2pix": lambda folder: write_pipeline(folder, in_channels=8),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("bases")
    return {name: write(place / name) for name, write in WRITERS.items()}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mvc" / "models"


def configurations(base: Path, folder: Path) -> Path:
    """A base without its weights, as a user without network may have it."""
    shutil.copytree(base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def same(first: Path, second: Path) -> bool:
    one, other = weights_of(first), weights_of(second)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", list(WRITERS))
def test_a_file_becomes_a_folder_with_the_same_tensors(
    bases: dict[str, Path], tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = bases[kind]
    file = write_original(tmp_path / "model.safetensors", base, "sd1" if kind == "pix2pix" else kind)
    folder = models.resolve_base(str(file), None, str(configurations(base, tmp_path / "configurations")))
    assert "converting it once" in capsys.readouterr().err
    for part in (path.name for path in base.iterdir() if list(path.glob("*.safetensors"))):
        assert same(folder / part, base / part), part
    for load in (models.load_unet, models.load_vae, models.load_noise_scheduler):
        load(folder)
    text = models.load_text(folder, torch.device("cpu"))
    assert len(text.encoders) == (2 if kind == "xl" else 1) and text.zero_null == (kind == "xl")
    prediction = "v_prediction" if kind == "sd2" else "epsilon"
    assert models.read_config(folder, "scheduler")["prediction_type"] == prediction
    assert models.read_config(folder, "unet")["in_channels"] == (8 if kind == "pix2pix" else 4)
    assert cache_folder() in folder.parents and models.resolve_base(folder) == folder


def test_a_file_is_converted_once_for_its_content(
    bases: dict[str, Path], tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = str(bases["sd1"])
    file = write_original(tmp_path / "model.safetensors", bases["sd1"], "sd1")
    first = converted(file, config)
    capsys.readouterr()
    renamed = tmp_path / "renamed.safetensors"
    file.rename(renamed)
    assert converted(renamed, config) == first and "converting" not in capsys.readouterr().err
    other = write_original(renamed, bases["sd1"], "sd1", lambda t: t["first_stage_model.quant_conv.bias"].add_(1.0))
    assert converted(other, config) != first
    # A configuration that says something else gives another model.
    changed = configurations(bases["sd1"], tmp_path / "changed")
    path = changed / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "prediction_type": "v_prediction"}))
    assert converted(other, str(changed)) not in (first, converted(other, config))
    assert len([path for path in cache.iterdir() if path.is_dir()]) == 3


def test_half_precision_is_kept_and_v_prediction_is_marked(bases: dict[str, Path], tmp_path: Path) -> None:
    def halve(tensors: dict[str, torch.Tensor]) -> None:
        tensors |= {name: value.half() for name, value in tensors.items()}
        tensors["v_pred"] = torch.zeros(0, dtype=torch.float16)

    file = write_original(tmp_path / "half.safetensors", bases["xl"], "xl", halve)
    folder = converted(file, str(bases["xl"]))
    assert {value.dtype for value in weights_of(folder / "unet").values()} == {torch.float16}
    assert models.load_unet(folder).conv_in.weight.dtype == torch.float32
    assert models.read_config(folder, "scheduler")["prediction_type"] == "v_prediction"


UNET, VAE = "model.diffusion_model.", "first_stage_model."


@pytest.mark.parametrize(
    ("kind", "edit", "message"),
    [
        ("sd1", lambda t: t.pop(f"{UNET}out.2.weight"), "cannot be converted\nwhy: it lacks weights"),
        ("sd1", lambda t: t.update({f"{UNET}more.weight": torch.zeros(7)}), "unet.*unknown: 7 numbers below model"),
        ("sd1", lambda t: t[f"{VAE}quant_conv.bias"].fill_(torch.nan), "vae.*not finite: quant_conv.bias"),
        ("sd1", lambda t: t.update({f"{UNET}out.2.bias": torch.zeros(9)}), "cannot be converted"),
        ("sd1", lambda t: t.update({f"{VAE}encoder.more": torch.zeros(5)}), "vae.*unknown: 5 numbers below first"),
        (
            "sd2",
            lambda t: t.pop("cond_stage_model.model.ln_final.bias"),
            "text_encoder.*missing: final_layer_norm.bias",
        ),
        (
            "xl",
            lambda t: t.update({"conditioner.embedders.1.model.more": torch.zeros(3)}),
            "text_encoder_2.*unknown: 3 numbers",
        ),
    ],
)
def test_files_that_are_not_whole_are_refused(
    bases: dict[str, Path], tmp_path: Path, cache: Path, kind: str, edit: Any, message: str
) -> None:
    file = write_original(tmp_path / "model.safetensors", bases[kind], kind, edit)
    with pytest.raises(EnvironmentFault, match=message):
        converted(file, str(bases[kind]))
    assert not [path for path in cache.iterdir() if path.is_dir()]


def test_files_of_other_kinds_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    def edm(tensors: dict[str, torch.Tensor]) -> None:
        tensors["edm_vpred.sigma_max"] = torch.zeros(())

    def only_unet(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if not name.startswith(UNET)]:
            tensors.pop(name)

    for edit in (edm, only_unet):
        file = write_original(tmp_path / "other.safetensors", bases["xl"], "xl", edit)
        with pytest.raises(ConfigError, match="holds no model that is known"):
            converted(file, str(bases["xl"]))
    file = write_original(tmp_path / "one.safetensors", bases["sd1"], "sd1")
    with pytest.raises(ConfigError, match="model.config .* is of another kind .*\nwhy: the file holds a Stable D.* 1"):
        converted(file, str(bases["xl"]))
    with pytest.raises(EnvironmentFault, match="model.config /nowhere is not there"):
        converted(file, "/nowhere")


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors", "model.bin"])
def test_a_pickled_base_is_refused_unopened(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(pickle.dumps(os.getcwd))
    with pytest.raises(EnvironmentFault, match=rf"model.base .*{name} is a pickled file\nwhy: .*any program"):
        models.resolve_base(str(tmp_path / name))


def test_damaged_and_other_files_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no weights at all")
    with pytest.raises(EnvironmentFault, match=r"notes.txt is no safetensors file"):
        models.resolve_base(str(tmp_path / "notes.txt"))
    file = write_original(tmp_path / "model.safetensors", bases["sd1"], "sd1")
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EnvironmentFault, match=r"model.safetensors cannot be read"):
        models.resolve_base(str(file))


def in_hub_cache(base: Path, home: Path, name: str, revision: str) -> None:
    """Put a folder where the hub's own client would have put it."""
    place = home / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / revision).write_text("0123abcd")
    shutil.copytree(base, place / "snapshots" / "0123abcd")


def test_hub_ids_come_from_the_hubs_cache(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    in_hub_cache(bases["xl"], tmp_path / "hub", "stabilityai/stable-diffusion-xl-base-1.0", "main")
    in_hub_cache(bases["sd2"], tmp_path / "hub", "somebody/model", "v2")
    folder = models.resolve_base("somebody/model", "v2")
    assert same(folder / "unet", bases["sd2"] / "unet")
    with pytest.raises(EnvironmentFault, match="at revision v3"):
        models.resolve_base("somebody/model", "v3")
    # The usual repository of the kind is taken where no configuration is given.
    file = write_original(tmp_path / "model.safetensors", bases["xl"], "xl")
    assert same(models.resolve_base(str(file)) / "text_encoder_2", bases["xl"] / "text_encoder_2")
    file = write_original(tmp_path / "two.safetensors", bases["sd2"], "sd2")
    assert same(models.resolve_base(str(file), "v2", "somebody/model") / "vae", bases["sd2"] / "vae")
    with pytest.raises(EnvironmentFault, match="model.config stabilityai/stable-diffusion-2-1 is no local folder"):
        models.resolve_base(str(file))


def test_the_original_layout_has_other_names(bases: dict[str, Path]) -> None:
    """The test's own inverse really renames: hardly a name is as in diffusers."""
    names = set(original_tensors(bases["sd1"], "sd1"))
    assert f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight" in names
    assert f"{UNET}output_blocks.3.1.proj_in.weight" in names and f"{UNET}output_blocks.1.1.conv.weight" in names
    assert f"{VAE}decoder.up.2.upsample.conv.weight" in names and f"{VAE}encoder.mid.attn_1.q.weight" in names
