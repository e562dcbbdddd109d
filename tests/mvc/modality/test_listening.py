"""Speech-to-text models of transformers, real ones at toy width: what is heard, batches, rates, and what is refused."""

from __future__ import annotations

import json
import string
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GenerationConfig,
    HubertConfig,
    HubertForCTC,
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperTokenizer,
)

from mvc.errors import EnvironmentFault
from mvc.modality.audio import Audio
from mvc.modality.listening import collapsed, listening_step
from mvc.modality.sphinx import resampled
from mvc.modality.steps import Output, Refused, Result
from mvc.randomness import seeded_global

CPU = torch.device("cpu")
RATE = 16000
LETTERS = ["<pad>", "<s>", "</s>", "<unk>", "|", *string.ascii_uppercase, "'"]
KINDS = ("group", "layer", "hubert", "whisper")


def save_ctc(folder: Path, kind: Any, config: Any, **settings: Any) -> Path:
    """A CTC model with the letters of Wav2Vec2, all of them capitals."""
    folder.mkdir()
    (folder / "vocab.json").write_text(json.dumps({letter: number for number, letter in enumerate(LETTERS)}))
    with seeded_global(0, "test listener"):
        model = kind(
            config(
                vocab_size=len(LETTERS),
                hidden_size=16,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=32,
                conv_dim=(8, 8, 8),
                conv_stride=(5, 8, 8),
                conv_kernel=(10, 8, 8),
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=2,
                initializer_range=0.5,
                pad_token_id=0,
                **settings,
            )
        )
    with torch.no_grad():  # letters that are equally likely on the whole; else one would be it throughout
        spread, usual = torch.std_mean(
            model.eval()(torch.from_numpy(noise(0, 2.0).samples)[None] * 10).logits[0], dim=0
        )
        model.lm_head.weight /= spread[:, None]
        model.lm_head.bias.copy_((model.lm_head.bias - usual) / spread)
    model.save_pretrained(folder)
    Wav2Vec2CTCTokenizer(str(folder / "vocab.json")).save_pretrained(folder)
    Wav2Vec2FeatureExtractor(sampling_rate=RATE).save_pretrained(folder)
    return folder


def save_whisper(folder: Path) -> Path:
    """A Whisper of single letters that takes two seconds."""
    vocab = {letter: number for number, letter in enumerate(string.ascii_lowercase + "\u0120")}
    merges = [("\u0120", letter) for letter in string.ascii_lowercase]
    for word in [*map("".join, merges), "<|endoftext|>", "<|startoftranscript|>", "<|notimestamps|>"]:
        vocab[word] = len(vocab)
    special = {"eos_token_id": vocab["<|endoftext|>"], "pad_token_id": vocab["<|endoftext|>"]}
    start = {"decoder_start_token_id": vocab["<|startoftranscript|>"]}
    config = WhisperConfig(
        vocab_size=len(vocab),
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=16,
        max_source_positions=100,
        max_target_positions=20,
        init_std=0.6,
        bos_token_id=vocab["<|endoftext|>"],
        **special,
        **start,
    )
    with seeded_global(0, "test whisper"):
        model = WhisperForConditionalGeneration(config)
    model.generation_config = GenerationConfig(
        max_length=20, is_multilingual=False, no_timestamps_token_id=vocab["<|notimestamps|>"], **special, **start
    )
    model.save_pretrained(folder)
    marks = ["<|startoftranscript|>", "<|notimestamps|>"]
    WhisperTokenizer(vocab=vocab, merges=merges, additional_special_tokens=marks).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=16, chunk_length=2).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("listeners")
    return {
        "group": save_ctc(root / "group", Wav2Vec2ForCTC, Wav2Vec2Config, feat_extract_norm="group"),
        "layer": save_ctc(root / "layer", Wav2Vec2ForCTC, Wav2Vec2Config, feat_extract_norm="layer"),
        "hubert": save_ctc(root / "hubert", HubertForCTC, HubertConfig),
        "whisper": save_whisper(root / "whisper"),
    }


def noise(seed: int, seconds: float, rate: int = RATE) -> Audio:
    """Noise that swells and fades, so that something changes in it."""
    random = np.random.default_rng(seed)
    loudness = 0.2 * np.abs(np.sin(np.linspace(0, 9 * seconds, int(seconds * rate))))
    return Audio((random.uniform(-1, 1, len(loudness)) * loudness).astype(np.float32), rate)


def heard(folder: Path, *sounds: Audio, batch_size: int = 8) -> list[Result]:
    return [made for (made,) in listening_step(folder, None, CPU, batch_size).run(list(sounds), [[0]] * len(sounds))]


def text(result: Result) -> str:
    assert isinstance(result, Output), result
    value: str = result.value
    return value


@pytest.mark.parametrize("rate", [RATE, 22050])
@pytest.mark.parametrize("kind", ["group", "layer", "hubert"])
def test_ctc_takes_the_likeliest_letters_without_repeats_and_blanks(
    models: dict[str, Path], kind: str, rate: int
) -> None:
    sound = noise(1, 1.0, rate)
    network = (HubertForCTC if kind == "hubert" else Wav2Vec2ForCTC).from_pretrained(models[kind]).eval()
    samples = resampled(sound, RATE)
    normal = (samples - samples.mean()) / np.sqrt(samples.var() + 1e-7)
    with torch.no_grad():
        numbers = network(torch.from_numpy(normal)[None]).logits[0].argmax(dim=-1).tolist()
    letters = [LETTERS[number] for number, _ in groupby(numbers)]
    said = "".join(" " if one == "|" else one for one in letters if one == "|" or not one.startswith("<"))
    assert text(heard(models[kind], sound)[0]) == " ".join(said.split()).lower()
    assert len(said) > 5 and said.upper() == said


def test_a_blank_keeps_double_letters_and_marks_are_left_out(models: dict[str, Path]) -> None:
    tokenizer = Wav2Vec2CTCTokenizer.from_pretrained(models["group"])
    frames = [*"HHEE", "<pad>", "L", "<pad>", *"LLO", "|", "<s>", "|", "<unk>", *"ALL", "<pad>", *"LL", "</s>", "<pad>"]
    assert collapsed([LETTERS.index(one) for one in frames], tokenizer).split() == ["HELLO", "ALL"]
    assert collapsed([0, 0, 2], tokenizer) == "" and collapsed([4, 4], tokenizer).strip() == ""


@pytest.mark.parametrize("rate", [RATE, 22050])
def test_whisper_equals_the_model_called_by_hand(models: dict[str, Path], rate: int) -> None:
    sound = noise(1, 1.0, rate)
    network = WhisperForConditionalGeneration.from_pretrained(models["whisper"]).eval()
    features = WhisperFeatureExtractor.from_pretrained(models["whisper"])
    tokenizer = WhisperTokenizer.from_pretrained(models["whisper"])
    inputs = features(resampled(sound, RATE), sampling_rate=RATE, return_tensors="pt").input_features
    begun = ["<|startoftranscript|>", "<|notimestamps|>"]
    ids = torch.tensor([tokenizer.convert_tokens_to_ids(begun)])
    while ids.shape[1] < 20:  # greedy, letter by letter
        with torch.no_grad():
            best = network(inputs, decoder_input_ids=ids).logits[0, -1].argmax()
        ids = torch.cat([ids, best.reshape(1, 1)], dim=1)
        if best == network.config.eos_token_id:
            break
    said = text(heard(models["whisper"], sound)[0])
    wanted = " ".join(tokenizer.decode(ids[0], skip_special_tokens=True).split())
    assert said == wanted and len(said) > 5


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_gives_what_single_sounds_give(models: dict[str, Path], kind: str) -> None:
    sounds = [noise(seed, seconds) for seed, seconds in ((1, 0.5), (2, 1.9), (3, 0.2), (4, 1.0))]
    together = heard(models[kind], *sounds)
    assert together == [heard(models[kind], one)[0] for one in sounds]
    assert len({text(one) for one in together}) == 4


@pytest.mark.parametrize("kind", KINDS)
def test_what_cannot_be_heard_is_refused_and_costs_the_others_nothing(models: dict[str, Path], kind: str) -> None:
    sounds = [
        noise(1, 0.05),
        noise(2, 1.0),
        Audio(np.zeros(RATE, np.float32), RATE),
        Audio(np.zeros(0, np.float32), RATE),
    ]
    short = Refused("its sound is shorter than 0.1 seconds")
    assert heard(models[kind], *sounds) == [
        short,
        heard(models[kind], noise(2, 1.0))[0],
        Refused("nothing was heard"),
        short,
    ]
    assert heard(models[kind], sounds[0]) == [short]


def test_whisper_refuses_what_it_would_cut_off(models: dict[str, Path]) -> None:
    why = Refused("its sound of 3 seconds is longer than the 2 that the listener takes")
    assert heard(models["whisper"], noise(1, 2.6)) == [why]
    assert isinstance(heard(models["whisper"], noise(1, 2.0))[0], Output)
    assert isinstance(heard(models["group"], noise(1, 2.6))[0], Output)


def test_a_listener_that_hears_blanks_alone_heard_nothing(models: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(models["group"], tmp_path / "deaf")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.bias"] = torch.eye(len(LETTERS))[0] * 1000
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert heard(folder, noise(1, 1.0)) == [Refused("nothing was heard")]


def test_steps_are_told_apart_by_their_weights(models: dict[str, Path]) -> None:
    steps = [listening_step(models[kind], None, CPU, 4) for kind in KINDS]
    assert len({step.identity for step in steps}) == 4 and not any(step.random for step in steps)
    assert [step.name.split()[0] for step in steps] == ["wav2vec2", "wav2vec2", "hubert", "whisper"]
    assert {(step.takes, step.gives, step.batch_size) for step in steps} == {("audio", "text", 4)}


def test_a_weight_that_only_training_uses_may_be_missing(models: dict[str, Path], tmp_path: Path) -> None:
    """Published Wav2Vec2 models lack the embedding of masked frames; any other weight is needed."""
    folder = copied(models["group"], tmp_path / "published")
    weights = load_file(folder / "model.safetensors")
    del weights["wav2vec2.masked_spec_embed"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert heard(folder, noise(1, 1.0)) == heard(models["group"], noise(1, 1.0))
    del weights["lm_head.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        EnvironmentFault, match="cannot load the speech-to-text model .*\nwhy: weights are missing: lm_head"
    ):
        heard(folder, noise(1, 1.0))


def test_other_kinds_and_missing_models_are_refused(models: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(models["whisper"], tmp_path / "other")
    facts = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**facts, "model_type": "bert"}))
    with pytest.raises(EnvironmentFault, match="it is a bert; known are wav2vec2, .*whisper\ndo: give speech.listener"):
        listening_step(folder, None, CPU, 4)
    with pytest.raises(EnvironmentFault, match="cannot load the speech-to-text model .*nowhere"):
        listening_step(tmp_path / "nowhere", None, CPU, 4)


def copied(folder: Path, target: Path) -> Path:
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target
