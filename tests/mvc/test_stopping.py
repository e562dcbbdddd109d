"""Signals ask; loops answer with a clean exit."""

from __future__ import annotations

import os
import signal

import pytest

from mvc.errors import Stopped
from mvc.stopping import flag, watching


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_sets_the_flag_and_the_check_leaves_with_143(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with watching():
        flag.check("all is well")
        os.kill(os.getpid(), number)
        with pytest.raises(Stopped, match="checkpoint of step 12 is safe") as caught:
            flag.check("checkpoint of step 12 is safe")
        assert caught.value.exit_code == 143
    assert not flag
    assert signal.getsignal(number) is before


def test_the_second_signal_leaves_at_once() -> None:
    with watching(), pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
