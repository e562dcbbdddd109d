"""Text to speech by models of transformers: VITS, SpeechT5 and FastSpeech2Conformer, in float32.

VITS and SpeechT5 draw from torch's global state while they speak, so that texts are spoken one by one, each with the
state that its own seed gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig

from mvc.pretrained import cannot_load, find_model, identity_of, load_whole
from mvc.randomness import derived_seed, seeded_global
from mvc.storage import sha256_file, sha256_json

from .audio import Audio, of_levels
from .flite import why_not
from .steps import Item, Refused, Result, Run, Step, one_each, within
from .voices import (
    KEY,
    WHAT,
    Speaker,
    load_fastspeech2,
    load_speecht5,
    load_vits,
    require_speaker,
    require_vocoder,
    speaker_number,
)
from .words import attached

VITS, SPEECHT5, FASTSPEECH2 = "vits", "speecht5", "fastspeech2_conformer_with_hifigan"


def speaking_step(
    model: str | Path,
    revision: str | None,
    voice: str,
    vocoder: str | Path | None,
    device: torch.device,
    batch_size: int,
    max_characters: int,
) -> Step:
    """A step that speaks texts with a model of transformers.

    Randomness from (seed, "speech"): the noise of VITS (none where its configuration says so) and the dropout that
    SpeechT5 keeps while it speaks. FastSpeech2Conformer has none.

    Args:
        model: folder or hub id.
        revision: branch, tag or commit on the hub.
        voice: VITS of several speakers: the number of one; SpeechT5: safetensors file with the tensor of a speaker
            (512 numbers); others have one voice.
        vocoder: SpeechT5: folder or hub id of its HiFi-GAN.
        device: where to compute. Draws are those of the device: other sounds on another kind of it.
        batch_size: texts of a batch, which are spoken one by one.
        max_characters: longer texts are refused.

    Its `run` raises:
        EnvironmentFault: a model is unreadable or incomplete, or a package or data of its tokenizer are missing.

    Raises:
        ConfigError: the voice or vocoder is lacking or none of this model.
        EnvironmentFault: a model is missing, or of another kind.
    """
    folder = find_model(model, revision, WHAT, KEY)
    config = load_whole(AutoConfig.from_pretrained, folder, WHAT, KEY, revision, model)
    get: Callable[[], Speaker]
    used: list[str | int | None]
    if config.model_type == VITS:
        number = speaker_number(voice, config.num_speakers)
        get, used = partial(load_vits, folder, number, device), [number]
    elif config.model_type == SPEECHT5:
        file, gan = require_speaker(voice), require_vocoder(vocoder)
        get, used = partial(load_speecht5, folder, gan, file, device), [sha256_file(file), identity_of(gan)]
    elif config.model_type == FASTSPEECH2:
        get, used = partial(load_fastspeech2, folder, device), []
    else:
        known = ", ".join((VITS, SPEECHT5, FASTSPEECH2))
        raise cannot_load(model, revision, WHAT, KEY, f"it is a {config.model_type}; known are {known}")
    return Step(
        f"{config.model_type} ({model})",
        "text",
        "audio",
        lambda: _run(get(), device, max_characters),
        sha256_json(["speaking", 2, identity_of(folder), used]),
        random=_is_random(config),
        batch_size=batch_size,
    )


def _is_random(config: Any) -> bool:
    """Whether a model of this configuration speaks a text differently each time."""
    if config.model_type == VITS:
        rhythm = config.noise_scale_duration if config.use_stochastic_duration_prediction else 0.0
        return bool(config.noise_scale > 0 or rhythm > 0)
    return bool(config.model_type == SPEECHT5 and config.speech_decoder_prenet_dropout > 0)


def _run(speaker: Speaker, device: torch.device, max_characters: int) -> Run:
    """The function of a step that does a batch."""

    def one(text: str, seed: int) -> Audio | Refused:
        with torch.no_grad(), seeded(seed, device):
            sound = speaker.speak(attached(text))
        if isinstance(sound, Refused):
            return sound
        samples = sound.float().cpu().numpy()
        if not np.isfinite(samples).all():
            return Refused("its sound holds numbers that are not finite")
        return of_levels(Audio(samples, speaker.rate).levels(), speaker.rate)  # as a file of 16 bits holds it

    def speak(texts: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
        return within(
            list(zip(texts, seeds, strict=True)),
            lambda pair: why_not(pair[0], max_characters, speaker.unknown),
            lambda pairs: [one(text, seed) for text, seed in pairs],
        )

    return one_each(speak)


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global states that models on a device draw from, by (seed, "speech"), and restore them afterwards."""
    with seeded_global(seed, "speech"):
        if device.type == "cuda":
            with torch.cuda.device(device), torch.random.fork_rng([torch.cuda.current_device()]):
                torch.cuda.manual_seed(derived_seed(seed, "speech"))
                yield
        elif device.type == "mps":
            before = torch.mps.get_rng_state()
            torch.mps.manual_seed(derived_seed(seed, "speech"))
            try:
                yield
            finally:
                torch.mps.set_rng_state(before)
        else:
            yield
