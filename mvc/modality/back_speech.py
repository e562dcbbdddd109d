"""Back-speech: a text is spoken, its sound changed, and what is heard of it is the augmentation (Sec. 3.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mvc.extras import package

from .edit_distance import edit_distance_filter
from .nodes import Level
from .steps import Step

if TYPE_CHECKING:
    import torch

FLITE, POCKETSPHINX = "flite", "pocketsphinx"
Span = tuple[float, float]


def back_speech_levels(
    *,
    speaker: str,
    voice: str,
    vocoder: str | None,
    spoken: int,
    pitch: Span | None,
    stretch: Span | None,
    variants: int,
    listener: str,
    edit_distance: float | None,
    processes: int,
    device: torch.device,
    batch_size: int,
    max_characters: int,
) -> list[Level]:
    """The levels of text -> speech -> other pitch and tempo -> text, for `chain.Chain`.

    Args:
        speaker: "flite", or folder or hub id of a text-to-speech model of transformers.
        voice: flite: its name; VITS: number of the speaker; SpeechT5: safetensors file of the speaker.
        vocoder: SpeechT5: folder or hub id of its HiFi-GAN.
        spoken: how often a text is spoken; more than once only by a speaker that varies.
        pitch: span of semitones; None shifts none.
        stretch: span of factors of the tempo; None stretches none. With neither there is no such level.
        variants: versions of pitch and tempo of each spoken text.
        listener: "pocketsphinx", or folder or hub id of a speech-to-text model of transformers.
        edit_distance: texts that differ in a larger share of their letters are dropped; None drops none.
        processes: pocketsphinx: how many listen at once.
        device: where models of transformers compute.
        batch_size: of the models of transformers.
        max_characters: longer texts are refused.

    Raises:
        EnvironmentFault: a model or the package soundfile or rapidfuzz is missing; programs and other packages are
            looked for when a step is first used.
        ConfigError: a span or voice is not possible.
    """
    package("soundfile", "speech", "speech needs")  # before a module imports it
    speaking = _speaking(speaker, voice, vocoder, device, batch_size, max_characters)
    levels = [Level(speaking, spoken)]
    if pitch is not None or stretch is not None:
        from .stretching import stretch_step

        levels.append(Level(stretch_step(pitch, stretch), variants))
    filters = () if edit_distance is None else (edit_distance_filter(edit_distance),)
    return [*levels, Level(_listening(listener, device, batch_size, processes), filters=filters)]


def _speaking(
    speaker: str, voice: str, vocoder: str | None, device: torch.device, batch_size: int, max_characters: int
) -> Step:
    if speaker == FLITE:
        from .flite import flite_step

        return flite_step(voice, max_characters)
    from .speaking import speaking_step

    return speaking_step(speaker, None, voice, vocoder, device, batch_size, max_characters)


def _listening(listener: str, device: torch.device, batch_size: int, processes: int) -> Step:
    if listener == POCKETSPHINX:
        from .sphinx import sphinx_step

        return sphinx_step(processes)
    from .listening import listening_step

    return listening_step(listener, None, device, batch_size)
