"""The tiny CLIP: pictures and captions of the printed world, brought together by contrast.

Its text tower is the text encoder of the diffusion model, as it is in Stable Diffusion 1.x.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
)

from mvc.randomness import generator, seeded_global
from mvc.tiny import DIGIT_WORDS
from mvc.tiny.fitting import fit
from mvc.tiny.pictures import as_input, disturbed, draw_many
from mvc.tiny.tokens import MAX_LENGTH, clip_tokenizer
from mvc.tiny.world import SIDE, caption, draw_character

WIDTH = 128
BATCH = 128
STEPS = 2000
NAMES_STEPS = 1500
LEARNING_RATE = 1e-3
_TRAINING_LENGTH = 40  # Longer than any caption of the world; what follows the end token changes nothing.


def new_clip(seed: int, tokenizer: CLIPTokenizer) -> CLIPModel:
    """The untrained model; randomness: (seed, "clip weights")."""
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=4,
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=WIDTH)
    # Plain attention trains 2.3 times as fast here as the fused one, whose backward pass is slow on a CPU.
    config._attn_implementation = "eager"
    with seeded_global(seed, "clip weights"):
        return CLIPModel(config)


def image_processor() -> CLIPImageProcessor:
    """Resizes to 32 px and scales to -1..1, for the tiny CLIP."""
    return CLIPImageProcessor(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        resample=3,
    )


def caption_ids(tokenizer: CLIPTokenizer, texts: list[str], length: int = MAX_LENGTH) -> Tensor:
    """Token ids of texts, padded to `length`: (n, length), int64."""
    tokens = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
    return torch.as_tensor(tokens.input_ids)


def contrastive_loss(logits: Tensor) -> Tensor:
    """Symmetric cross-entropy of a square table of image-text similarities (Radford et al. 2021, Fig. 3)."""
    target = torch.arange(len(logits))
    rows = torch.nn.functional.cross_entropy(logits, target)
    columns = torch.nn.functional.cross_entropy(logits.T, target)
    return (rows + columns) / 2


def train_clip(seed: int, cache: Path | None, steps_scale: float) -> tuple[CLIPModel, float]:
    """Train on disturbed pictures of printed characters and their captions, in two phases.

    First both towers by contrast. Then, with the text tower fixed, the rest by contrast and by telling the ten
    class names apart ("This is an image of three." and so on), which few captions consist of.
    Randomness: (seed, "clip ...", step) and (seed, "clip names ...", step).

    Returns:
        The model, and the seconds it took.
    """
    tokenizer = clip_tokenizer()
    world = draw_many("printed", seed, 40000, cache)
    characters = [draw_character(seed, index) for index in range(len(world))]
    texts = [caption(character, seed, index) for index, character in enumerate(characters)]
    ids = caption_ids(tokenizer, texts, _TRAINING_LENGTH)
    digits = torch.tensor([character.digit for character in characters])
    name_ids = caption_ids(tokenizer, [f"This is an image of {word}." for word in DIGIT_WORDS], _TRAINING_LENGTH)
    clip = new_clip(seed, tokenizer)

    def batch(purpose: str, step: int) -> tuple[Tensor, Tensor]:
        chosen = torch.randint(len(world), (BATCH,), generator=generator(seed, f"{purpose} batch", step))
        return chosen, disturbed(as_input(world[chosen]), seed, f"{purpose} disturbance", step)

    def pairs_loss(step: int) -> Tensor:
        chosen, images = batch("clip", step)
        return contrastive_loss(clip(input_ids=ids[chosen], pixel_values=images).logits_per_image.float())

    def names_loss(step: int) -> Tensor:
        chosen, images = batch("clip names", step)
        rows = torch.cat([ids[chosen], name_ids])
        pairs, names = clip(input_ids=rows, pixel_values=images).logits_per_image.float().split([BATCH, 10], dim=1)
        return contrastive_loss(pairs) + torch.nn.functional.cross_entropy(names, digits[chosen])

    first, second = round(STEPS * steps_scale), round(NAMES_STEPS * steps_scale)
    seconds = fit("clip", clip, pairs_loss, first, LEARNING_RATE, cache, weight_decay=0.05)
    clip.text_model.requires_grad_(False)
    seconds += fit("clip names", clip, names_loss, second, LEARNING_RATE / 2, cache, weight_decay=0.05)
    return clip, seconds


def text_encoder_of(clip: CLIPModel) -> CLIPTextModel:
    """The text tower as a CLIPTextModel of its own; its last_hidden_state is the diffusion model's condition."""
    config: Any = clip.config.text_config
    encoder = CLIPTextModel(config)
    tower = {
        name.removeprefix("text_model."): weight
        for name, weight in clip.state_dict().items()
        if name.startswith("text_model.")
    }
    encoder.load_state_dict(tower)
    encoder.eval()
    return encoder
