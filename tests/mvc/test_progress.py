"""Progress without a terminal: a plain line now and then, and one at the end."""

from __future__ import annotations

import io
from types import SimpleNamespace

import pytest

from mvc import progress
from mvc.progress import Meter


def test_plain_lines_show_count_rate_and_note(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    stream = io.StringIO()
    meter = Meter("training", total=40, unit="steps", done=4, stream=stream)
    for second, steps in ((1.0, 2), (4.0, 2)):  # too early for a line
        clock.now = second
        meter.advance(steps)
    clock.now = 16.0
    meter.advance(4, note="loss 0.5")
    # 8 steps in 16 s, the 4 from before not counted; 28 are left.
    assert stream.getvalue() == "training: 12/40 steps, 0.5/s, 56 s left, loss 0.5\n"
    clock.now = 20.0
    meter.close()
    assert stream.getvalue().endswith("training: 12/40 steps in 20.0 s\n")
