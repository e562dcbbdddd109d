"""Speech to text by models of transformers: CTC models such as Wav2Vec2, and Whisper; greedy, never sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCTC,
    AutoModelForSpeechSeq2Seq,
    AutoTokenizer,
)

from mvc.pretrained import cannot_load, find_model, identity_of, load_network, load_whole
from mvc.storage import sha256_json

from .audio import Audio
from .sphinx import NOTHING_HEARD, resampled
from .steps import Item, Output, Refused, Result, Run, Step, one_each, within

CTC = (
    "wav2vec2",
    "data2vec-audio",
    "hubert",
    "sew",
    "sew-d",
    "unispeech",
    "unispeech-sat",
    "wav2vec2-conformer",
    "wavlm",
)
"""Kinds that take the samples themselves and give a letter, or none, for each 20 ms."""
WHISPER = "whisper"
SHORTEST = 0.1
"""Seconds; less is no word, and shorter than what a convolution of these models looks at."""
_WHAT, _KEY = "speech-to-text model", "speech.listener"
Listen = Callable[[Sequence[Audio]], list[str]]


def listening_step(model: str | Path, revision: str | None, device: torch.device, batch_size: int) -> Step:
    """A step that listens with a model of transformers, in float32; no randomness.

    A text in capitals alone, as CTC models write, is put into lower case.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit on the hub.
        device: where to compute.
        batch_size: sounds at once.

    Its `run` raises:
        EnvironmentFault: the model is unreadable or incomplete, or has no safetensors.

    Raises:
        EnvironmentFault: the model is missing, or of another kind.
    """
    folder = find_model(model, revision, _WHAT, _KEY)
    kind = load_whole(AutoConfig.from_pretrained, folder, _WHAT, _KEY, revision, model).model_type
    if kind not in (*CTC, WHISPER):
        raise cannot_load(model, revision, _WHAT, _KEY, f"it is a {kind}; known are {', '.join((*CTC, WHISPER))}")

    def load() -> Run:
        features = load_whole(AutoFeatureExtractor.from_pretrained, folder, _WHAT, _KEY)
        tokenizer = load_whole(AutoTokenizer.from_pretrained, folder, _WHAT, _KEY)
        longest = float(features.chunk_length) if kind == WHISPER else None
        listen = (_whisper if kind == WHISPER else _ctc)(folder, features, tokenizer, device)

        def hear(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
            return within(items, lambda one: why_not(one, longest), lambda batch: _texts(listen, batch))

        return one_each(hear)

    identity = sha256_json(["listening", 1, kind, identity_of(folder)])
    return Step(f"{kind} ({model})", "audio", "text", load, identity, random=False, batch_size=batch_size)


def why_not(audio: Audio, longest: float | None) -> str | None:
    """Why a model cannot listen to a sound, in words; None if it can.

    Args:
        audio: the sound.
        longest: seconds that the model takes, of which it would leave out the rest without a word; None for any.
    """
    if audio.seconds < SHORTEST:
        return f"its sound is shorter than {SHORTEST:g} seconds"
    if longest is not None and audio.seconds > longest:
        return f"its sound of {audio.seconds:.0f} seconds is longer than the {longest:g} that the listener takes"
    return None if audio.levels().any() else NOTHING_HEARD


def _texts(listen: Listen, batch: Sequence[Audio]) -> list[Output | Refused]:
    """What is heard, as one line each."""
    lines = [" ".join(text.split()) for text in listen(batch)] if batch else []
    return [Output(line.lower() if line.isupper() else line) if line else Refused(NOTHING_HEARD) for line in lines]


def _ctc(folder: Path, features: Any, tokenizer: Any, device: torch.device) -> Listen:
    """A CTC model, decoded by its best path (Graves et al. 2006)."""
    # The embedding of masked frames is for training alone, and published models lack it.
    network = load_network(AutoModelForCTC, folder, device, _WHAT, _KEY, new=(r"masked_spec_embed$",))

    def one(audio: Audio) -> str:
        samples = resampled(audio, features.sampling_rate)
        inputs = features(samples, sampling_rate=features.sampling_rate, return_tensors="pt").to(device)
        with torch.no_grad():
            best = network(**inputs).logits[0].argmax(dim=-1)
        return collapsed(best.tolist(), tokenizer)

    # One by one: many of these models normalise over the whole length, so that padding would change what is heard.
    return lambda batch: [one(audio) for audio in batch]


def collapsed(best: Sequence[int], tokenizer: Any) -> str:
    """The text of the likeliest number of each frame: repeats become one, then blanks and other marks are left out.

    The tokenizer's own `skip_special_tokens` leaves blanks out first, which makes "helo" of "hello".
    """
    marks = set(tokenizer.all_special_ids) - {tokenizer.word_delimiter_token_id}
    kept = [number for number, _ in groupby(best) if number not in marks]
    return str(tokenizer.decode(kept, group_tokens=False))


def _whisper(folder: Path, features: Any, tokenizer: Any, device: torch.device) -> Listen:
    """Whisper: every sound is padded to the same length, so that sounds do not change each other in a batch."""
    network = load_network(AutoModelForSpeechSeq2Seq, folder, device, _WHAT, _KEY)

    def listen(batch: Sequence[Audio]) -> list[str]:
        sounds = [resampled(audio, features.sampling_rate) for audio in batch]
        inputs = features(
            sounds, sampling_rate=features.sampling_rate, return_attention_mask=True, return_tensors="pt"
        ).to(device)
        with torch.no_grad():
            tokens = network.generate(**inputs, do_sample=False, num_beams=1, return_timestamps=False)
        return [str(text) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]

    return listen
