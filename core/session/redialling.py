"""The client's end of a session that outlives its connections: it makes the next one."""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable
from typing import Any, Final

from splitlab.core.contract.errors import (
    DamagedError,
    LinkError,
    NetworkError,
    ProtocolError,
    RefusedError,
)
from splitlab.core.contract.link import Link
from splitlab.core.contract.message import Kind, Message
from splitlab.core.session.lasting import BROKEN, Lasting
from splitlab.core.session.protocol import PROTOCOL, ended, number_of, seconds_of

__all__ = ["Redialling"]

_STRANGE: Final = 3
"""Answers that may be damaged, until they are taken for what they are."""
_FIRST_PATIENCE: Final = 5.0
"""Seconds, at least, to get an answer to a first HELLO."""
_FIRST_PAUSE, _LONGEST_PAUSE = 0.025, 5.0
_FIRST_TRY, _LONGEST_TRY = 0.25, 10.0

_chance = random.SystemRandom()


class Redialling(Lasting):
    """The client's end, which makes the new connection.

    Args:
        inside: the link over the first connection.
        dial: connects anew, within so many seconds.
        options: `hopeless`, `stopping` and `say` of `Lasting`.
        timeout, patience: as there.
    """

    _speaks, _hears = "up", "down"

    def __init__(
        self,
        inside: Link,
        dial: Callable[[float], Link],
        *,
        timeout: float,
        patience: float,
        **options: Any,
    ) -> None:
        # Whoever does not answer a first HELLO may be no server at all.
        first = min(patience, max(timeout, _FIRST_PATIENCE))
        super().__init__(inside, timeout=timeout, patience=first, **options)
        self._whole = patience
        self._dial = dial
        self._attempt = 0

    def send(self, message: Message, timeout: float) -> int:
        """Send the message; see `Lasting`."""
        if message.kind is Kind.HELLO:
            self.session = str(message.meta.get("session", ""))
        return super().send(message, timeout)

    def _note(self, message: Message) -> None:
        if message.kind is Kind.HELLO:
            self._beating = True
            self.patience = min(self._whole, seconds_of(message, "waits", math.inf))
            self._timeout = min(self._timeout, seconds_of(message, "timeout", math.inf))

    def _mend(self, error: LinkError) -> None:
        until, began, last = self._lost(error), time.monotonic(), error
        if not self._hopeless():
            self._say(f"lost the connection ({error}); trying again for {self.patience:g} s")
        for tries in itertools.count():
            if self._tries:
                pause = self._grown(_FIRST_PAUSE, _LONGEST_PAUSE) * _chance.uniform(0.5, 1.0)
                time.sleep(max(0.0, min(pause, until - time.monotonic())))
            left = until - time.monotonic()
            given_up = self._hopeless() or (tries and self._stopping())
            if given_up or self._is_final(last):
                raise last
            if left <= 0:
                raise NetworkError(
                    f"{error}; there was no other connection in {self.patience:g} s: {last}"
                ) from error
            self._tries += 1
            try:
                self._again(min(left, self._grown(_FIRST_TRY, _LONGEST_TRY)))
                break
            except BROKEN as found:
                last = found
        if self._heard:
            self._say(f"connected again after {time.monotonic() - began:.2g} s")

    def _expect_whole(self, message: Message) -> None:
        if self.session and message.meta.get("damaged") is True:
            raise ended(message, "the server", ProtocolError)

    def _is_final(self, error: LinkError) -> bool:
        """Return whether who was called lets nobody in, or is no server of ours."""
        often = self._tries >= _STRANGE
        if isinstance(error, RefusedError):
            return often
        strange = isinstance(error, DamagedError) and often
        return not self._heard and (strange or self._silent > 1)

    def _grown(self, first: float, longest: float) -> float:
        """Return what doubles with every connection that was tried."""
        return min(first * 2.0 ** min(self._tries, 30), longest)

    def _again(self, timeout: float) -> None:
        """Go on over another connection."""
        link = self._dial(timeout)
        # A first HELLO is said again as it is.
        self._go_over(link, lambda: self._go_on(link, timeout) if self._heard else 0)

    def _go_on(self, link: Link, timeout: float) -> int:
        """Ask to go on with the session; returns how much the server has heard."""
        self._attempt += 1
        said = {"session": self.session, "heard": self._heard, "attempt": self._attempt}
        asked = Message(Kind.HELLO, meta={"protocol": PROTOCOL, **said})
        link.send(asked, timeout)
        self.ledger.add(asked, "up")
        answer = link.receive(timeout)
        self.ledger.add(answer, "down")
        if answer.kind is Kind.ERROR:
            raise ended(answer, "the server", ProtocolError)
        heard = number_of(answer, "heard")
        if answer.kind is not Kind.HELLO or heard is None or not self._can_have_heard(heard):
            raise ProtocolError(f"{link.remote} answered a HELLO with {answer.meta!r:.200}")
        return heard
