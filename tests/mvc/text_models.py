"""Small real tokenizers, text encoders and captioners with random weights, for the tests."""

from __future__ import annotations

import string
from pathlib import Path

from PIL import Image
from transformers import (
    BertTokenizer,
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    GPT2Tokenizer,
    OPTConfig,
)

from mvc.randomness import seeded_global

START, END = "<|startoftext|>", "<|endoftext|>"
CHARACTERS = string.ascii_lowercase + string.digits + ".,!?'-"
WORDS = "a image of is this red blue small big bright dark cat dog zero one left right and".split()


def clip_tokenizer(max_length: int = 77) -> CLIPTokenizer:
    """A byte-pair tokenizer that knows every lower-case letter, and some words as a whole."""
    vocab = {START: 0, END: 1}
    merges: list[tuple[str, str]] = []
    for character in CHARACTERS:
        vocab[character] = len(vocab)
        vocab[f"{character}</w>"] = len(vocab)
    for word in WORDS:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        joined = pieces[-1]
        for piece in reversed(pieces[:-1]):
            merges.append((piece, joined))
            joined = piece + joined
            vocab.setdefault(joined, len(vocab))
    merges = list(dict.fromkeys(merges))
    tokenizer = CLIPTokenizer(vocab=vocab, merges=merges, pad_token=END, model_max_length=max_length)
    assert len(tokenizer) == len(vocab) > 50
    return tokenizer


def text_config(width: int = 16, max_length: int = 77) -> CLIPTextConfig:
    """Configuration of a two-layer CLIP text tower for `clip_tokenizer`."""
    return CLIPTextConfig(
        vocab_size=len(clip_tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max_length,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def text_encoder(seed: int = 0, width: int = 16, max_length: int = 77) -> CLIPTextModel:
    """A causal CLIP text tower with random weights for `clip_tokenizer`."""
    with seeded_global(seed, "test text encoder"):
        return CLIPTextModel(text_config(width, max_length)).eval()


def second_text_encoder(seed: int = 0, width: int = 24) -> CLIPTextModelWithProjection:
    """The second tower of an SDXL, with its projection to a pooled vector of the same width."""
    with seeded_global(seed, "test text encoder 2"):
        return CLIPTextModelWithProjection(text_config(width)).eval()


def image_processor() -> BlipImageProcessor:
    return BlipImageProcessor(size={"height": 16, "width": 16})


def save_blip(folder: Path, seed: int = 0) -> Path:
    """A BLIP captioner with random weights, large enough that different images give different texts."""
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]"]
    vocab = {token: number for number, token in enumerate([*specials, *WORDS])}
    tokenizer = BertTokenizer(vocab=vocab, additional_special_tokens=["[DEC]"])
    assert tokenizer("a cat", add_special_tokens=False).input_ids == [vocab["a"], vocab["cat"]]
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {
        **layers,
        "vocab_size": len(vocab),
        "encoder_hidden_size": 16,
        "bos_token_id": vocab["[DEC]"],
        "sep_token_id": vocab["[SEP]"],
        "eos_token_id": vocab["[SEP]"],
        "initializer_range": 0.6,
    }
    vision = {**layers, "image_size": 16, "patch_size": 8, "initializer_range": 0.6}
    config = BlipConfig(text_config=text, vision_config=vision, projection_dim=16, initializer_range=0.6)
    with seeded_global(seed, "test captioner"):
        model = BlipForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    BlipProcessor(image_processor(), tokenizer).save_pretrained(folder)
    return folder


def save_blip2(folder: Path, seed: int = 0) -> Path:
    """A BLIP-2 captioner (vision tower, Q-Former, OPT) with random weights."""
    vocab = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
    for word in WORDS:
        vocab[f"\u0120{word}"] = len(vocab)
    tokenizer = GPT2Tokenizer(
        vocab=vocab, merges=[], bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    processor = Blip2Processor(image_processor(), tokenizer, num_query_tokens=4)
    layers = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    image_token = processor.tokenizer.convert_tokens_to_ids("<image>")
    opt = OPTConfig(
        vocab_size=len(processor.tokenizer),
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        word_embed_proj_dim=16,
        max_position_embeddings=64,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        init_std=0.6,
    )
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**layers, image_size=16, patch_size=8, initializer_range=0.6).to_dict(),
        qformer_config=Blip2QFormerConfig(**layers, encoder_hidden_size=16, initializer_range=0.6).to_dict(),
        text_config=opt.to_dict(),
        num_query_tokens=4,
        image_token_index=image_token,
    )
    with seeded_global(seed, "test captioner 2"):
        model = Blip2ForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def pictures(count: int) -> list[Image.Image]:
    """Plain pictures of different colours."""
    return [
        Image.new("RGB", (20, 24), (37 * number % 256, 91 * number % 256, 200 - 23 * number % 200))
        for number in range(count)
    ]
