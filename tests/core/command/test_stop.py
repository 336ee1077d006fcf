"""Signals: the first asks a run to stop, the second insists; before a run, the first does."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import run
from splitlab.core.command.stop import StopAsked
from splitlab.core.contract.errors import Interrupted
from splitlab.core.runs.reporter import Progress, Reporter
from splitlab.core.wire.ledger import Ledger

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_asks_once_and_then_insists(number: int, unlistened: None) -> None:
    stop = StopAsked()
    assert not stop()
    os.kill(os.getpid(), number)
    assert stop()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_before_the_first_step_a_signal_ends_at_once(number: int, unlistened: None) -> None:
    StopAsked()
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), number)


def test_from_the_first_step_on_a_signal_waits_for_the_end_of_a_step(
    small_data: str, tmp_path: Path, unlistened: None
) -> None:
    class Terminates(Reporter):
        def step(self, progress: Progress, ledger: Ledger, loss: float) -> None:
            os.kill(os.getpid(), signal.SIGTERM)  # the step is recorded, nothing is saved yet

    options: dict[str, Any] = {"data_dir": small_data, "budget": "steps=9", "batch_size": 8}
    with pytest.raises(Interrupted, match=r"after step 1; .* --resume"):
        run(
            output=str(tmp_path / "r"),
            reporter=Terminates(),
            should_stop=StopAsked(),
            device="cpu",
            threads=1,
            **options,
        )
    assert (tmp_path / "r" / "checkpoints" / "step-00000001" / "client.safetensors").is_file()


def test_a_hang_up_that_is_ignored_stays_so(unlistened: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    stop = StopAsked()
    assert not stop()
    os.kill(os.getpid(), signal.SIGHUP)
    assert not stop()


AT_A_TERMINAL = """
import os, signal, sys
from splitlab.core.command.stop import StopAsked

stop = StopAsked()
stop()
print("ready", flush=True)
while not stop():
    signal.pause()
print("nobody reads this", flush=True)
open(sys.argv[1], "w").write("in good order")
"""


def test_a_terminal_that_closes_does_not_end_a_run_in_its_middle(tmp_path: Path) -> None:
    ours, theirs = os.openpty()

    def lead() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # also where nohup runs the tests
        os.setsid()
        fcntl.ioctl(1, termios.TIOCSCTTY, 0)

    done = tmp_path / "done"
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", AT_A_TERMINAL, str(done)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        preexec_fn=lead,
    )
    os.close(theirs)
    with process:
        assert b"ready" in os.read(ours, 100)
        os.close(ours)
        assert process.wait(30) == 0
    assert done.read_text() == "in good order"
