"""Measure the shipped models: `python -m mvc.tiny.evaluate` writes measured.json beside the weights.

Everything is measured on characters of another seed than the training's; the real digits are only measured on.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from transformers import AutoProcessor, BlipForConditionalGeneration, CLIPModel, CLIPTokenizer

from mvc.randomness import generator, seeded_global
from mvc.storage import write_json
from mvc.tiny import DIGIT_WORDS, WEIGHTS
from mvc.tiny.captioner import captions_of
from mvc.tiny.clip import caption_ids
from mvc.tiny.digits import digit_images
from mvc.tiny.fitting import fit
from mvc.tiny.pictures import as_input, draw_many
from mvc.tiny.world import BACKGROUNDS, COLOURS, SIZES, STYLES, TILTS, Character, describe, draw_character

HELD_OUT_SEED = 1000
"""Seed of the characters that are measured on; training uses seed 0."""
ATTRIBUTES = ("digit", "style", "colour", "size", "tilt", "background")


def enlarged_digits() -> tuple[Tensor, Tensor]:
    """The real handwritten digits enlarged to 32 px by a bicubic filter.

    Returns:
        (1797, 3, 32, 32), uint8; and labels (1797,), int64.
    """
    images, labels = digit_images()
    small = torch.from_numpy(images).float()[:, None]
    large = nn.functional.interpolate(small, size=(32, 32), mode="bicubic").clamp(0, 255).round()
    return large.to(torch.uint8).expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(labels)


def reconstruction(vae: AutoencoderKL, pictures: Tensor) -> dict[str, float]:
    """Mean squared error (of pixels in 0..1) and PSNR in decibels of encoding to the mode and decoding."""
    total = 0.0
    for chunk in pictures.split(256):
        with torch.no_grad():
            decoded = vae.decode(vae.encode(as_input(chunk)).latent_dist.mode()).sample.clamp(-1, 1)
        total += float(((decoded - as_input(chunk)) / 2).square().mean(dim=(1, 2, 3)).sum())
    error = total / len(pictures)
    return {"mse": round(error, 6), "psnr_db": round(float(-10 * torch.log10(torch.tensor(error))), 2)}


def clip_features(
    clip: CLIPModel, tokenizer: CLIPTokenizer, pictures: Tensor, texts: list[str]
) -> tuple[Tensor, Tensor]:
    """Unit-length image and text features, each (n, width)."""
    with torch.no_grad():
        images = clip.get_image_features(pixel_values=as_input(pictures)).pooler_output
        words = clip.get_text_features(input_ids=caption_ids(tokenizer, texts)).pooler_output
    return nn.functional.normalize(images, dim=1), nn.functional.normalize(words, dim=1)


def full_caption(character: Character) -> str:
    """The caption with every attribute, as the captioner's prefix and description give it."""
    return f"This is an image of {character.word}. {describe(character)}"


def clip_accuracy(
    clip: CLIPModel, tokenizer: CLIPTokenizer, pictures: Tensor, characters: list[Character], group: int = 64
) -> dict[str, float]:
    """Retrieval at rank 1 among groups of distinct captions, both ways, and the digit by zero-shot prompts."""
    places = list({full_caption(character): place for place, character in enumerate(characters)}.values())
    groups = [places[start : start + group] for start in range(0, len(places) - group + 1, group)]
    forward, backward = 0, 0
    for members in groups:
        texts = [full_caption(characters[place]) for place in members]
        images, words = clip_features(clip, tokenizer, pictures[members], texts)
        table, truth = images @ words.T, torch.arange(group)
        forward += int((table.argmax(1) == truth).sum())
        backward += int((table.argmax(0) == truth).sum())
    prompts = [f"This is an image of {word}." for word in DIGIT_WORDS]
    images, words = clip_features(clip, tokenizer, pictures, prompts)
    digits = torch.tensor([character.digit for character in characters])
    right = float(((images @ words.T).argmax(1) == digits).float().mean())
    asked = len(groups) * group
    return {
        "image_to_text": round(forward / asked, 4),
        "text_to_image": round(backward / asked, 4),
        "zero_shot_digit": round(right, 4),
    }


def read_attributes(text: str) -> dict[str, str]:
    """Take the attributes out of a description; one that isn't there is an empty string."""
    ways = {
        "size": "|".join(SIZES),
        "colour": "|".join(COLOURS),
        "style": "|".join(sorted(STYLES, key=len, reverse=True)),
        "digit": "|".join(DIGIT_WORDS),
        "tilt": "|".join(TILTS),
    }
    pattern = r"^an? " + "".join(f"(?:(?P<{name}>{words}) ?)?" for name, words in ways.items())
    pattern += rf"(?:on an? (?P<background>{'|'.join(BACKGROUNDS)}) background)?"
    found = re.match(pattern, text)
    return {name: (found.group(name) or "") if found else "" for name in ATTRIBUTES}


def caption_accuracy(texts: list[str], characters: list[Character]) -> dict[str, float]:
    """Share of captions that name each attribute rightly."""
    right = dict.fromkeys(ATTRIBUTES, 0)
    for text, character in zip(texts, characters, strict=True):
        said = read_attributes(text)
        for name in ATTRIBUTES:
            truth = character.word if name == "digit" else getattr(character, name)
            right[name] += said[name] == truth
    return {name: round(count / len(characters), 4) for name, count in right.items()}


def train_reader(cache: Path | None) -> nn.Module:
    """Train a small classifier that reads printed characters; randomness: (0, "reader ...", step)."""
    world = draw_many("printed", 0, 40000, cache)
    digits = torch.tensor([draw_character(0, index).digit for index in range(len(world))])
    with seeded_global(0, "reader weights"):
        layers: list[nn.Module] = []
        for width_in, width in ((3, 24), (24, 48), (48, 96)):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.GroupNorm(8, width), nn.ReLU(), nn.MaxPool2d(2)]
        reader = nn.Sequential(*layers, nn.Flatten(), nn.Linear(96 * 16, 10))

    def loss_at(step: int) -> Tensor:
        chosen = torch.randint(len(world), (64,), generator=generator(0, "reader batch", step))
        return nn.functional.cross_entropy(reader(as_input(world[chosen])).float(), digits[chosen])

    fit("reader", reader, loss_at, 1200, 2e-3)
    return reader


def generated(pipeline: StableDiffusionPipeline, texts: list[str], purpose: str, guidance_scale: float = 3.0) -> Tensor:
    """Pictures of captions, 20 steps of DPM-Solver++: (n, 3, 32, 32), uint8; randomness: (0, purpose, index)."""
    pictures = []
    for start in range(0, len(texts), 100):
        chunk = texts[start : start + 100]
        random = [generator(0, purpose, start + index) for index in range(len(chunk))]
        images = pipeline(
            prompt=chunk, num_inference_steps=20, guidance_scale=guidance_scale, generator=random, output_type="pt"
        ).images
        pictures.append((images * 255).round().to(torch.uint8))
    return torch.cat(pictures)


def share_read(reader: nn.Module, pictures: Tensor, digits: Tensor) -> float:
    """Share of pictures that the reader reads as the digit."""
    with torch.no_grad():
        return round(float((reader(as_input(pictures)).argmax(1) == digits).float().mean()), 4)


def generation_accuracy(weights: Path, cache: Path | None) -> dict[str, float]:
    """Share of generated characters that the reader reads as asked, and the reader's own accuracy."""
    reader = train_reader(cache)
    held_out = draw_many("printed", HELD_OUT_SEED, 2048, cache)
    characters = [draw_character(HELD_OUT_SEED, index) for index in range(2048)]
    digits = torch.tensor([character.digit for character in characters])
    pipeline = StableDiffusionPipeline.from_pretrained(weights, dtype=torch.float32, use_safetensors=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    white = [place for place, c in enumerate(characters) if (c.colour, c.background) == ("white", "black")][:500]
    cases = {"any_colours": list(range(500)), "white_on_black": white}
    measured = {"reader_accuracy_on_printed": share_read(reader, held_out, digits)}
    for name, places in cases.items():
        pictures = generated(pipeline, [full_caption(characters[place]) for place in places], name)
        measured[name] = share_read(reader, pictures, digits[places])
    names_only = [f"This is an image of {word}." for word in DIGIT_WORDS] * 30
    pictures = generated(pipeline, names_only, "class name only")
    measured["class_name_only"] = share_read(reader, pictures, torch.arange(10).repeat(30))
    return measured


def measure(weights: Path, cache: Path | None) -> dict[str, Any]:
    """Measure every part of a package."""
    held_out = draw_many("printed", HELD_OUT_SEED, 2048, cache)
    characters = [draw_character(HELD_OUT_SEED, index) for index in range(2048)]
    real, labels = enlarged_digits()
    vae = AutoencoderKL.from_pretrained(weights / "vae", use_safetensors=True, dtype=torch.float32)
    clip = CLIPModel.from_pretrained(weights / "clip", use_safetensors=True, dtype=torch.float32)
    tokenizer = CLIPTokenizer.from_pretrained(weights / "clip")
    captioner = BlipForConditionalGeneration.from_pretrained(
        weights / "captioner", use_safetensors=True, dtype=torch.float32
    )
    reader = AutoProcessor.from_pretrained(weights / "captioner")
    said = [read_attributes(text)["digit"] for text in captions_of(captioner, reader, real)]
    named = sum(word == DIGIT_WORDS[int(label)] for word, label in zip(said, labels, strict=True)) / len(said)
    return {
        "autoencoder": {
            "printed": reconstruction(vae, held_out),
            "textures": reconstruction(vae, draw_many("texture", HELD_OUT_SEED, 1024, cache)),
            "handwritten_digits": reconstruction(vae, real),
        },
        "clip": clip_accuracy(clip, tokenizer, held_out, characters),
        "captioner": caption_accuracy(captions_of(captioner, reader, held_out), characters),
        "captioner_handwritten_digit_named": round(named, 4),
        "generated_read_as_asked": generation_accuracy(weights, cache),
    }


def main(arguments: list[str] | None = None) -> None:
    """Measure, print and write measured.json."""
    parser = argparse.ArgumentParser(prog="python -m mvc.tiny.evaluate", description=__doc__)
    parser.add_argument("--weights", type=Path, default=WEIGHTS, help="folder of the package")
    parser.add_argument("--cache", type=Path, help="folder that keeps the drawn pictures")
    given = parser.parse_args(arguments)
    measured = measure(given.weights, given.cache)
    write_json(given.weights / "measured.json", measured)
    print((given.weights / "measured.json").read_text())


if __name__ == "__main__":
    main()
