"""The shipped weights open in plain diffusers and transformers, and do what measured.json says."""

from __future__ import annotations

import inspect
import json
import warnings
from functools import lru_cache
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    CLIPModel,
    CLIPTokenizer,
)

from mvc.storage import files_below, verified_manifest
from mvc.tiny import DIGIT_WORDS, WEIGHTS
from mvc.tiny.autoencoder import encode
from mvc.tiny.captioner import captions_of
from mvc.tiny.clip import caption_ids
from mvc.tiny.evaluate import (
    HELD_OUT_SEED,
    caption_accuracy,
    clip_accuracy,
    enlarged_digits,
    read_attributes,
    reconstruction,
)
from mvc.tiny.pictures import printed
from mvc.tiny.world import Character, draw_character


@lru_cache(maxsize=1)
def held_out() -> tuple[Tensor, list[Character]]:
    """Sixty-four characters that no model was trained on."""
    pictures = torch.stack([torch.from_numpy(printed(HELD_OUT_SEED, i)).permute(2, 0, 1) for i in range(64)])
    return pictures, [draw_character(HELD_OUT_SEED, index) for index in range(64)]


@lru_cache(maxsize=1)
def pipeline() -> StableDiffusionPipeline:
    """The package, opened as anyone would."""
    with warnings.catch_warnings(record=True) as caught:
        opened = StableDiffusionPipeline.from_pretrained(WEIGHTS, dtype=torch.float32, use_safetensors=True)
    assert not caught, [str(warning.message) for warning in caught]
    opened.set_progress_bar_config(disable=True)
    return opened


def measured() -> dict[str, Any]:
    """The figures that were measured when the weights were published."""
    found: dict[str, Any] = json.loads((WEIGHTS / "measured.json").read_text())
    return found


def test_the_package_is_whole_and_small() -> None:
    assert verified_manifest(WEIGHTS) is not None
    assert sum(path.stat().st_size for path in files_below(WEIGHTS)) <= 16_000_000
    assert {path.suffix for path in files_below(WEIGHTS)} == {".json", ".safetensors"}


def test_the_pipeline_draws_what_is_asked_and_repeats() -> None:
    opened = pipeline()
    assert opened.vae.dtype == torch.float32 and opened.unet.config.in_channels == 4
    assert opened.scheduler.config.prediction_type == "epsilon"

    def draw() -> Tensor:
        made = opened(
            prompt=["This is an image of eight. a large white bold eight upright on a black background"],
            num_inference_steps=12,
            guidance_scale=3.0,
            generator=[torch.Generator().manual_seed(7)],
            output_type="pt",
        )
        return torch.as_tensor(made.images)

    image = draw()
    assert image.shape == (1, 3, 32, 32)
    assert torch.equal(image, draw())
    # White ink on black paper: dark at the rim, bright somewhere inside, without colour.
    assert float(image[0, :, 0].mean()) < 0.15 and float(image.amax(dim=(1, 2, 3))[0]) > 0.8
    assert float((image.amax(dim=1) - image.amin(dim=1)).mean()) < 0.08


def test_latents_have_unit_deviation_and_come_back() -> None:
    vae = pipeline().vae
    mean, deviation = encode(vae, held_out()[0])
    assert 0.9 < float((mean * vae.config.scaling_factor).std()) < 1.1
    assert float(deviation.mean()) < 0.3 * float(mean.std())
    bound = measured()["autoencoder"]
    assert reconstruction(vae, held_out()[0])["mse"] < 1.3 * bound["printed"]["mse"]
    assert reconstruction(vae, enlarged_digits()[0][:200])["mse"] < 1.3 * bound["handwritten_digits"]["mse"]


def test_the_text_encoder_is_the_text_tower_of_the_clip() -> None:
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    assert tokenizer("a large red three").input_ids == pipeline().tokenizer("a large red three").input_ids
    clip = CLIPModel.from_pretrained(WEIGHTS / "clip", use_safetensors=True, dtype=torch.float32)
    ids = caption_ids(tokenizer, ["This is an image of three.", "This is an image of seven. a small one"])
    with torch.no_grad():
        tower = clip.text_model(ids).last_hidden_state
        states = pipeline().text_encoder(ids).last_hidden_state
    torch.testing.assert_close(tower, states)
    assert states.shape == (2, 77, 128)
    # The tower is causal: rows of a common beginning are the same whatever follows.
    torch.testing.assert_close(states[0, :6], states[1, :6])
    assert float((states[0, 6] - states[1, 6]).abs().max()) > 0.05


def test_clip_tells_digits_and_pairs_apart() -> None:
    clip = CLIPModel.from_pretrained(WEIGHTS / "clip", use_safetensors=True, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "clip")
    pictures, characters = held_out()
    found = clip_accuracy(clip, tokenizer, pictures, characters, group=60)
    expected = measured()["clip"]
    for name in ("zero_shot_digit", "image_to_text", "text_to_image"):
        assert found[name] > expected[name] - 0.12, name


def test_the_captioner_names_digit_and_looks() -> None:
    reader = AutoProcessor.from_pretrained(WEIGHTS / "captioner")
    model = AutoModelForImageTextToText.from_pretrained(
        WEIGHTS / "captioner", use_safetensors=True, dtype=torch.float32
    )
    pictures, characters = held_out()
    found = caption_accuracy(captions_of(model, reader, pictures), characters)
    for name, share in measured()["captioner"].items():
        assert found[name] > share - 0.12, name
    # The way a user calls it, with a picture of another size.
    image = Image.fromarray(printed(HELD_OUT_SEED, 0)).resize((64, 64), Image.Resampling.BICUBIC)
    tokens = model.generate(**reader(images=image, return_tensors="pt"), max_new_tokens=24)
    said = read_attributes(reader.decode(tokens[0], skip_special_tokens=True))
    assert said["digit"] == characters[0].word and said["background"] == characters[0].background


def test_captions_of_handwriting_are_in_the_worlds_words_and_differ() -> None:
    reader = AutoProcessor.from_pretrained(WEIGHTS / "captioner")
    model = AutoModelForImageTextToText.from_pretrained(
        WEIGHTS / "captioner", use_safetensors=True, dtype=torch.float32
    )
    texts = captions_of(model, reader, enlarged_digits()[0][:60])
    said = [read_attributes(text) for text in texts]
    assert all(attributes["digit"] in DIGIT_WORDS for attributes in said)
    assert len(set(texts)) >= 20


@pytest.mark.parametrize("case", ["any_colours", "white_on_black", "class_name_only"])
def test_generated_characters_were_read_as_asked(case: str) -> None:
    figures = measured()["generated_read_as_asked"]
    assert figures["reader_accuracy_on_printed"] > 0.97
    assert figures[case] > 0.9


def test_nothing_of_the_light_module_needs_torch() -> None:
    import mvc.tiny

    assert "import torch" not in inspect.getsource(mvc.tiny)
