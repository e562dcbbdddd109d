from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DiffusionPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
)
from safetensors.torch import load_file, save_file

from mvc import models
from mvc.diffusion import widen_conv_in
from mvc.errors import ConfigError, EnvironmentFault
from mvc.families import PARTS
from mvc.randomness import generator
from tests.mvc.text_models import second_text_encoder, text_encoder
from tests.tiny_parts import (
    IMAGE_SIZE,
    LATENT_SIZE,
    WIDTH,
    WIDTH_2,
    tiny_unet,
    write_pipeline,
    write_sd2_pipeline,
    write_xl_pipeline,
)

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("base"))


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "base"))


def change(path: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    edit(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_parts_load_as_they_were_saved(whole: Path) -> None:
    unet, expected = models.load_unet(whole), tiny_unet()
    assert not unet.training
    for name, value in expected.state_dict().items():
        assert torch.equal(unet.state_dict()[name], value)
    assert models.load_vae(whole).config.scaling_factor == 0.5
    assert models.load_text_encoder(whole).config.hidden_size == WIDTH
    tokenizer = models.load_tokenizer(whole)
    assert tokenizer("a red cat").input_ids[0] == 0 and tokenizer.model_max_length == 77
    assert models.image_size_of(whole) == IMAGE_SIZE
    assert models.vae_factor(whole) == IMAGE_SIZE // LATENT_SIZE


def test_noise_scheduler_is_the_base_models(whole: Path) -> None:
    scheduler = models.load_noise_scheduler(whole)
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    torch.testing.assert_close(scheduler.alphas_cumprod, torch.cumprod(1 - betas, 0))
    assert scheduler.config.prediction_type == "epsilon"


def test_half_precision_weights_load_as_float32(base: Path) -> None:
    change(base / UNET, lambda tensors: tensors.update({key: value.half() for key, value in tensors.items()}))
    assert {value.dtype for value in models.load_unet(base).parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("file", "edit", "message"),
    [
        (UNET, lambda tensors: tensors.pop("conv_out.weight"), "missing: conv_out.weight"),
        (UNET, lambda tensors: tensors.update({"more": torch.zeros(2)}), "unknown: more"),
        (UNET, lambda tensors: tensors["conv_in.bias"].fill_(float("nan")), "not finite: conv_in.bias"),
        (UNET, lambda tensors: tensors.update({"conv_in.weight": torch.zeros(8, 5, 3, 3)}), "expected shape"),
        (TEXT, lambda tensors: tensors.pop("final_layer_norm.weight"), "missing: final_layer_norm.weight"),
        (TEXT, lambda tensors: tensors.update({"more": torch.zeros(2)}), "unknown: more"),
    ],
)
def test_checkpoints_that_are_not_whole_are_refused(base: Path, file: str, edit: Any, message: str) -> None:
    change(base / file, edit)
    load = models.load_unet if file == UNET else models.load_text_encoder
    with pytest.raises(EnvironmentFault, match=message):
        load(base)


def test_text_encoders_of_older_transformers_load_the_same(whole: Path, base: Path) -> None:
    """They have one level more in their names, and keep a counter, which is no weight."""
    older = {f"text_model.{name}": value for name, value in load_file(whole / TEXT).items()}
    save_file({**older, "text_model.embeddings.position_ids": torch.arange(77)[None]}, base / TEXT, {"format": "pt"})
    expected = models.load_text_encoder(whole).state_dict()
    for name, value in models.load_text_encoder(base).state_dict().items():
        assert torch.equal(value, expected[name])


def test_a_unet_for_inpainting_is_refused(tmp_path: Path) -> None:
    base = write_pipeline(tmp_path / "base", in_channels=9)
    with pytest.raises(ConfigError, match=r"takes 9 channels\n.*4 \(text to image\) and 8 .*inpainting"):
        models.load_unet(base)


def test_the_parts_of_an_sdxl_load_and_have_to_fit(tmp_path: Path) -> None:
    base = write_xl_pipeline(tmp_path / "base")
    text = models.load_text(base, torch.device("cpu"))
    expected = [text_encoder(0, WIDTH), second_text_encoder(0, WIDTH_2)]
    for encoder, other in zip(text.encoders, expected, strict=True):
        assert type(encoder) is type(other)
        for name, value in other.state_dict().items():
            assert torch.equal(encoder.state_dict()[name], value)
    assert [tokenizer.pad_token for tokenizer in text.tokenizers] == ["<|endoftext|>", "!"] and text.zero_null
    path = base / "text_encoder_2/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "projection_dim": 16}))
    with pytest.raises(EnvironmentFault, match=f"encoder's pooled vector of .* is 16 wide, the UNet expects {WIDTH_2}"):
        models.load_text(base, torch.device("cpu"))


def test_the_identity_of_a_text_depends_on_all_that_encodes_it(tmp_path: Path) -> None:
    base = write_xl_pipeline(tmp_path / "base")
    seen = {models.text_identity(base)}
    for name, key in (("text_encoder_2/config.json", "note"), ("model_index.json", "force_zeros_for_empty_prompt")):
        path = base / name
        path.write_text(json.dumps({**json.loads(path.read_text()), key: False}))
        seen.add(models.text_identity(base))
    assert len(seen) == 3
    (base / "unet/config.json").write_text((base / "unet/config.json").read_text() + "\n")
    assert models.text_identity(base) in seen


@pytest.mark.parametrize("keep", [0, 100, -100])
def test_damaged_files_are_refused(base: Path, keep: int) -> None:
    for file, load in ((UNET, models.load_unet), (TEXT, models.load_text_encoder)):
        (base / file).write_bytes((base / file).read_bytes()[:keep])
        with pytest.raises(EnvironmentFault, match="cannot be loaded"):
            load(base)


def test_pickled_weights_are_refused_unopened(base: Path) -> None:
    (base / UNET).unlink()
    (base / "unet/diffusion_pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(EnvironmentFault, match=r"only diffusion_pytorch_model.bin\n.*pickled.*\n.*convert them"):
        models.load_unet(base)


def test_a_text_encoder_of_another_width_is_refused(base: Path) -> None:
    shutil.rmtree(base / "text_encoder")
    text_encoder(0, 32).save_pretrained(base / "text_encoder")
    with pytest.raises(EnvironmentFault, match=f"is 32 wide, the UNet expects {WIDTH}"):
        models.load_text_encoder(base)


def test_an_empty_tokenizer_is_refused(base: Path) -> None:
    for path in (base / "tokenizer").iterdir():
        path.unlink()
    with pytest.raises(EnvironmentFault, match="knows 2 tokens, the text encoder"):
        models.load_tokenizer(base)


def test_bases_that_are_not_there(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EnvironmentFault, match="nowhere is not there"):
        models.resolve_base(str(tmp_path / "nowhere"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EnvironmentFault, match="cannot be had from the hub at revision v9\n.*\n.*local diffusers"):
        models.resolve_base("nobody/no-such-model", "v9")
    shutil.rmtree(base / "vae")
    with pytest.raises(EnvironmentFault, match="lacks vae"):
        models.resolve_base(base)


def test_working_size(whole: Path) -> None:
    assert models.working_size(whole, None) == IMAGE_SIZE
    assert models.working_size(whole, 48) == 48
    with pytest.raises(ConfigError, match=r"image_size=30 is no multiple of 4\n.*\n.*28 or 32"):
        models.working_size(whole, 30)
    with pytest.raises(ConfigError, match="data.image_size=4$"):
        models.working_size(whole, 3)


def test_identity_follows_content_not_place(whole: Path, base: Path) -> None:
    assert models.model_identity(base) == models.model_identity(whole)
    before = {part: models.model_identity(base, [part]) for part in PARTS}
    change(base / UNET, lambda tensors: tensors["conv_in.bias"].add_(1e-6))
    config = json.loads((base / "vae/config.json").read_text())
    (base / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.25}))
    after = {part: models.model_identity(base, [part]) for part in PARTS}
    assert [part for part in PARTS if before[part] != after[part]] == ["unet", "vae"]


def test_published_model_opens_in_plain_diffusers(whole: Path, tmp_path: Path) -> None:
    unet = models.load_unet(whole)
    widen_conv_in(unet)
    with torch.no_grad():
        unet.conv_in.weight[:, 4:].normal_(generator=generator(0, "test"))
    models.save_model(tmp_path / "model", unet, whole, None, {"image_latents_scaled": False})
    kind: Any = StableDiffusionInstructPix2PixPipeline
    pipeline = kind.from_pretrained(tmp_path / "model", safety_checker=None)
    sample = torch.randn((2, 8, LATENT_SIZE, LATENT_SIZE), generator=generator(0, "test"))
    text = torch.randn((2, 77, WIDTH), generator=generator(1, "test"))
    with torch.no_grad():
        assert torch.equal(pipeline.unet(sample, 7, text).sample, unet(sample, 7, text).sample)
    assert pipeline.unet.config.in_channels == 8
    assert pipeline.vae.config.scaling_factor == 0.5 and type(pipeline.scheduler).__name__ == "DDIMScheduler"
    assert json.loads((tmp_path / "model" / models.FACTS).read_text()) == {"image_latents_scaled": False}
    # What was published is a base itself.
    assert models.load_unet(tmp_path / "model").config.in_channels == 8
    assert models.model_identity(whole, ["vae"]) == models.model_identity(tmp_path / "model", ["vae"])


def test_a_fine_tuned_sdxl_opens_in_plain_diffusers(tmp_path: Path) -> None:
    base = write_xl_pipeline(tmp_path / "base", force_zeros=False)
    unet = models.load_unet(base)
    widen_conv_in(unet)
    for scaled in (False, True):
        models.save_model(tmp_path / "model", unet, base, None, {"image_latents_scaled": scaled})
        kind: Any = DiffusionPipeline
        pipeline = kind.from_pretrained(tmp_path / "model", use_safetensors=True)
        assert type(pipeline) is StableDiffusionXLInstructPix2PixPipeline
        assert pipeline.is_cosxl_edit is scaled and pipeline.config.force_zeros_for_empty_prompt is False
    text, second = pipeline.text_encoder.config.hidden_size, pipeline.text_encoder_2.config.projection_dim
    assert (text, second, pipeline.unet.config.in_channels) == (WIDTH, WIDTH_2, 8)
    assert models.text_identity(tmp_path / "model") == models.text_identity(base)


@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_changes_of_the_noise_schedule_are_published(tmp_path: Path, name: str) -> None:
    base = write_sd2_pipeline(tmp_path / "base")
    path = base / "scheduler/scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": name}))
    unet = models.load_unet(base)
    widen_conv_in(unet)
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    models.save_model(tmp_path / "model", unet, base, None, {}, changes)
    kind: Any = StableDiffusionInstructPix2PixPipeline
    scheduler = kind.from_pretrained(tmp_path / "model", safety_checker=None).scheduler
    # PNDMScheduler knows no such schedule and would pass over it in silence.
    assert type(scheduler) is DDIMScheduler and scheduler.config.timestep_spacing == "trailing"
    assert scheduler.config.prediction_type == "v_prediction"
    assert float(scheduler.alphas_cumprod[-1]) == 0.0
    assert float(models.load_noise_scheduler(tmp_path / "model").alphas_cumprod[-1]) == 0.0
    assert "trailing" not in path.read_text()
    models.save_model(tmp_path / "same", unet, base, None, {})
    assert (tmp_path / "same/scheduler/scheduler_config.json").read_bytes() == path.read_bytes()
