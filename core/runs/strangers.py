"""Who was turned away, told in a line each; of a flood of them, how many there were."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from splitlab.core.session.protocol import line

__all__ = ["Strangers"]

_AT_ONCE: Final = 20
"""Lines that may follow each other at once."""
_SECONDS: Final = 5.0
"""Seconds after which there may be one more."""


class Strangers:
    """Counts who was turned away, and says so.

    Args:
        say: is told in lines.

    Attributes:
        count: of all.
        last: who came last, and why it was turned away; in one line, safe to print.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self.count = 0
        self.last = ""
        self._say = say
        self._untold = 0
        self._lines = float(_AT_ONCE)
        self._told = time.monotonic()

    def add(self, who: str) -> None:
        """Take note of one more: who it is, and why it was turned away."""
        self.count += 1
        self.last = line(who)
        now = time.monotonic()
        self._lines = min(_AT_ONCE, self._lines + (now - self._told) / _SECONDS)
        self._told = now
        if self._lines < 1:
            self._untold += 1
            return
        self._lines -= 1
        others = f" (and {self._untold:,} others before)" if self._untold else ""
        self._untold = 0
        self._say(f"turned away {self.last}{others}")

    def close(self) -> None:
        """Say how many were left out."""
        if self._untold:
            self._say(f"turned away {self._untold:,} more, the last of them {self.last}")
            self._untold = 0
