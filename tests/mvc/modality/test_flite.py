"""flite for real: the same sound every time, texts that it would leave out in silence, and what is missing."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from mvc.errors import EnvironmentFault
from mvc.modality.audio import Audio
from mvc.modality.flite import flite_step, foreign_letter, plain, why_not
from mvc.modality.steps import Output, Refused, Result

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="the program flite is not installed")
SENTENCE = "A small brown dog is sitting on the green grass."


def spoken(*texts: str, voice: str = "rms", max_characters: int = 1000) -> list[Result]:
    return [made for (made,) in flite_step(voice, max_characters).run(list(texts), [[0]] * len(texts))]


def sound(text: str) -> Audio:
    (result,) = spoken(text)
    assert isinstance(result, Output), result
    value: Audio = result.value
    return value


@needs_flite
def test_the_same_text_gives_the_same_samples_and_another_one_others() -> None:
    one, other = sound(SENTENCE), sound(SENTENCE)
    assert np.array_equal(one.samples, other.samples) and one.rate == other.rate == 16000
    assert 2.0 < one.seconds < 5.0 and 0.1 < np.abs(one.samples).max() <= 1.0
    assert sound("Another text.").digest() != one.digest()
    assert not flite_step("rms", 1000).random


@needs_flite
def test_a_batch_gives_what_single_texts_give_and_refusals_cost_nothing_else() -> None:
    texts = [SENTENCE, "", "a cat", "собака", SENTENCE]
    made = spoken(*texts)
    assert [isinstance(one, Refused) for one in made] == [False, True, False, True, False]
    for text, one in zip(texts, made, strict=True):
        if isinstance(one, Output):
            assert one.value.digest() == sound(text).digest()
    assert len({one.value.digest() for one in made if isinstance(one, Output)}) == 2


@needs_flite
@pytest.mark.parametrize(
    "text",
    [
        "--version",
        "-lv",
        "-o /dev/null a",
        "/etc/passwd",
        "play",
        "a\0b",
        '"quoted"; $(reboot) `ls` %s',
        "<speak>a</speak>",
    ],
)
def test_no_text_is_taken_for_an_option_or_a_file(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sound(text).seconds > 0.3
    assert list(tmp_path.iterdir()) == []


@needs_flite
def test_a_long_text_is_spoken_as_a_whole() -> None:
    """A thousand characters: ten times as long as a hundred, but for pauses."""
    short, long = "the dog is on the grass. " * 4, "the dog is on the grass. " * 40
    assert sound(long).seconds == pytest.approx(10 * sound(short).seconds, rel=0.1)


@needs_flite
def test_accents_and_typography_sound_like_their_plain_forms() -> None:
    assert plain("Café “naïve” — Øre, straße, ﬁne… ½") == 'Cafe "naive" - Ore, strasse, fine... 1/2'
    assert plain("5 € 😀 a\u0301b\tc\n") == "5     ab c "
    assert sound("do n’t touch the café").digest() == sound("don't touch the cafe").digest()


@needs_flite
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is empty"),
        (" \n\t", "it is empty"),
        ("...", "it has no word to speak"),
        ("😀 !?", "it has no word to speak"),
        ("x" * 10_000, "it has 10000 characters, more than 1000"),
        ("собака", "it holds letters that the voice cannot speak, such as 'с'"),
        ("a dog and a 狗", "it holds letters that the voice cannot speak, such as '狗'"),
        ("γάτα", "it holds letters that the voice cannot speak, such as 'γ'"),
        ("room ٣", "it holds letters that the voice cannot speak, such as '٣'"),
    ],
)
def test_what_would_be_left_out_is_refused_with_its_reason(text: str, why: str) -> None:
    assert spoken(text) == [Refused(why)]


def test_reasons_need_no_flite() -> None:
    assert why_not("a dog", 5) is None and why_not("a dogs", 5) == "it has 6 characters, more than 5"
    assert foreign_letter("Ærøskøbing, Łódź, Đặng") is None and foreign_letter("a ж b") == "ж"
    assert why_not("dog 7", 10, lambda text: "7") == "it holds letters that the voice cannot speak, such as '7'"


@needs_flite
def test_an_unknown_voice_is_refused_with_those_that_are_there() -> None:
    step = flite_step("nobody", 1000)
    with pytest.raises(
        EnvironmentFault, match=r"flite has no voice 'nobody'\nwhy: it has .*\brms\b.*\ndo: .*speech.voice"
    ):
        step.run([SENTENCE], [[0]])


@needs_flite
def test_the_identity_holds_voice_and_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert flite_step("rms", 10).identity == flite_step("rms", 10).identity != flite_step("slt", 10).identity
    before = flite_step("rms", 10).identity
    other = tmp_path / "flite"
    other.write_text("#!/bin/sh\necho '  version: flite-9.9 (http://cmuflite.org)'\nexit 1\n")
    other.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert flite_step("rms", 10).identity != before


def test_without_flite_it_is_said_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    step = flite_step("rms", 1000)
    with pytest.raises(
        EnvironmentFault, match=r"program flite is missing\n.*\n.*apt-get install flite.*brew install flite"
    ):
        step.run([SENTENCE], [[0]])


def test_a_flite_that_makes_no_sound_is_an_error_and_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "flite"
    broken.write_text("#!/bin/sh\necho 'Voices available: rms'\necho 'out of memory' >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(EnvironmentFault, match="flite made no sound file\nwhy: out of memory"):
        flite_step("rms", 1000).run([SENTENCE], [[0]])
