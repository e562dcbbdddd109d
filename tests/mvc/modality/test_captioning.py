"""Captioning with a prompt: the class goes in and is cut off, seeds give other captions, batches change nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

from mvc.errors import EnvironmentFault
from mvc.modality.captioning import after_prompt, captioning_step, captioning_steps, load_describer
from mvc.modality.steps import Output, Refused
from mvc.tiny import DIGIT_WORDS, WEIGHTS
from mvc.tiny.evaluate import read_attributes
from mvc.tiny.world import draw_character, render
from tests.mvc.text_models import pictures, save_blip, save_blip2

CPU = torch.device("cpu")
EMBEDDED = WEIGHTS / "captioner"


@pytest.mark.parametrize(
    ("text", "prompt", "rest"),
    [
        ("this is an image of three . a large one", "This is an image of three.", "a large one"),
        ("a Persian cat, asleep", "a persian cat", "asleep"),
        ("a dog", "a cat", "a dog"),
        ("a cat", "a cat", ""),
        ("a", "a cat", "a"),
        ("a dog", "", "a dog"),
    ],
)
def test_the_prompt_is_cut_off_whatever_a_tokenizer_did_to_it(text: str, prompt: str, rest: str) -> None:
    assert after_prompt(text, prompt) == rest


@pytest.mark.parametrize("save", [save_blip, save_blip2])
def test_a_very_cold_sampling_is_the_greedy_caption(save: object, tmp_path: Path) -> None:
    folder = save(tmp_path / "captioner")  # type: ignore[operator]
    describe = load_describer(folder, None, CPU, "key", 1e-4, 1.0, 6)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
    for prompt in ("", "a small cat"):
        said = describe(pictures(4), prompt, [1, 2, 3, 4])
        for picture, text in zip(pictures(4), said, strict=True):
            words = {"text": [prompt]} if prompt else {}
            inputs = processor(images=[picture], return_tensors="pt", **words)
            tokens = model.generate(**inputs, max_new_tokens=6, do_sample=False, num_beams=1)
            assert after_prompt(processor.decode(tokens[0], skip_special_tokens=True).strip(), prompt) == text


def test_captions_depend_on_their_own_seed_alone() -> None:
    images = [Image.fromarray(render(draw_character(1000, index))) for index in range(6)]
    describe = load_describer(EMBEDDED, None, CPU, "key", 1.0, 0.9, 24)
    together = describe(images, "", list(range(6)))
    assert together == [describe([image], "", [seed])[0] for seed, image in enumerate(images)]
    others = [{describe([image], "", [seed])[0] for seed in range(12)} for image in images]
    assert sum(len(own) > 1 for own in others) >= 3  # of some the captioner is too sure


def test_the_class_in_the_prompt_is_what_the_caption_is_about() -> None:
    """The embedded captioner reads the digit for itself; told another one it goes on about that one more often."""
    characters = [draw_character(1000, index) for index in range(60)]
    images = [Image.fromarray(render(character)) for character in characters]
    describe = load_describer(EMBEDDED, None, CPU, "key", 1.0, 0.9, 24)
    alone = [read_attributes(text)["digit"] for text in describe(images, "", list(range(60)))]
    read = sum(said == character.word for said, character in zip(alone, characters, strict=True))
    told = 0
    for word in DIGIT_WORDS:
        own = [place for place, character in enumerate(characters) if character.word == word]
        said = describe([images[place] for place in own], f"this is an image of {word}.", own)
        told += sum(read_attributes(text)["digit"] == word for text in said)
    assert told >= read and told >= 58


def test_the_step_gives_captions_and_refuses_to_say_nothing(tmp_path: Path) -> None:
    step = captioning_step(EMBEDDED, None, "", CPU, "key", 4, max_new_tokens=24)
    image = Image.fromarray(render(draw_character(1000, 0)))
    ((one, other),) = step.run([image], [[1, 2]])
    assert isinstance(one, Output) and isinstance(other, Output) and "background" in one.value
    silent = captioning_step(EMBEDDED, None, "", CPU, "key", 4, temperature=1e-4, max_new_tokens=1)
    blank = Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8))
    ((made,),) = silent.run([blank], [[1]])
    assert isinstance(made, Output) and made.value in ("a", "an")
    assert step.identity != silent.identity
    with pytest.raises(EnvironmentFault, match="cannot load the captioning model(.|\n)*imagination.captioner"):
        captioning_step(tmp_path / "nowhere", None, "", CPU, "imagination.captioner", 4)


def test_a_captioner_that_says_nothing_is_told_apart() -> None:
    image = Image.fromarray(render(draw_character(1000, 0)))
    caption = load_describer(EMBEDDED, None, CPU, "key", 1e-4, 1.0, 24)([image], "", [0])[0]
    step = captioning_step(EMBEDDED, None, caption, CPU, "key", 4, temperature=1e-4, max_new_tokens=24)
    assert step.run([image], [[0]]) == [[Refused("the captioner said nothing")]]  # all is said in the prompt


def test_steps_of_several_prompts_share_one_network() -> None:
    first, second = captioning_steps(EMBEDDED, None, ["this is an image of one.", ""], CPU, "key", 4)
    assert first.identity != second.identity and first.takes == "image" and first.gives == "text"
    image = Image.fromarray(render(draw_character(1000, 3)))
    first.run([image], [[1]])
    describers = [step.load.__closure__[0].cell_contents for step in (first, second)]  # type: ignore[index]
    assert describers[0] is describers[1] and describers[0].cache_info().misses == 1
