"""Signals: the first asks a run to stop, the second insists; before a run, the first does."""

from __future__ import annotations

import os
import signal

import pytest

from splitlab.core.command.stop import StopAsked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_once_and_then_insists(number: int, unlistened: None) -> None:
    stop = StopAsked()
    assert not stop()
    os.kill(os.getpid(), number)
    assert stop()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_step_a_signal_ends_at_once(number: int, unlistened: None) -> None:
    StopAsked()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)
