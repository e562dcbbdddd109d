"""Speech to text by PocketSphinx and its own English model: offline, on the CPU, the same every time."""

from __future__ import annotations

import os
import signal
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache
from math import gcd
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvc.errors import EnvironmentFault
from mvc.extras import package, package_version
from mvc.stopping import flag
from mvc.storage import sha256_json

from .audio import Audio, of_levels
from .steps import Item, Output, Refused, Result, Run, Step, one_each

RATE = 16000
"""Of PocketSphinx's English model, in Hz."""
NOTHING_HEARD = "nothing was heard"
_NEED = "listening needs"
_PAUSE = RATE // 4
"""Silence put before and after a sound: words that a recording cuts closely were heard better for it (5 digits of 20
and not 3), and sentences of flite the same."""


def sphinx_step(processes: int = 1) -> Step:
    """A step that listens with PocketSphinx; no randomness, and what is heard doesn't depend on what was heard before.

    Args:
        processes: how many listen at once; a decoder holds the interpreter's lock, so that threads gain nothing.

    Its `run` raises:
        EnvironmentFault: the package pocketsphinx is missing, or a listening process died.
        Stopped: a listening process died because of a signal that asks for a stop.
    """

    def load() -> Run:
        package("pocketsphinx", "speech", _NEED)
        pool = _Pool(processes) if processes > 1 else None

        def listen(items: Sequence[Item], seeds: Sequence[int]) -> list[Result]:
            sounds = [prepared(item) for item in items]
            heard = pool.hear(sounds) if pool is not None else [hear(one) for one in sounds]
            return [Output(text) if text else Refused(NOTHING_HEARD) for text in heard]

        return one_each(listen)

    identity = sha256_json(["pocketsphinx", 1, package_version("pocketsphinx"), _PAUSE])
    # Enough at once that processes seldom wait for the last one of a batch.
    batch_size = max(16, 4 * processes)
    return Step("pocketsphinx", "audio", "text", load, identity, random=False, batch_size=batch_size)


def resampled(audio: Audio, rate: int) -> NDArray[np.float32]:
    """(n,) float32 samples in [-1, 1] of a sound at another rate, by a polyphase filter.

    Args:
        audio: the sound, of which the samples at 16 bits count, as of its digest.
        rate: in Hz.
    """
    samples = of_levels(audio.levels(), audio.rate).samples
    if rate == audio.rate or not len(samples):
        return samples
    from scipy.signal import resample_poly  # takes half a second, and most sounds do without

    common = gcd(rate, audio.rate)
    changed = resample_poly(samples, rate // common, audio.rate // common)
    clipped: NDArray[np.float32] = np.clip(changed, -1.0, 1.0).astype(np.float32)
    return clipped


def prepared(audio: Audio) -> bytes:
    """A sound as the decoder takes it: 16-bit samples at 16 kHz between two pauses; nothing of one without a sound."""
    levels = Audio(resampled(audio, RATE), RATE).levels()
    return np.pad(levels, _PAUSE).tobytes() if levels.any() else b""


def hear(sound: bytes) -> str:
    """What this process's decoder hears in a sound from `prepared`, in lower case; empty if nothing."""
    if not sound:
        return ""
    decoder = _decoder()
    decoder.reinit_feat()  # forget the sounds before; the running mean of their features changes what is heard
    decoder.start_utt()
    decoder.process_raw(sound, full_utt=True)
    decoder.end_utt()
    found = decoder.hyp()
    return str(found.hypstr) if found is not None else ""


@cache
def _decoder() -> Any:
    """The decoder of this process; it takes 0.3 s and 40 MB."""
    return package("pocketsphinx", "speech", _NEED).Decoder(samprate=RATE, loglevel="FATAL")


class _Pool:
    """Processes that each keep a decoder; they end with the last reference to this, or with the process.

    Args:
        processes: how many.
    """

    def __init__(self, processes: int) -> None:
        # Fresh interpreters: a fork would copy the threads' locks of torch in whatever state they are.
        self._pool = ProcessPoolExecutor(processes, mp_context=get_context("spawn"), initializer=_begin)
        weakref.finalize(self, self._pool.shutdown, wait=False, cancel_futures=True)

    def hear(self, sounds: Sequence[bytes]) -> list[str]:
        """What is heard in each sound, as `hear` does it.

        Raises:
            EnvironmentFault: a process died.
            Stopped: one died, and a stop was asked for.
        """
        futures: list[Future[str]] = []
        try:
            with _interrupts_held():  # processes are started here, when they are first needed
                futures.extend(self._pool.submit(hear, one) for one in sounds)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            flag.check("what was made before is kept")
            raise EnvironmentFault(
                "a process that listens died",
                why="the system ends processes when memory runs out",
                do="run again with a smaller speech.processes",
            ) from error
        finally:
            for future in futures:
                future.cancel()  # of use after an interrupt, which should not wait for the batch


def _begin() -> None:
    """Make a listening process leave Ctrl-C to the parent, whose flag decides, and end when the parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # a killed parent leaves a pool that would wait for work forever


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Start processes with Ctrl-C blocked, for it could come before they can ignore it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
