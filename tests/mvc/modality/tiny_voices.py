"""Speech models of transformers at toy width, as folders: VITS, SpeechT5, FastSpeech2Conformer, and what they need."""

from __future__ import annotations

import io
import json
import string
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import (
    FastSpeech2ConformerConfig,
    FastSpeech2ConformerHifiGanConfig,
    FastSpeech2ConformerWithHifiGan,
    FastSpeech2ConformerWithHifiGanConfig,
    SpeechT5Config,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    SpeechT5Tokenizer,
    VitsConfig,
    VitsModel,
    VitsTokenizer,
)

from mvc.randomness import seeded_global

GAN: dict[str, Any] = {
    "upsample_initial_channel": 16,
    "upsample_rates": [4, 4],
    "upsample_kernel_sizes": [8, 8],
    "resblock_kernel_sizes": [3],
    "resblock_dilation_sizes": [[1, 3]],
}


def save_vits(folder: Path, speakers: int = 1, **settings: Any) -> Path:
    """A VITS of 29 letters and no phonemizer, as MMS-TTS has it."""
    folder.mkdir()
    letters = {letter: number for number, letter in enumerate("_" + string.ascii_lowercase + " '")}
    (folder / "vocab.json").write_text(json.dumps(letters))
    tokenizer = VitsTokenizer(str(folder / "vocab.json"), phonemize=False, pad_token="_", unk_token="_")
    config = VitsConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=9,
        depth_separable_num_layers=1,
        duration_predictor_num_flows=2,
        duration_predictor_flow_bins=4,
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        **{**GAN, "sampling_rate": 16000, **settings},
    )
    with seeded_global(0, "test vits"):
        model = VitsModel(config)
    with torch.no_grad():
        model.decoder.conv_post.weight.mul_(0.05)  # else the tanh behind it is at its ends
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_speecht5(folder: Path, bands: int = 8, **settings: Any) -> Path:
    """A SpeechT5 with its tokenizer of single letters, trained on the alphabet."""
    folder.mkdir()
    pieces = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([string.ascii_letters + " .,'?!"] * 5),
        model_writer=pieces,
        model_type="char",
        vocab_size=80,
        hard_vocab_limit=False,
        bos_id=0,
        pad_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    (folder / "spm_char.model").write_bytes(pieces.getvalue())
    tokenizer = SpeechT5Tokenizer(str(folder / "spm_char.model"))
    config = SpeechT5Config(
        vocab_size=len(tokenizer),
        hidden_size=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_mel_bins=bands,
        speech_decoder_prenet_units=32,
        speech_decoder_postnet_units=8,
        speech_decoder_postnet_layers=2,
        max_text_positions=60,
        max_speech_positions=100,
        initializer_range=0.5,
        **settings,
    )
    with seeded_global(0, "test speecht5"):
        model = SpeechT5ForTextToSpeech(config)
    with torch.no_grad():
        model.speech_decoder_postnet.prob_out.bias.fill_(-100.0)  # it comes to no end by itself
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_vocoder(folder: Path, bands: int = 8) -> Path:
    with seeded_global(0, "test vocoder"):
        gan = SpeechT5HifiGan(
            SpeechT5HifiGanConfig(model_in_dim=bands, sampling_rate=22050, initializer_range=0.1, **GAN)
        )
    gan.save_pretrained(folder)
    return folder


def save_speaker(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors or {"speaker": torch.linspace(-1.0, 1.0, 512)}, path)
    return path


def save_fastspeech2(folder: Path) -> Path:
    """A FastSpeech2Conformer with its HiFi-GAN, and the vocabulary that its tokenizer reads."""
    predictor = {
        f"{name}_predictor_{key}": value
        for name in ("duration", "energy", "pitch")
        for key, value in (("layers", 1), ("channels", 16), ("kernel_size", 3))
    }
    model = FastSpeech2ConformerConfig(
        hidden_size=16,
        vocab_size=40,
        num_mel_bins=8,
        encoder_num_attention_heads=2,
        encoder_layers=1,
        encoder_linear_units=16,
        decoder_layers=1,
        decoder_num_attention_heads=2,
        decoder_linear_units=16,
        speech_decoder_postnet_layers=2,
        speech_decoder_postnet_units=8,
        **predictor,
    )
    gan = FastSpeech2ConformerHifiGanConfig(model_in_dim=8, sampling_rate=22050, initializer_range=0.1, **GAN)
    config = FastSpeech2ConformerWithHifiGanConfig(model_config=model.to_dict(), vocoder_config=gan.to_dict())
    with seeded_global(0, "test fastspeech2"):
        network = FastSpeech2ConformerWithHifiGan(config)
    with torch.no_grad():
        network.model.duration_predictor.linear.bias.fill_(1.5)  # frames a phoneme: e^1.5 - 1
    network.save_pretrained(folder)
    sounds = ["<blank>", "<unk>", "AH0", "W", "ER1", "D", "<sos/eos>"]
    (folder / "vocab.json").write_text(json.dumps({sound: number for number, sound in enumerate(sounds)}))
    return folder
