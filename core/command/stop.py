"""How Ctrl-C, SIGTERM and a terminal that closes (SIGHUP) end a command that trains or serves."""

from __future__ import annotations

import contextlib
import os
import signal

__all__ = ["StopAsked"]


class StopAsked:
    """A signal asks a run to stop after its step; before a run, or the second one, at once.

    A SIGHUP that is ignored already, as under ``nohup``, stays so.
    """

    def __init__(self) -> None:
        self._running = False
        self._asked = False
        self._terminals = [number for number in (1, 2) if os.isatty(number)]
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._hang_up)

    def _ask(self, number: int, frame: object) -> None:
        if self._asked or not self._running:
            raise KeyboardInterrupt
        self._asked = True

    def _hang_up(self, number: int, frame: object) -> None:
        """Print no more on a terminal that is gone, which would end the run in its middle."""
        with contextlib.suppress(OSError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for terminal in self._terminals:
                os.dup2(nowhere, terminal)
            os.close(nowhere)
        self._ask(number, frame)

    def __call__(self) -> bool:
        """Whether to stop now; the run asks before its first step and after every one."""
        self._running = True
        return self._asked
