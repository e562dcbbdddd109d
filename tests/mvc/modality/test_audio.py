"""Sound in memory and in files: 16 bits there and back, digests of what a file holds, files that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from mvc.errors import DataError
from mvc.modality.audio import SUFFIX, Audio, of_levels, read_audio, write_audio


def noise(count: int = 5000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1.0, 1.0, count).astype(np.float32)


def test_every_level_comes_back_from_a_file(tmp_path: Path) -> None:
    levels = np.arange(-32767, 32768, dtype=np.int16)
    path = tmp_path / f"levels{SUFFIX}"
    write_audio(path, of_levels(levels, 16000))
    read = read_audio(path)
    assert read.rate == 16000 and np.array_equal(read.levels(), levels)
    assert read.samples.dtype == np.float32 and read.samples.min() == -1.0 and read.samples.max() == 1.0
    assert read.seconds == 65535 / 16000


def test_rounding_is_to_the_nearest_level_and_what_is_too_loud_is_cut() -> None:
    samples = noise()
    assert np.abs(of_levels(Audio(samples, 8000).levels(), 8000).samples - samples).max() <= 0.5 / 32767 + 1e-7
    loud = Audio(np.array([-3.0, -1.0, 0.0, 1.0, 1.5], np.float32), 8000)
    assert loud.levels().tolist() == [-32767, -32767, 0, 32767, 32767]


def test_the_digest_is_of_the_rate_and_of_what_a_file_holds(tmp_path: Path) -> None:
    sound = Audio(noise(), 16000)
    write_audio(tmp_path / "sound.flac", sound)
    assert read_audio(tmp_path / "sound.flac").digest() == sound.digest()
    assert Audio(sound.samples, 8000).digest() != sound.digest()
    changed = sound.samples.copy()
    changed[17] += np.float32(2 / 32767)
    assert Audio(changed, 16000).digest() != sound.digest()


def test_the_file_is_a_flac_of_16_bits_and_one_channel(tmp_path: Path) -> None:
    write_audio(tmp_path / "sound.flac", Audio(noise(), 22050))
    facts = soundfile.info(tmp_path / "sound.flac")
    assert (facts.format, facts.subtype, facts.channels, facts.samplerate) == ("FLAC", "PCM_16", 1, 22050)


def test_channels_become_their_mean(tmp_path: Path) -> None:
    left, right = noise(seed=1), noise(seed=2)
    soundfile.write(tmp_path / "two.wav", np.stack([left, right], axis=1), 16000, subtype="PCM_16")
    read = read_audio(tmp_path / "two.wav")
    assert read.samples.shape == (5000,)
    assert np.abs(read.samples - (left + right) / 2).max() < 3 / 32767


def test_an_empty_sound_is_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "empty.wav", np.zeros(0, np.float32), 16000)
    assert read_audio(tmp_path / "empty.wav").seconds == 0.0


def test_what_is_no_sound_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("no sound")
    for name in ("text.wav", "missing.wav"):
        with pytest.raises(DataError, match=f"{name} cannot be read as sound\nwhy: .+"):
            read_audio(tmp_path / name)
