"""Any text-to-image pipeline of diffusers: drawn as it draws itself, whole or refused, and never run from a folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusion3Pipeline, StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from mvc.errors import ConfigError, EnvironmentFault
from mvc.randomness import generator
from mvc.text_to_image import draw_texts, find_text_to_image, load_text_to_image, text_to_image_identity
from mvc.tiny import WEIGHTS
from tests.other_pipelines import SIDE, write_sd3
from tests.tiny_parts import write_pipeline

CPU, KEY = torch.device("cpu"), "back_captioning.model"
TEXTS = ["a red cat", "a small dog on a big image", "one"]


def noises(*numbers: int) -> list[torch.Generator]:
    return [generator(0, "noise", number) for number in numbers]


@pytest.fixture(scope="module")
def sd3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd3(tmp_path_factory.mktemp("sd3") / "model")


def test_images_are_those_of_the_pipeline_itself(sd3: Path) -> None:
    pipeline = load_text_to_image(find_text_to_image(sd3, None, KEY), CPU, torch.float32, KEY)
    drawn = draw_texts(pipeline, TEXTS, noises(0, 1, 2), 3, 4.0, None)
    assert drawn.shape == (3, 3, SIDE, SIDE) and drawn.dtype == torch.float32
    theirs = StableDiffusion3Pipeline.from_pretrained(sd3, dtype=torch.float32, text_encoder_3=None, tokenizer_3=None)
    theirs.set_progress_bar_config(disable=True)
    for row, text in enumerate(TEXTS):
        image = theirs(
            prompt=text, generator=noises(row), num_inference_steps=3, guidance_scale=4.0, output_type="pt"
        ).images
        assert torch.allclose(drawn[row], image[0], atol=1e-5)
    assert float((drawn[0] - drawn[1]).abs().max()) > 0.01


def test_an_image_depends_on_its_text_and_noise_alone(sd3: Path) -> None:
    pipeline = load_text_to_image(sd3, CPU, torch.float32, KEY)
    together = draw_texts(pipeline, TEXTS, noises(0, 1, 2), 2, 4.0, SIDE)
    again = draw_texts(pipeline, TEXTS[::-1], noises(2, 1, 0), 2, 4.0, SIDE).flip(0)
    assert torch.allclose(together, again, atol=1e-5)
    other = draw_texts(pipeline, TEXTS, noises(3, 1, 2), 2, 4.0, SIDE)
    assert float((other[0] - together[0]).abs().max()) > 0.01
    assert draw_texts(pipeline, TEXTS[:1], noises(0), 2, 4.0, 2 * SIDE).shape[-2:] == (2 * SIDE, 2 * SIDE)


def test_the_embedded_model_is_one_too() -> None:
    pipeline = load_text_to_image(find_text_to_image("tiny", None, KEY), CPU, torch.float32, KEY)
    assert isinstance(pipeline, StableDiffusionPipeline) and pipeline.safety_checker is None
    drawn = draw_texts(pipeline, ["This is an image of three. a large red bold three"], noises(0), 4, 3.0, None)
    assert drawn.shape == (1, 3, 32, 32) and 0.0 <= float(drawn.min()) < float(drawn.max()) <= 1.0


def test_what_cannot_be_used_is_named(sd3: Path, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="back_captioning.model /nowhere/x is not there"):
        find_text_to_image("/nowhere/x", None, KEY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="empty is no pipeline of diffusers"):
        find_text_to_image(tmp_path / "empty", None, KEY)
    edit = write_pipeline(tmp_path / "edit", in_channels=8)
    with pytest.raises(EnvironmentFault, match="draws from something else than a text"):
        load_text_to_image(find_text_to_image(edit, None, KEY), CPU, torch.float32, KEY)


def test_classes_of_the_folders_own_and_pickles_are_refused(tmp_path: Path) -> None:
    folder = write_sd3(tmp_path / "own")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps({**index, "transformer": ["evil", "Model"]}))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(ConfigError, match="its part transformer is of the package evil"):
        find_text_to_image(folder, None, KEY)
    folder = write_sd3(tmp_path / "pickled")
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(EnvironmentFault, match="is a pickled file"):
        find_text_to_image(folder, None, KEY)


def test_a_damaged_model_is_refused_and_has_another_identity(sd3: Path, tmp_path: Path) -> None:
    folder = write_sd3(tmp_path / "damaged")
    assert text_to_image_identity(folder) == text_to_image_identity(sd3)
    path = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file({**weights, name: torch.full_like(weights[name], torch.nan)}, path)
    assert text_to_image_identity(folder) != text_to_image_identity(sd3)
    with pytest.raises(EnvironmentFault, match="transformer is not a whole checkpoint"):
        load_text_to_image(folder, CPU, torch.float32, KEY)
    save_file({key: value for key, value in weights.items() if key != name}, path)
    with pytest.raises(EnvironmentFault, match="not a whole checkpoint|cannot load the text-to-image model"):
        load_text_to_image(folder, CPU, torch.float32, KEY)
    assert text_to_image_identity(WEIGHTS) != text_to_image_identity(sd3)
