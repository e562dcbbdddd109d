"""SIGTERM and Ctrl-C in each phase of a training: exit code 143, and going on equals never having stopped."""

from __future__ import annotations

import signal

import pytest

from tests.train.crash import TRAINED_ON, Point
from tests.train.drill import Ground, newest, require_equal

PHASES = {
    "embedding": Point("mvc.embeddings._forward"),
    "encoding images": Point("mvc.latents.encode_image", number=3),
    "drawing before the start": Point("mvc.train.samples.denoise"),
    "training": Point(TRAINED_ON, number=2),
    "validating": Point("mvc.train.validation.sample_losses", number=6),
    "drawing": Point("mvc.train.samples.denoise", number=2),
    "saving": Point("mvc.train.checkpoints.save_file", number=2),
}
"""Moments in a phase; the batches of one step are calls 2n - 1 and 2n of the validation."""


def at(phase: str, *signals: signal.Signals) -> Point:
    point = PHASES[phase]
    return Point(point.function, point.file, point.when, point.number, signals)


def test_one_training_stops_in_every_phase(ground: Ground) -> None:
    drill = ground.drill()
    for number, phase in enumerate(("embedding", "drawing before the start", "validating")):
        code = drill.train(at(phase, (signal.SIGTERM, signal.SIGINT)[number % 2]))
        assert code == 143, f"{phase}\n{drill.said}"
        assert "error: stopped by" in drill.said and "do: run the same command again to go on" in drill.said
    assert drill.train() == 0, drill.said
    require_equal(drill, ground.whole())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("phase", PHASES)
def test_every_phase_by_itself(ground: Ground, phase: str, number: signal.Signals) -> None:
    drill = ground.drill()
    assert drill.train(at(phase, number)) == 143, drill.said
    assert drill.said.count("error: stopped by") == 1
    assert drill.train() == 0, drill.said
    require_equal(drill, ground.whole())


@pytest.mark.slow
@pytest.mark.parametrize("point", [Point("mvc.models.save_model"), Point("os.replace", "*/model", "after")])
def test_what_is_all_but_done_is_finished(ground: Ground, point: Point) -> None:
    drill = ground.drill()
    drill.train(Point(point.function, point.file, point.when, 1, [signal.SIGTERM]))
    require_equal(drill, ground.whole())


def test_a_second_signal_ends_at_once(ground: Ground) -> None:
    drill, signals = ground.drill(), (signal.SIGTERM, signal.SIGINT)
    # In the fourth step, which is neither finished nor saved.
    assert drill.train(Point(TRAINED_ON, number=4, signals=signals)) == 143, drill.said
    assert "error: interrupted" in drill.said
    assert "Traceback" not in drill.said and "the checkpoint of step" not in drill.said
    assert newest(drill.run).name == "step-000002"
    assert drill.train() == 0, drill.said
    require_equal(drill, ground.whole())
