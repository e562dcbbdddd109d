"""PocketSphinx for real: what it hears does not hang on what it heard before, nor on how many processes listen."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from mvc.errors import EnvironmentFault, Stopped
from mvc.extras import package
from mvc.modality import sphinx
from mvc.modality.audio import Audio
from mvc.modality.flite import flite_step
from mvc.modality.sphinx import RATE, hear, prepared, resampled, sphinx_step
from mvc.modality.steps import Item, Output, Refused, Result, Step
from mvc.stopping import flag

needs_flite = pytest.mark.skipif(shutil.which("flite") is None, reason="the program flite is not installed")
SENTENCE = "a small brown dog is sitting on the green grass"


def babble(seed: int, seconds: float = 0.9, rate: int = RATE) -> Audio:
    """Vowels of nobody: pulses through resonances that change every 0.15 s."""
    random = np.random.default_rng(seed)
    pieces = []
    for _ in range(int(seconds / 0.15)):
        times = np.arange(int(0.15 * rate)) / rate
        pitch, resonances = random.uniform(90, 180), random.uniform([300, 900, 2500], [800, 2400, 3300])
        tones = [
            np.sin(2 * np.pi * pitch * k * times) * np.exp(-(((pitch * k - resonances) / 120) ** 2)).sum()
            for k in range(1, 40)
        ]
        pieces.append(np.sum(tones, axis=0) * np.hanning(len(times)) * random.uniform(0.1, 1.0))
    sound = np.concatenate(pieces)
    return Audio((0.5 * sound / np.abs(sound).max()).astype(np.float32), rate)


def sine(hertz: float, rate: int, seconds: float = 1.0) -> Audio:
    return Audio((0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate)).astype(np.float32), rate)


def heard(step: Step, *sounds: Item) -> list[Result]:
    return [made for (made,) in step.run(list(sounds), [[0]] * len(sounds))]


def running_on(tmp_path: Path, body: str) -> subprocess.Popen[str]:
    """A program of its own group that has listened once with two processes and then does something."""
    program = tmp_path / "program.py"
    program.write_text(
        "import os, signal, time\n"
        "import numpy as np\n"
        "from mvc.modality.audio import Audio\n"
        "from mvc.modality.sphinx import sphinx_step\n"
        "from mvc.stopping import watching\n"
        "if __name__ == '__main__':\n"
        "    tones = [Audio(np.sin(np.arange(4000) / each).astype(np.float32), 16000) for each in (3, 4, 5, 6)]\n"
        "    step = sphinx_step(2)\n"
        "    def once(): step.run(tones, [[0]] * 4); print('listened', flush=True)\n" + body
    )
    root = Path(__file__).parents[3]
    started = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        start_new_session=True,
    )
    assert started.stdout is not None
    assert started.stdout.readline() == "listened\n"
    return started


def test_what_is_heard_does_not_depend_on_what_was_heard_before() -> None:
    """The same two sounds in either order, by one decoder and by a fresh one."""
    one, other = prepared(babble(7, 1.5)), prepared(babble(3, 1.5))
    first = [hear(one), hear(other)]
    assert [hear(other), hear(one)] == first[::-1]
    sphinx._decoder.cache_clear()
    assert hear(other) == first[1]

    # A decoder that is not told to forget shows that these sounds can tell.
    decoder = package("pocketsphinx", "speech", "the test needs").Decoder(samprate=RATE, loglevel="FATAL")
    for sound in (one, other):
        decoder.start_utt()
        decoder.process_raw(sound, full_utt=True)
        decoder.end_utt()
    assert decoder.hyp().hypstr != first[1]


def test_several_processes_hear_the_same_and_end_with_the_step() -> None:
    sounds = [babble(3, 1.5), sine(440.0, 22050, 0.0), babble(0, 0.6), babble(8, 0.9, 8000), sine(440.0, RATE, 0.3)]
    alone, together = sphinx_step(1), sphinx_step(2)
    before = set(active_children())
    made = heard(together, *sounds)
    workers = set(active_children()) - before
    assert len(workers) == 2
    assert made == heard(alone, *sounds) and any(isinstance(one, Output) for one in made)
    assert alone.identity == together.identity and (alone.batch_size, sphinx_step(8).batch_size) == (16, 32)
    for worker in workers:
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGINT)
    assert heard(together, *sounds[:2]) == made[:2]  # Ctrl-C is the parent's
    del together
    gc.collect()
    # The pool's own thread waits for them too, and join returns without the exit code where that one was first.
    end = time.monotonic() + 60
    while any(worker.exitcode is None for worker in workers) and time.monotonic() < end:
        time.sleep(0.05)
    assert [worker.exitcode for worker in workers] == [0, 0]


def test_a_process_that_dies_is_an_error_and_after_a_signal_a_stop() -> None:
    for number, error, message in (
        (None, EnvironmentFault, "a process that listens died\nwhy: .*memory.*\ndo: .* smaller speech.processes"),
        (signal.SIGTERM, Stopped, "stopped by signal .*what was made before is kept"),
    ):
        before = set(active_children())
        step = sphinx_step(2)
        heard(step, sine(440.0, RATE, 0.3), sine(440.0, RATE, 0.3))
        for worker in set(active_children()) - before:
            worker.kill()
            worker.join()
        flag.signal = number
        try:
            with pytest.raises(error, match=message):
                heard(step, sine(440.0, RATE, 0.3))
        finally:
            flag.signal = None


def test_processes_do_not_outlive_a_killed_parent(tmp_path: Path) -> None:
    """They hold the other end of its output, which therefore ends when the last of them has ended."""
    program = running_on(tmp_path, "    once(); time.sleep(600)\n")
    program.kill()
    began = time.monotonic()
    program.communicate(timeout=60)
    assert time.monotonic() - began < 60


def test_ctrl_c_lets_the_batch_end_and_stops_without_a_trace(tmp_path: Path) -> None:
    program = running_on(
        tmp_path,
        "    with watching() as flag:\n"
        "        once()\n"
        "        while not flag:\n"
        "            once()\n"
        "        print('stopped by', flag.signal, flush=True)\n",
    )
    os.killpg(program.pid, signal.SIGINT)
    told, complaints = program.communicate(timeout=60)
    assert told.splitlines()[-1] == "stopped by 2" and complaints == "" and program.returncode == 0


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 48000])
def test_other_rates_keep_pitch_length_and_loudness(rate: int) -> None:
    samples = resampled(sine(1000.0, rate), RATE)
    assert samples.dtype == np.float32 and abs(len(samples) - RATE) <= 1 and np.abs(samples).max() <= 1.0
    inner = slice(2000, -2000)  # away from the filter's edges
    expected = sine(1000.0, RATE).samples
    assert np.abs(samples[: len(expected)][inner] - expected[: len(samples)][inner]).max() < 0.005
    again = resampled(Audio(samples, RATE), RATE)
    assert np.abs(again - samples).max() <= 1 / 32767  # the same rate: only rounded to 16 bits


@pytest.mark.parametrize("count", [0, 1, 100, 16000])
def test_silence_and_next_to_nothing_are_not_heard(count: int) -> None:
    assert heard(sphinx_step(), Audio(np.zeros(count, np.float32), RATE)) == [Refused("nothing was heard")]
    assert heard(sphinx_step(), Audio(np.zeros(count, np.float32), 22050)) == [Refused("nothing was heard")]


def test_a_click_is_no_error() -> None:
    click = np.zeros(3, np.float32)
    click[1] = 1.0
    assert heard(sphinx_step(), Audio(click, RATE)) == [Refused("nothing was heard")]


@needs_flite
def test_a_spoken_sentence_is_understood_at_any_rate() -> None:
    spoken = heard(flite_step("rms", 1000), SENTENCE)[0]
    assert isinstance(spoken, Output) and spoken.value.rate == RATE
    faster = Audio(resampled(spoken.value, 44100), 44100)
    assert heard(sphinx_step(), spoken.value, faster) == [Output(SENTENCE), Output(SENTENCE)]


def test_a_missing_package_is_named_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pocketsphinx", None)
    for step in (sphinx_step(), sphinx_step(2)):
        with pytest.raises(
            EnvironmentFault, match=r"needs the package pocketsphinx\n.*\ndo: pip install 'mvc\[speech\]'"
        ):
            heard(step, sine(440.0, RATE))
