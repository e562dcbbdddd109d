from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from safetensors.torch import load_file, save_file

from mvc import models
from mvc.diffusion import widen_conv_in
from mvc.errors import ConfigError, EnvironmentFault
from mvc.randomness import generator
from tests.mvc.text_models import text_encoder
from tests.tiny_parts import IMAGE_SIZE, LATENT_SIZE, WIDTH, tiny_unet, write_pipeline

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


def test_old_position_ids_are_no_fault(base: Path) -> None:
    key = "embeddings.position_ids"
    change(base / TEXT, lambda tensors: tensors.update({key: torch.arange(77)[None]}))
    assert models.load_text_encoder(base).config.hidden_size == WIDTH


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


def test_two_text_encoders_are_refused(base: Path) -> None:
    (base / "text_encoder_2").mkdir()
    with pytest.raises(ConfigError, match="two text encoders"):
        models.resolve_base(base)


def test_working_size(whole: Path) -> None:
    assert models.working_size(whole, None) == IMAGE_SIZE
    assert models.working_size(whole, 48) == 48
    with pytest.raises(ConfigError, match=r"image_size=30 is no multiple of 4\n.*\n.*28 or 32"):
        models.working_size(whole, 30)
    with pytest.raises(ConfigError, match="data.image_size=4$"):
        models.working_size(whole, 3)


def test_devices() -> None:
    assert models.pick_device("cpu") == torch.device("cpu")
    assert models.pick_device("auto").type in ("cpu", "cuda", "mps")
    missing = "mps" if torch.cuda.is_available() else "cuda"
    with pytest.raises(EnvironmentFault, match=f"run.device={missing}: there is no such device"):
        models.pick_device(missing)


def test_identity_follows_content_not_place(whole: Path, base: Path) -> None:
    assert models.model_identity(base) == models.model_identity(whole)
    before = {part: models.model_identity(base, [part]) for part in models.PARTS}
    change(base / UNET, lambda tensors: tensors["conv_in.bias"].add_(1e-6))
    config = json.loads((base / "vae/config.json").read_text())
    (base / "vae/config.json").write_text(json.dumps({**config, "scaling_factor": 0.25}))
    after = {part: models.model_identity(base, [part]) for part in models.PARTS}
    assert [part for part in models.PARTS if before[part] != after[part]] == ["unet", "vae"]


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
