"""The voices of transformers, ready to speak: VITS, SpeechT5 and FastSpeech2Conformer with what each needs besides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    FastSpeech2ConformerTokenizer,
    FastSpeech2ConformerWithHifiGan,
    SpeechT5ForTextToSpeech,
    SpeechT5HifiGan,
    SpeechT5Tokenizer,
    VitsModel,
    VitsTokenizer,
)

from mvc.errors import ConfigError, EnvironmentFault
from mvc.pretrained import cannot_load, find_model, load_network, load_whole

from .flite import foreign_letter
from .steps import Refused

WHAT, KEY = "text-to-speech model", "speech.speaker"
_VOCODER, _VOCODER_KEY = "HiFi-GAN", "speech.vocoder"
_LONGEST = 20.0
"""SpeechT5: frames of sound for each letter at the most, where the model itself comes to no end; transformers' own."""


@dataclass(frozen=True)
class Speaker:
    """A model that is ready to speak.

    Attributes:
        rate: of its sounds, in Hz.
        unknown: the first letter or digit of a text that it would leave out without a word; None if there is none.
        speak: (n,) samples in [-1, 1] of a text, or why there are none; draws from torch's global state.
    """

    rate: int
    unknown: Callable[[str], str | None]
    speak: Callable[[str], Tensor | Refused]


def load_vits(folder: Path, number: int | None, device: torch.device) -> Speaker:
    """A VITS model, of which one speaker is used.

    Args:
        folder: from `find_model`.
        number: of the speaker; None where there is only one.
        device: where to compute.

    Raises:
        EnvironmentFault: it is incomplete, or a package is missing that its tokenizer needs.
    """
    tokenizer = load_whole(VitsTokenizer.from_pretrained, folder, WHAT, KEY)
    if tokenizer.phonemize:
        _require_package(folder, "phonemizer", "pip install phonemizer, and apt-get install espeak-ng")
    if tokenizer.is_uroman:
        _require_package(folder, "uroman", "pip install uroman")
    network = load_network(VitsModel, folder, device, WHAT, KEY)
    letters = tokenizer.get_vocab()

    def knows(letter: str) -> bool:
        readable, _ = tokenizer.prepare_for_tokenization(letter)
        return bool(readable) and all(one in letters for one in readable)

    def unknown(text: str) -> str | None:
        if tokenizer.phonemize:  # transformers asks for the sounds of English
            return foreign_letter(text)
        # uroman has Latin letters for all others.
        return None if tokenizer.is_uroman else _first(text, lambda one: not knows(one))

    def speak(text: str) -> Tensor | Refused:
        inputs = tokenizer(text, return_tensors="pt").to(device)
        sound: Tensor = network(**inputs, speaker_id=number).waveform[0]
        return sound

    return Speaker(network.config.sampling_rate, unknown, speak)


def _first(text: str, lacking: Callable[[str], bool]) -> str | None:
    """The first letter or digit of a text that is lacking."""
    return next((one for one in text if one.isalnum() and lacking(one)), None)


def _require_package(folder: Path, package: str, get: str) -> None:
    """Check for a package that a tokenizer imports late or not at all.

    Raises:
        EnvironmentFault: it is missing.
    """
    if find_spec(package) is None:
        raise EnvironmentFault(f"the tokenizer of {folder} needs the package {package}", do=get)


def speaker_number(voice: str, speakers: int) -> int | None:
    """The number that `voice` gives, for a model of several speakers.

    Raises:
        ConfigError: it gives none.
    """
    if speakers <= 1:
        return None
    if not voice.isdecimal() or int(voice) >= speakers:
        raise ConfigError(
            f"the text-to-speech model has {speakers} speakers, and {voice!r} is none of them",
            do=f"give speech.voice a number from 0 to {speakers - 1}",
        )
    return int(voice)


def load_speecht5(folder: Path, vocoder: Path, voice: Path, device: torch.device) -> Speaker:
    """A SpeechT5 model with its vocoder and the tensor of a speaker.

    Args:
        folder, vocoder: from `find_model`.
        voice: safetensors file.
        device: where to compute.

    Raises:
        EnvironmentFault: one of them cannot be used.
    """
    _require_package(folder, "sentencepiece", "pip install sentencepiece")
    tokenizer = load_whole(SpeechT5Tokenizer.from_pretrained, folder, WHAT, KEY)
    network = load_network(SpeechT5ForTextToSpeech, folder, device, WHAT, KEY)
    config = network.config
    gan = load_network(SpeechT5HifiGan, vocoder, device, _VOCODER, _VOCODER_KEY)
    if gan.config.model_in_dim != config.num_mel_bins:
        why = f"it takes {gan.config.model_in_dim} bands, and the model gives {config.num_mel_bins}"
        raise cannot_load(vocoder, None, _VOCODER, _VOCODER_KEY, why)
    speaker = speaker_tensor(voice, config.speaker_embedding_dim).to(device)

    def knows(letter: str) -> bool:
        return tokenizer.unk_token_id not in tokenizer(letter, add_special_tokens=False).input_ids

    def unknown(text: str) -> str | None:
        return _first(tokenizer.normalizer(text), lambda one: not knows(one))

    def speak(text: str) -> Tensor | Refused:
        words = tokenizer.normalizer(text)  # numbers in words
        known = {one: one if knows(one) else " " for one in set(words)}
        ids = tokenizer("".join(known[one] for one in words), return_tensors="pt").input_ids.to(device)
        count = ids.shape[1]
        if count > config.max_text_positions:
            return Refused(f"it has {count} letters in words, and the voice takes {config.max_text_positions}")
        longest = min(_LONGEST, config.max_speech_positions * config.reduction_factor / count)
        sound: Tensor = network.generate_speech(ids, speaker, vocoder=gan, maxlenratio=longest)
        return sound

    return Speaker(gan.config.sampling_rate, unknown, speak)


def require_vocoder(vocoder: str | Path | None) -> Path:
    if vocoder is None:
        raise ConfigError(
            "SpeechT5 needs a vocoder, and speech.vocoder names none",
            do="give speech.vocoder a folder or hub id of its HiFi-GAN, such as microsoft/speecht5_hifigan",
        )
    return find_model(vocoder, None, _VOCODER, _VOCODER_KEY)


def require_speaker(voice: str) -> Path:
    if not Path(voice).is_file():
        raise ConfigError(
            f"SpeechT5 needs the tensor of a speaker, and {voice} is no file",
            do="give speech.voice a safetensors file that holds one tensor of 512 numbers",
        )
    return Path(voice)


def speaker_tensor(path: Path, size: int) -> Tensor:
    """The (1, size) float32 tensor of a speaker that a safetensors file holds as its only one.

    Raises:
        EnvironmentFault: the file is no safetensors, or holds something else.
    """
    try:
        tensors = list(load_file(path).values())
        why = (
            ""
            if len(tensors) == 1 and tensors[0].numel() == size
            else f"it holds {[list(one.shape) for one in tensors]}"
        )
        if not why and not bool(tensors[0].isfinite().all()):
            why = "its numbers are not finite"
    except (OSError, SafetensorError) as error:
        why = " ".join(str(error).split())
    if why:
        raise EnvironmentFault(
            f"cannot use the speaker {path}",
            why=why,
            do=f"give speech.voice a safetensors file of one ({size},) tensor",
        )
    return tensors[0].float().reshape(1, size)


def load_fastspeech2(folder: Path, device: torch.device, phonemes: Callable[[str], Tensor] | None = None) -> Speaker:
    """A FastSpeech2Conformer with its HiFi-GAN, which speaks English.

    Args:
        folder: from `find_model`.
        device: where to compute.
        phonemes: (1, n) int64 ids of the phonemes of a text; those of the model's own tokenizer when None.

    Raises:
        EnvironmentFault: it is incomplete, or a package or data are missing that its tokenizer needs.
    """
    ids_of = phonemes or load_phonemes(folder)
    network = load_network(FastSpeech2ConformerWithHifiGan, folder, device, WHAT, KEY)

    def speak(text: str) -> Tensor | Refused:
        sound: Tensor = network(ids_of(text).to(device)).waveform[0]
        return sound

    return Speaker(network.config.vocoder_config.sampling_rate, foreign_letter, speak)


def load_phonemes(folder: Path) -> Callable[[str], Tensor]:
    """FastSpeech2's tokenizer: pronunciations by the package g2p-en, which looks words up in data of NLTK.

    Raises:
        EnvironmentFault: the package, its data or the model's vocabulary are missing.
    """
    _require_package(folder, "g2p_en", "pip install g2p-en")
    try:
        tokenizer = load_whole(FastSpeech2ConformerTokenizer.from_pretrained, folder, WHAT, KEY)
        tokenizer("a word")  # the tagger is first needed here
    except LookupError as error:
        raise EnvironmentFault(
            "the package g2p-en needs data of NLTK",
            why=" ".join(str(error).strip("\n *").split()).partition(". ")[0],
            do="where there is a network: python -m nltk.downloader cmudict averaged_perceptron_tagger"
            " averaged_perceptron_tagger_eng",
        ) from error
    return lambda text: tokenizer(text, return_tensors="pt").input_ids
