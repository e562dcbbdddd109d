"""Caption embeddings: diffusers' own rule, the null text, and a store that is reused only when it is valid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

from mvc import models
from mvc.embedding_store import load_embeddings, load_or_encode, save_embeddings, text_digest
from mvc.embeddings import CaptionEmbeddings, TextModels, encode_captions, time_ids
from mvc.errors import DataError, NumericError, Stopped
from mvc.randomness import seeded_global
from mvc.stopping import flag
from tests.mvc.text_models import clip_tokenizer, second_text_encoder, text_encoder
from tests.tiny_parts import write_xl_pipeline

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

    def __call__(self) -> TextModels:
        self.count += 1
        return sd(clip_tokenizer(), text_encoder(self.seed))


def sd(tokenizer: Any, encoder: Any) -> TextModels:
    return TextModels((tokenizer,), (encoder,))


def encoded(texts: list[str], tokenizer: Any, encoder: Any) -> tuple[torch.Tensor, torch.Tensor]:
    found = encode_captions(texts, sd(tokenizer, encoder))
    assert found.pooled is None
    return found.embeddings, found.ends


def test_equals_a_direct_call_of_the_text_encoder() -> None:
    tokenizer, encoder = clip_tokenizer(), text_encoder()
    texts = [*CAPTIONS.values(), ""]
    embeddings, ends = encoded(texts, tokenizer, encoder)
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
    ours, _ = encoded([text, ""], tokenizer, encoder)
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(ours[1], their_null[0], rtol=0, atol=1e-6)


def xl_text(zero_null: bool = False) -> TextModels:
    second = clip_tokenizer()
    second.pad_token = "!"
    return TextModels((clip_tokenizer(), second), (text_encoder(), second_text_encoder()), zero_null)


@pytest.mark.parametrize("force_zeros", [False, True])
def test_equals_the_pipeline_of_sdxl(tmp_path: Path, force_zeros: bool) -> None:
    base = write_xl_pipeline(tmp_path / "base", force_zeros=force_zeros)
    kind: Any = StableDiffusionXLPipeline
    pipeline = kind.from_pretrained(base, use_safetensors=True)
    texts = sorted(CAPTIONS.values())
    theirs = pipeline.encode_prompt(texts, device="cpu", do_classifier_free_guidance=True)
    ours = load_or_encode(
        tmp_path / "store.safetensors",
        {str(number): text for number, text in enumerate(texts)},
        "model",
        lambda: models.load_text(base, torch.device("cpu")),
    )
    # What is read back is what was made.
    for stored in (ours, load_embeddings(tmp_path / "store.safetensors")):
        found = [stored.embeddings, stored.null, stored.pooled, stored.null_pooled]
        for one, other in zip(found, [theirs[0], theirs[1][0], theirs[2], theirs[3][0]], strict=True):
            assert one is not None
            torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    assert ours.embeddings.shape == (4, 77, 40) and ours.pooled is not None and ours.pooled.shape == (4, 24)
    assert bool((ours.null == 0).all()) == force_zeros
    assert torch.equal(ours.of(["3", "0"]).pooled, ours.pooled[[3, 0]])


def test_the_two_tokenizers_of_sdxl_pad_differently() -> None:
    one, other = xl_text(), TextModels((clip_tokenizer(), clip_tokenizer()), xl_text().encoders)
    first, second = encode_captions(["a cat"], one), encode_captions(["a cat"], other)
    assert torch.equal(first.embeddings[:, :, :16], second.embeddings[:, :, :16])
    assert not torch.equal(first.embeddings[:, :, 16:], second.embeddings[:, :, 16:])
    assert first.ends.tolist() == [3]


def test_a_class_is_a_view_of_the_store_and_not_a_copy() -> None:
    stored = CaptionEmbeddings(torch.zeros(4, 3, 2), torch.zeros(3, 2), torch.arange(4), list("abcd"))
    assert stored.of(["b", "c"]).embeddings.data_ptr() == stored.embeddings[1].data_ptr()
    assert stored.of(["c", "b"]).ends.tolist() == [2, 1] and stored.of([]).embeddings.shape == (0, 3, 2)


def test_size_conditions_are_those_of_diffusers() -> None:
    assert time_ids(512).tolist() == [512, 512, 0, 0, 512, 512]


def test_a_row_depends_on_its_text_alone_to_the_bit() -> None:
    texts = list(CAPTIONS.values())
    together, _ = encoded(texts, clip_tokenizer(), text_encoder())
    for row, text in zip(together, texts, strict=True):
        assert torch.equal(encoded([text], clip_tokenizer(), text_encoder())[0][0], row)
    assert torch.equal(together[2], together[3]) and not torch.equal(together[0], together[1])


def test_a_long_caption_loses_its_end_never_its_prefix() -> None:
    tokenizer = clip_tokenizer(max_length=12)
    encoder = text_encoder(max_length=12)
    long = "this is an image of cat. " + "red " * 30
    embeddings, ends = encoded([long, "this is an image of cat. blue"], tokenizer, encoder)
    assert embeddings.shape[1] == 12 and ends[0] == 11
    common = len(tokenizer("this is an image of cat.").input_ids) - 1
    torch.testing.assert_close(embeddings[0, :common], embeddings[1, :common], rtol=0, atol=1e-6)


def test_attention_mask_only_where_the_encoder_asks_for_it() -> None:
    tokenizer, encoder = clip_tokenizer(), text_encoder()
    plain, _ = encoded(["a cat"], tokenizer, encoder)
    encoder.config.use_attention_mask = True
    masked, ends = encoded(["a cat"], tokenizer, encoder)
    end = int(ends[0])
    torch.testing.assert_close(plain[0, : end + 1], masked[0, : end + 1], rtol=0, atol=1e-6)
    assert (plain[0, end + 1 :] - masked[0, end + 1 :]).abs().max() > 1e-3


def test_damaged_weights_are_noticed() -> None:
    encoder = text_encoder()
    with torch.no_grad():
        next(encoder.parameters())[:] = torch.nan
    with pytest.raises(NumericError, match="'a cat' is not finite"):
        encoded(["a cat"], clip_tokenizer(), encoder)


def same(first: CaptionEmbeddings, second: CaptionEmbeddings) -> bool:
    pairs = [(first.embeddings, second.embeddings), (first.null, second.null), (first.ends, second.ends)]
    return first.ids == second.ids and all(torch.equal(one, other) for one, other in pairs)


def test_store_round_trip_and_order(tmp_path: Path) -> None:
    path, loads = tmp_path / "cache" / "embeddings.safetensors", Loads()
    first = load_or_encode(path, CAPTIONS, "model", loads)
    assert first.ids == sorted(CAPTIONS) and first.null.shape == (77, 16)
    direct, _ = encoded([CAPTIONS[name] for name in first.ids], clip_tokenizer(), text_encoder())
    torch.testing.assert_close(first.embeddings, direct, rtol=0, atol=1e-6)
    null, _ = encoded([""], clip_tokenizer(), text_encoder())
    torch.testing.assert_close(first.null, null[0], rtol=0, atol=1e-6)
    reordered = dict(reversed(CAPTIONS.items()))
    assert same(load_or_encode(path, reordered, "model", loads), first) and loads.count == 1
    some = first.of(["train/dog/1.png", "train/cat/1.png"])
    assert torch.equal(some.embeddings[1], first.embeddings[0]) and torch.equal(some.ends, first.ends[[2, 0]])
    content = path.read_bytes()
    save_embeddings(path, load_embeddings(path), [text_digest(CAPTIONS[name]) for name in first.ids], "model")
    assert path.read_bytes() == content


def test_exactly_what_changed_is_computed_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, loads = tmp_path / "embeddings.safetensors", Loads()
    first = load_or_encode(path, CAPTIONS, "model", loads)
    edited = {**CAPTIONS, "train/cat/1.png": "this is an image of cat. big."}
    second = load_or_encode(path, edited, "model", loads)
    assert loads.count == 2 and "1 captions are new or have changed" in capsys.readouterr().err
    assert not torch.equal(second.embeddings[0], first.embeddings[0])
    assert torch.equal(second.embeddings[1:], first.embeddings[1:])
    # The same as if all had been computed at once, to the byte.
    load_or_encode(tmp_path / "fresh.safetensors", edited, "model", Loads())
    assert (tmp_path / "fresh.safetensors").read_bytes() == path.read_bytes()
    # Fewer images, and others with the same captions, need no text encoder.
    fewer = {f"renamed/{name}": text for name, text in edited.items() if "cat" in name}
    assert load_or_encode(path, fewer, "model", loads).ids == sorted(fewer) and loads.count == 2
    other = Loads(seed=1)
    third = load_or_encode(path, edited, "another model", other)
    assert other.count == 1 and not torch.equal(third.null, second.null)


def test_a_damaged_row_costs_that_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, loads = tmp_path / "embeddings.safetensors", Loads()
    first = load_or_encode(path, CAPTIONS, "model", loads)
    content = bytearray(path.read_bytes())
    row = first.embeddings[1].numpy().tobytes()
    content[content.index(row) + 100] ^= 1
    path.write_bytes(content)
    assert same(load_or_encode(path, CAPTIONS, "model", loads), first) and loads.count == 2
    said = capsys.readouterr().err
    assert "1 rows of" in said and "embedding captions: 1/1 texts" in said
    assert same(load_embeddings(path), first)


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
    assert "damaged" in capsys.readouterr().err
    assert same(load_embeddings(path), first)


def test_a_missing_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="embeddings.safetensors is missing"):
        load_embeddings(tmp_path / "embeddings.safetensors")


def test_a_stop_keeps_what_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loads = tmp_path / "embeddings.safetensors", Loads()
    monkeypatch.setattr(flag, "signal", 15)
    with pytest.raises(Stopped, match="no caption is embedded yet"):
        load_or_encode(path, CAPTIONS, "model", loads)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(flag, "signal", None)
    whole = load_or_encode(path, CAPTIONS, "model", loads)
    path.unlink()

    class Stopping(Loads):
        """The signal comes while the second text, the first caption, is encoded."""

        def __call__(self) -> TextModels:
            text = super().__call__()
            calls: list[int] = []

            def note(*given: Any) -> None:
                calls.append(1)
                if len(calls) == 2:
                    flag.signal = 15

            text.encoders[0].register_forward_hook(note)
            return text

    with pytest.raises(Stopped, match="1 of 4 captions are embedded and kept"):
        load_or_encode(path, CAPTIONS, "model", Stopping())
    assert load_embeddings(path).ids == [sorted(CAPTIONS)[0]]
    monkeypatch.setattr(flag, "signal", None)
    assert same(load_or_encode(path, CAPTIONS, "model", loads), whole)
