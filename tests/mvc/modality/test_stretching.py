"""Pitch and tempo: lengths and peaks that they come to, draws that depend on their seed alone, spans that cannot be."""

from __future__ import annotations

import random
import sys

import numpy as np
import pytest

from mvc.errors import ConfigError, EnvironmentFault
from mvc.modality.audio import Audio, of_levels
from mvc.modality.chain import Chain
from mvc.modality.nodes import Level
from mvc.modality.steps import Output
from mvc.modality.stretching import drawn, stretch_step

RATE = 16000
Span = tuple[float, float]


def sine(hertz: float, seconds: float = 2.0) -> Audio:
    return Audio((0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)).astype(np.float32), RATE)


def changed(pitch: Span | None, stretch: Span | None, audio: Audio, seed: int = 0) -> Output:
    result = stretch_step(pitch, stretch).run([audio], [[seed]])[0][0]
    assert isinstance(result, Output)
    return result


def peak(audio: Audio) -> float:
    """Hz of the strongest frequency; between bins by a parabola through the logarithms of a Hann window's spectrum."""
    power = np.log(np.abs(np.fft.rfft(audio.samples * np.hanning(len(audio.samples)))) + 1e-12)
    top = int(power.argmax())
    before, at, after = power[top - 1 : top + 2]
    return float((top + 0.5 * (before - after) / (before - 2 * at + after)) * audio.rate / len(audio.samples))


@pytest.mark.parametrize(("semitones", "hertz"), [(12.0, 440.0), (-12.0, 110.0), (2.0, 220 * 2 ** (2 / 12)), (0, 220)])
def test_twelve_semitones_are_an_octave(semitones: float, hertz: float) -> None:
    made = changed((semitones, semitones), None, sine(220.0))
    assert peak(made.value) == pytest.approx(hertz, rel=0.01)
    assert len(made.value.samples) == 2 * RATE and made.facts == {"semitones": semitones}


@pytest.mark.parametrize("tempo", [0.5, 0.85, 1.0, 1.15, 2.0])
def test_the_length_is_one_over_the_tempo_and_the_pitch_stays(tempo: float) -> None:
    made = changed(None, (tempo, tempo), sine(220.0))
    assert made.value.seconds == pytest.approx(2.0 / tempo, rel=0.001)
    assert peak(made.value) == pytest.approx(220.0, rel=0.01)
    assert made.value.rate == RATE and made.facts == {"tempo": tempo}


def test_both_at_once() -> None:
    made = changed((12.0, 12.0), (2.0, 2.0), sine(220.0))
    assert made.value.seconds == pytest.approx(1.0, rel=0.001)
    assert peak(made.value) == pytest.approx(440.0, rel=0.01)
    assert np.abs(made.value.samples).max() <= 1.0 and made.value.samples.dtype == np.float32


def test_draws_are_uniform_in_their_spans_and_do_not_hang_together() -> None:
    draws = [drawn((-2.0, 2.0), (0.85, 1.15), seed) for seed in range(4000)]
    shares = np.array([[(one["semitones"] + 2) / 4, (one["tempo"] - 0.85) / 0.3] for one in draws])
    assert shares.min() >= 0.0 and shares.max() <= 1.0
    for share in shares.T:  # the largest gap between two distributions: 1.95 / sqrt(n) is passed once in a thousand
        gaps = np.sort(share) - np.arange(1, 4001) / 4000
        assert np.abs(gaps).max() < 1.95 / np.sqrt(4000)
    assert abs(np.corrcoef(shares.T)[0, 1]) < 0.06
    assert drawn(None, (0.85, 1.15), 7)["tempo"] == drawn((-2.0, 2.0), (0.85, 1.15), 7)["tempo"]
    assert drawn(None, None, 7) == {}


def test_a_seed_gives_its_samples_whatever_the_batch_and_no_global_state_is_used() -> None:
    step = stretch_step((-2.0, 2.0), (0.5, 1.5))
    sounds = [sine(220.0, 0.5), sine(330.0, 0.7)]
    states = random.getstate(), str(np.random.get_state())
    together = step.run(sounds, [[1, 2, 3], [2, 1]])
    assert (random.getstate(), str(np.random.get_state())) == states
    for sound, seeds, made in zip(sounds, [[1, 2, 3], [2, 1]], together, strict=True):
        for seed, one in zip(seeds, made, strict=True):
            random.seed(seed + 100)
            np.random.seed(seed + 100)
            again = step.run([sound], [[seed]])[0][0]
            assert isinstance(one, Output) and isinstance(again, Output)
            assert np.array_equal(one.value.samples, again.value.samples) and one.facts == again.facts
    assert len({str(one.facts) for one in together[0] if isinstance(one, Output)}) == 3
    assert together[0][1].facts == together[1][0].facts  # of seed 2, for another sound


def test_what_matters_is_what_a_file_of_16_bits_holds() -> None:
    sound = sine(220.0, 0.5)
    read = of_levels(sound.levels(), RATE)
    assert read.digest() == sound.digest() and not np.array_equal(read.samples, sound.samples)
    one, other = (changed((1.0, 1.0), (0.9, 0.9), each).value for each in (sound, read))
    assert np.array_equal(one.samples, other.samples)


def test_a_sound_without_samples_stays_one() -> None:
    made = changed((1.0, 1.0), (0.9, 0.9), Audio(np.zeros(0, np.float32), RATE))
    assert len(made.value.samples) == 0


def test_spans_of_one_value_make_no_variants() -> None:
    assert stretch_step((-2.0, 2.0), (1.0, 1.0)).random and not stretch_step((2.0, 2.0), None).random
    with pytest.raises(ConfigError, match="pitch and tempo makes the same of an item every time, and 3 outputs"):
        Chain([Level(stretch_step((2.0, 2.0), None), 3)])


def test_identities_tell_settings_apart() -> None:
    steps = [stretch_step((-2, 2), None), stretch_step(None, (0.9, 1.1)), stretch_step((-2, 3), None)]
    assert len({step.identity for step in steps}) == 3 and not any(step.keep for step in steps)
    assert stretch_step((-2, 2), None).identity == steps[0].identity


@pytest.mark.parametrize(
    ("pitch", "stretch", "message"),
    [
        ((-30.0, 2.0), None, r"speech.pitch=\[-30, 2\] cannot be had\ndo: .* within \[-24, 24\] semitones"),
        ((3.0, 2.0), None, r"speech.pitch=\[3, 2\] cannot be had\ndo: give a rising span"),
        (None, (0.3, 1.0), r"speech.stretch=\[0.3, 1\] cannot be had\ndo: .* within \[0.5, 2\] times the tempo"),
        (None, (float("nan"), 1.0), r"speech.stretch=\[nan, 1\] cannot be had"),
    ],
)
def test_spans_that_cannot_be_had_are_refused(pitch: Span | None, stretch: Span | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stretch_step(pitch, stretch)


def test_a_missing_package_is_named_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "audiomentations", None)
    step = stretch_step((-2.0, 2.0), None)
    with pytest.raises(
        EnvironmentFault, match=r"need the package audiomentations\nwhy.*\ndo: pip install 'mvc\[speech\]'"
    ):
        step.run([sine(220.0)], [[0]])
