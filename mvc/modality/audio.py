"""Speech in memory, and as FLAC files: lossless at 16 bits, which is what the speech models work with."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray

from mvc.errors import DataError
from mvc.storage import sha256_bytes, write_bytes

SUFFIX = ".flac"
_LEVELS = 32767


@dataclass(frozen=True, eq=False)
class Audio:
    """One channel of sound.

    Attributes:
        samples: (n,) float32 in [-1, 1].
        rate: samples a second.
    """

    samples: NDArray[np.float32]
    rate: int

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.rate

    def levels(self) -> NDArray[np.int16]:
        """(n,) int16 samples, which is what is written to files and what digests are of."""
        return np.rint(np.clip(self.samples, -1.0, 1.0) * _LEVELS).astype(np.int16)

    def digest(self) -> str:
        """sha256 of the rate and the samples at 16 bits."""
        return sha256_bytes(f"{self.rate} ".encode() + self.levels().tobytes())


def of_levels(levels: NDArray[np.int16], rate: int) -> Audio:
    """Sound from (n,) int16 samples."""
    return Audio((levels / np.float32(_LEVELS)).astype(np.float32), rate)


def write_audio(path: Path, audio: Audio) -> None:
    """Write a FLAC file of 16 bits, whole or not at all.

    Raises:
        EnvironmentFault: the place cannot be written.
    """
    buffer = io.BytesIO()
    soundfile.write(buffer, audio.levels(), audio.rate, format="FLAC", subtype="PCM_16")
    write_bytes(path, buffer.getvalue())


def read_audio(path: Path) -> Audio:
    """Read a sound file of any format that libsndfile knows; several channels become their mean.

    Raises:
        DataError: it is missing or no sound file.
    """
    try:
        samples, rate = soundfile.read(path, dtype="int16", always_2d=True)
    except (OSError, RuntimeError) as error:  # soundfile's own errors are RuntimeErrors
        raise DataError(f"{path} cannot be read as sound", why=" ".join(str(error).split())) from error
    if samples.shape[1] == 1:
        return of_levels(samples[:, 0], int(rate))
    return of_levels(np.rint(samples.mean(axis=1)).astype(np.int16), int(rate))
