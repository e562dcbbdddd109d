"""Caption embeddings: diffusers' own rule, the null text, and a store that is reused only when it is valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

from mvc.embeddings import CaptionEmbeddings, encode_captions, load_embeddings, load_or_encode, save_embeddings
from mvc.errors import DataError, NumericError, Stopped
from mvc.randomness import seeded_global
from mvc.stopping import flag
from tests.mvc.text_models import clip_tokenizer, text_encoder

CAPTIONS = {
    "train/cat/2.png": "this is an image of cat. a red cat.",
    "train/cat/1.png": "this is an image of cat. small and dark.",
    "train/dog/1.png": "this is an image of dog.",
    "train/dog/2.png": "this is an image of dog.",
}


class Loads:
    """Counts how often the text encoder is asked for."""

    def __init__(self, seed: int = 0) -> None:
        self.count, self.seed = 0, seed

    def __call__(self) -> tuple[Any, Any]:
        self.count += 1
        return clip_tokenizer(), text_encoder(self.seed)


def test_equals_a_direct_call_of_the_text_encoder() -> None:
    tokenizer, encoder = clip_tokenizer(), text_encoder()
    texts = [*CAPTIONS.values(), ""]
    embeddings, ends = encode_captions(texts, tokenizer, encoder, batch_size=2)
    assert embeddings.shape == (5, 77, 16) and embeddings.dtype == torch.float32 and not embeddings.requires_grad
    for text, row, end in zip(texts, embeddings, ends, strict=True):
        ids = tokenizer(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        with torch.no_grad():
            direct = encoder(ids).last_hidden_state[0]
        torch.testing.assert_close(row, direct, rtol=0, atol=1e-6)
        assert ids[0, end] == tokenizer.eos_token_id and (ids[0, :end] != tokenizer.eos_token_id).all()
    assert ends[-1] == 1


def test_equals_the_pipeline_of_diffusers() -> None:
    tokenizer, encoder = clip_tokenizer(), text_encoder()
    with seeded_global(0, "test pipeline"):
        unet = UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8,),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            cross_attention_dim=16,
            attention_head_dim=4,
            norm_num_groups=4,
        )
        vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    scheduler = DDIMScheduler(steps_offset=1, clip_sample=False)
    pipeline = StableDiffusionPipeline(
        vae,
        encoder,
        tokenizer,
        unet,
        scheduler,
        None,
        None,
        requires_safety_checker=False,
    )
    text = CAPTIONS["train/cat/2.png"]
    theirs, their_null = pipeline.encode_prompt(text, "cpu", 1, True)
    ours, _ = encode_captions([text, ""], tokenizer, encoder)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[1], their_null[0], rtol=0, atol=1e-6)


def test_batch_size_does_not_matter_and_equal_texts_have_equal_rows() -> None:
    texts = list(CAPTIONS.values())
    one, _ = encode_captions(texts, clip_tokenizer(), text_encoder(), batch_size=1)
    all_at_once, _ = encode_captions(texts, clip_tokenizer(), text_encoder(), batch_size=16)
    torch.testing.assert_close(one, all_at_once, rtol=0, atol=1e-6)
    assert torch.equal(one[2], one[3]) and not torch.equal(one[0], one[1])


def test_a_long_caption_loses_its_end_never_its_prefix() -> None:
    tokenizer = clip_tokenizer(max_length=12)
    encoder = text_encoder(max_length=12)
    long = "this is an image of cat. " + "red " * 30
    embeddings, ends = encode_captions([long, "this is an image of cat. blue"], tokenizer, encoder)
    assert embeddings.shape[1] == 12 and ends[0] == 11
    common = len(tokenizer("this is an image of cat.").input_ids) - 1
    torch.testing.assert_close(embeddings[0, :common], embeddings[1, :common], rtol=0, atol=1e-6)


def test_attention_mask_only_where_the_encoder_asks_for_it() -> None:
    tokenizer, encoder = clip_tokenizer(), text_encoder()
    plain, _ = encode_captions(["a cat"], tokenizer, encoder)
    encoder.config.use_attention_mask = True
    masked, ends = encode_captions(["a cat"], tokenizer, encoder)
    end = int(ends[0])
    torch.testing.assert_close(plain[0, : end + 1], masked[0, : end + 1], rtol=0, atol=1e-6)
    assert (plain[0, end + 1 :] - masked[0, end + 1 :]).abs().max() > 1e-3


def test_damaged_weights_are_noticed() -> None:
    encoder = text_encoder()
    with torch.no_grad():
        next(encoder.parameters())[:] = torch.nan
    with pytest.raises(NumericError, match="'a cat' is not finite"):
        encode_captions(["a cat"], clip_tokenizer(), encoder)


def same(first: CaptionEmbeddings, second: CaptionEmbeddings) -> bool:
    pairs = [(first.embeddings, second.embeddings), (first.null, second.null), (first.ends, second.ends)]
    return first.ids == second.ids and all(torch.equal(one, other) for one, other in pairs)


def test_store_round_trip_and_order(tmp_path: Path) -> None:
    path, loads = tmp_path / "cache" / "embeddings.safetensors", Loads()
    first = load_or_encode(path, CAPTIONS, "model", loads)
    assert first.ids == sorted(CAPTIONS) and first.null.shape == (77, 16)
    direct, _ = encode_captions([CAPTIONS[name] for name in first.ids], clip_tokenizer(), text_encoder())
    torch.testing.assert_close(first.embeddings, direct, rtol=0, atol=1e-6)
    null, _ = encode_captions([""], clip_tokenizer(), text_encoder())
    torch.testing.assert_close(first.null, null[0], rtol=0, atol=1e-6)
    reordered = dict(reversed(CAPTIONS.items()))
    assert same(load_or_encode(path, reordered, "model", loads), first) and loads.count == 1
    rows, ends = first.of(["train/dog/1.png", "train/cat/1.png"])
    assert torch.equal(rows[1], first.embeddings[0]) and torch.equal(ends, first.ends[[2, 0]])
    content = path.read_bytes()
    save_embeddings(path, *load_embeddings(path))
    assert path.read_bytes() == content


def test_computed_again_exactly_when_captions_or_model_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, loads = tmp_path / "embeddings.safetensors", Loads()
    first = load_or_encode(path, CAPTIONS, "model", loads)
    edited = {**CAPTIONS, "train/cat/1.png": "this is an image of cat. big."}
    second = load_or_encode(path, edited, "model", loads)
    assert loads.count == 2 and "have changed" in capsys.readouterr().err
    assert not torch.equal(second.embeddings[0], first.embeddings[0])
    assert torch.equal(second.embeddings[2], first.embeddings[2])
    other = Loads(seed=1)
    third = load_or_encode(path, edited, "another model", other)
    assert other.count == 1 and not torch.equal(third.null, second.null)
    fewer = {name: text for name, text in edited.items() if "cat" in name}
    assert load_or_encode(path, fewer, "another model", other).ids == sorted(fewer) and other.count == 2


@pytest.mark.parametrize("damage", ["cut", "flipped", "header", "empty", "text"])
def test_a_damaged_store_is_computed_again(tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    path, loads = tmp_path / "embeddings.safetensors", Loads()
    first = load_or_encode(path, CAPTIONS, "model", loads)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-100]
    elif damage == "flipped":
        content[-1000] ^= 1
    elif damage == "header":
        content[20] ^= 1
    else:
        content = bytearray(b"" if damage == "empty" else b"not a safetensors file at all")
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        load_embeddings(path)
    assert same(load_or_encode(path, CAPTIONS, "model", loads), first) and loads.count == 2
    assert "is damaged" in capsys.readouterr().err
    assert same(load_embeddings(path)[0], first)


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="embeddings.safetensors is missing"):
        load_embeddings(tmp_path / "embeddings.safetensors")


def test_a_stop_leaves_no_half_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flag, "signal", 15)
    with pytest.raises(Stopped, match="signal 15"):
        load_or_encode(tmp_path / "embeddings.safetensors", CAPTIONS, "model", Loads())
    assert list(tmp_path.iterdir()) == []
