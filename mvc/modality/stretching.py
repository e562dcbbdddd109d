"""Other pitch and other tempo of a sound, by audiomentations: H of back-speech (Back-Modality, Sec. 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.errors import ConfigError
from mvc.extras import package, package_version
from mvc.randomness import numpy_generator
from mvc.storage import sha256_json

from .audio import Audio, of_levels
from .steps import Item, Output, Result, Run, Step, one_each

Span = tuple[float, float]
PITCH, TEMPO = (-24.0, 24.0), (0.5, 2.0)
"""What can be asked for. audiomentations shifts by two octaves at most; slower than half, its stretcher mixes in noise
that no seed reaches."""


def stretch_step(pitch: Span | None, stretch: Span | None) -> Step:
    """A step that shifts a sound's pitch, then changes its tempo; the length becomes 1 / tempo of what it was.

    Randomness from (seed, "pitch and tempo"): both are uniform in their spans. They are the facts "semitones" and
    "tempo" of an output.

    Args:
        pitch: semitones, within [-24, 24]; None shifts none.
        stretch: factor of the tempo, within [0.5, 2], above 1 is faster; None stretches none.

    Its `run` raises:
        EnvironmentFault: the package audiomentations is missing.

    Raises:
        ConfigError: a span leads outside.
    """
    _require_within(pitch, PITCH, "pitch", "semitones")
    _require_within(stretch, TEMPO, "stretch", "times the tempo")

    def load() -> Run:
        library = package("audiomentations", "speech", "pitch and tempo need")  # a second

        def change(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
            return [_changed(library, item, pitch, stretch, seed) for item, seed in zip(items, seeds, strict=True)]

        return one_each(change)

    identity = sha256_json(["pitch and tempo", 1, pitch, stretch, [package_version(name) for name in _PACKAGES]])
    varies = any(span is not None and span[0] < span[1] for span in (pitch, stretch))
    return Step("pitch and tempo", "audio", "audio", load, identity, random=varies, keep=False)


_PACKAGES = ("audiomentations", "python-stretch")


def drawn(pitch: Span | None, stretch: Span | None, seed: int) -> dict[str, float]:
    """What a seed means: {"semitones": ..., "tempo": ...}, rounded to 1/1000, without what is not changed.

    Args:
        pitch, stretch: as `stretch_step`.
        seed: randomness from (seed, "pitch and tempo"); the tempo doesn't depend on whether the pitch is shifted.
    """
    shares = numpy_generator(seed, "pitch and tempo").random(2)
    spans = {"semitones": pitch, "tempo": stretch}
    return {
        name: round(span[0] + (span[1] - span[0]) * float(share), 3)
        for (name, span), share in zip(spans.items(), shares, strict=True)
        if span is not None
    }


def _changed(library: Any, audio: Audio, pitch: Span | None, stretch: Span | None, seed: int) -> Output:
    """A sound at the pitch and tempo of a seed, at 16 bits, as a file would hold it."""
    facts = drawn(pitch, stretch, seed)
    # From the samples at 16 bits, which is all that a digest of a sound knows.
    samples = of_levels(audio.levels(), audio.rate).samples
    if "semitones" in facts:
        change = library.PitchShift(facts["semitones"], facts["semitones"], p=1.0)
        samples = _applied(change, samples, audio, num_semitones=facts["semitones"])
    if "tempo" in facts:
        change = library.TimeStretch(facts["tempo"], facts["tempo"], leave_length_unchanged=False, p=1.0)
        samples = _applied(change, samples, audio, rate=facts["tempo"])
    return Output(of_levels(Audio(samples, audio.rate).levels(), audio.rate), facts)


def _applied(change: Any, samples: NDArray[np.float32], audio: Audio, **parameters: float) -> Any:
    """Use a transform with given parameters; it would draw them, and whether it is used, from a global state."""
    change.parameters = {"should_apply": True, **parameters}
    change.freeze_parameters()
    return change(samples, audio.rate)


def _require_within(span: Span | None, bounds: Span, key: str, unit: str) -> None:
    if span is not None and not bounds[0] <= span[0] <= span[1] <= bounds[1]:
        raise ConfigError(
            f"speech.{key}=[{span[0]:g}, {span[1]:g}] cannot be had",
            do=f"give a rising span within [{bounds[0]:g}, {bounds[1]:g}] {unit}",
        )
