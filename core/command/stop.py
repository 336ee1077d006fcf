"""How Ctrl-C and SIGTERM end a command that trains."""

from __future__ import annotations

import signal

__all__ = ["StopAsked"]


class StopAsked:
    """Ctrl-C or SIGTERM asks a run to stop after its step; before a run, or twice, at once."""

    def __init__(self) -> None:
        self._running = False
        self._asked = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._ask)

    def _ask(self, number: int, frame: object) -> None:
        if self._asked or not self._running:
            raise KeyboardInterrupt
        self._asked = True

    def __call__(self) -> bool:
        """Whether to stop now; the run asks before its first step and after every one."""
        self._running = True
        return self._asked
