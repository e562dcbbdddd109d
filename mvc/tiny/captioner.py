"""The tiny BLIP captioner: says what is to be seen in a picture, in the printed world's words."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    BertTokenizer,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    BlipTextConfig,
    BlipVisionConfig,
)

from mvc.randomness import generator, seeded_global
from mvc.tiny.fitting import fit
from mvc.tiny.pictures import as_input, disturbed, draw_many
from mvc.tiny.tokens import captioner_tokenizer
from mvc.tiny.world import SIDE, describe, draw_character

WIDTH = 128
BATCH = 64
STEPS = 12000
LEARNING_RATE = 1e-3
PROMPTED_SHARE = 0.25
"""Of the training captions that follow the prompt "this is an image of <word>."."""
_IGNORED = -100


def new_captioner(seed: int, tokenizer: BertTokenizer) -> BlipForConditionalGeneration:
    """The untrained model; randomness: (seed, "captioner weights")."""
    text = BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        encoder_hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.sep_token_id,
        sep_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = BlipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=SIDE,
        patch_size=4,
        initializer_range=0.02,
    )
    config = BlipConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), image_text_hidden_size=WIDTH)
    config._attn_implementation = "eager"  # As in the tiny CLIP: the faster one to train on a CPU.
    with seeded_global(seed, "captioner weights"):
        return BlipForConditionalGeneration(config)


def processor(tokenizer: BertTokenizer) -> BlipProcessor:
    """Resizes to 32 px, scales to -1..1, and decodes captions."""
    size = {"height": SIDE, "width": SIDE}
    images = BlipImageProcessor(size=size, image_mean=[0.5] * 3, image_std=[0.5] * 3, resample=3)
    return BlipProcessor(images, tokenizer)


def training_rows(tokenizer: BertTokenizer, seed: int, count: int) -> tuple[Tensor, Tensor]:
    """Token ids and labels of the full descriptions of characters 0..count-1.

    Randomness: (seed, "captioner prompts"). Ids are `[DEC] (prompt) description [SEP]`, padded; labels are the ids
    shifted by one, with prompt and padding left out of the loss.

    Returns:
        Two int64 tensors of shape (count, length).
    """
    prompted = torch.rand(count, generator=generator(seed, "captioner prompts")) < PROMPTED_SHARE
    rows, labels = [], []
    for index in range(count):
        character = draw_character(seed, index)
        prompt = f"this is an image of {character.word}." if prompted[index] else ""
        before = tokenizer(prompt, add_special_tokens=False).input_ids
        after = [*tokenizer(describe(character), add_special_tokens=False).input_ids, tokenizer.sep_token_id]
        rows.append([tokenizer.bos_token_id, *before, *after])
        labels.append([_IGNORED] * len(before) + after + [_IGNORED])
    length = max(len(row) for row in rows)
    ids = [row + [tokenizer.pad_token_id] * (length - len(row)) for row in rows]
    targets = [row + [_IGNORED] * (length - len(row)) for row in labels]
    return torch.tensor(ids), torch.tensor(targets)


def caption_loss(model: BlipForConditionalGeneration, images: Tensor, ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the next token; scalar."""
    seen = model.vision_model(pixel_values=images).last_hidden_state
    logits = model.text_decoder(input_ids=ids, encoder_hidden_states=seen).logits.float()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=_IGNORED)


def train_captioner(seed: int, cache: Path | None, steps_scale: float) -> tuple[BlipForConditionalGeneration, float]:
    """Train on disturbed pictures of printed characters and their full descriptions.

    Randomness: (seed, "captioner ...", step).

    Returns:
        The model, and the seconds it took.
    """
    tokenizer = captioner_tokenizer()
    world = draw_many("printed", seed, 40000, cache)
    ids, labels = training_rows(tokenizer, seed, len(world))
    model = new_captioner(seed, tokenizer)

    def loss_at(step: int) -> Tensor:
        chosen = torch.randint(len(world), (BATCH,), generator=generator(seed, "captioner batch", step))
        images = disturbed(as_input(world[chosen]), seed, "captioner disturbance", step)
        return caption_loss(model, images, ids[chosen], labels[chosen])

    steps = round(STEPS * steps_scale)
    seconds = fit("captioner", model, loss_at, steps, LEARNING_RATE, cache, weight_decay=0.05)
    return model, seconds


def captions_of(model: BlipForConditionalGeneration, reader: BlipProcessor, pictures: Tensor) -> list[str]:
    """Greedy captions of uint8 pictures (n, 3, 32, 32)."""
    texts: list[str] = []
    for chunk in pictures.split(256):
        with torch.no_grad():
            tokens = model.generate(pixel_values=as_input(chunk), max_new_tokens=24, do_sample=False, num_beams=1)
        texts += [text.strip() for text in reader.batch_decode(tokens, skip_special_tokens=True)]
    return texts
