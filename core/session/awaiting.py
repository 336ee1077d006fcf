"""The server's end of a session that outlives its connections: it waits for the next one."""

from __future__ import annotations

import dataclasses
import math
import time
from contextlib import suppress
from typing import Any, Final, Protocol

from splitlab.core.contract.errors import DamagedError, LinkError, NetworkError
from splitlab.core.contract.link import SeverableLink
from splitlab.core.contract.message import Kind, Message
from splitlab.core.session.lasting import BROKEN, Lasting
from splitlab.core.session.protocol import PROTOCOL, number_of, seconds_of

__all__ = ["Awaiting", "Returned", "Returns", "Superseded", "returns_to"]

_A_LOOK: Final = 0.2
"""Seconds after which it looks whether there still is anybody to wait for."""
_A_MOMENT: Final = 2.0


class Superseded(NetworkError):
    """The client is not coming back: it began the same run anew.

    Attributes:
        link: to it; its HELLO is the next message.
    """

    def __init__(self, link: SeverableLink) -> None:
        super().__init__(f"{link.remote}: the client began its run anew")
        self.link = link


@dataclasses.dataclass(frozen=True)
class Returned:
    """A connection on which the client goes on with its session.

    Attributes:
        link: over it.
        heard: how many messages of the server the client has heard; none, if it says its first
            HELLO again, which is answered as that was.
    """

    link: SeverableLink
    heard: int


class Returns(Protocol):
    """Where clients come back to."""

    def wait(self, seconds: float) -> Returned | None:
        """Return the client's next connection, or None; `Superseded` if it began anew."""
        ...

    def back(self) -> Returned | None:
        """Return the client's next connection if it is there."""
        ...


class Awaiting(Lasting):
    """The server's end (a `SeverableLink`), which waits for the client's new connection.

    A client that counts nothing, whose HELLO has no number, is none to wait for.

    Args:
        inside: the link over the first connection.
        returns: where the client comes back to.
        options: as of `Lasting`.

    Attributes:
        away: whether its client is, so that the same run may begin anew.
    """

    _speaks, _hears = "down", "up"

    inside: SeverableLink

    def __init__(self, inside: SeverableLink, returns: Returns, **options: Any) -> None:
        super().__init__(inside, **options)
        self._returns = returns
        self._counts = False
        self._established = False
        self.away = False

    def sever(self) -> None:
        """End the connection at once, from any thread: the client has another one."""
        self.inside.sever()

    def keep(self) -> None:
        """From now on, wait for the client if its connection is lost: its HELLO was answered."""
        self._established = True
        self._beating = self._counts

    def _numbers(self, message: Message) -> bool:
        if not self._heard and message.kind is Kind.HELLO:
            self._counts = message.number == 1
        return self._counts

    def _note(self, message: Message) -> None:
        if message.kind is Kind.HELLO:
            self.session = str(message.meta.get("session", ""))
            self._timeout = min(self._timeout, seconds_of(message, "timeout", math.inf))

    def _mend(self, error: LinkError) -> None:
        if not (self._established and self._counts):
            raise error
        until, began = self._lost(error), time.monotonic()
        self._say(f"lost the connection ({error}); its client has {self.patience:g} s to return")
        self.away = True
        try:
            while (left := until - time.monotonic()) > 0:
                if self._take_next(min(left, _A_LOOK)):
                    self._say(f"the client is back after {time.monotonic() - began:.2g} s")
                    return
                stopping = time.monotonic() - began > _A_MOMENT and self._stopping()
                if stopping or self._hopeless():
                    raise error
        finally:
            self.away = False
        raise NetworkError(f"{error}; its client did not return in {self.patience:g} s") from error

    def _mend_meanwhile(self) -> None:
        if self._established and not self._closed:
            self._take_next(0.0)

    def _take_next(self, seconds: float) -> bool:
        """Take the client's next connection, and the one that it made meanwhile."""
        came, taken = self._returns.wait(seconds) if seconds else self._returns.back(), False
        while came is not None:
            with suppress(*BROKEN):
                self._take(came)
                taken = True
            came = self._returns.back()
            if came is not None:
                self.inside.close()
                taken = False
        return taken

    def _take(self, came: Returned) -> None:
        """Go on over the connection of a client that is back."""

        def greet() -> int:
            if not self._can_have_heard(came.heard):
                raise DamagedError(f"{came.link.remote} says that it heard {came.heard} messages")
            if came.heard:
                answer = {"protocol": PROTOCOL, "heard": self._heard}
                came.link.send(Message(Kind.HELLO, meta=answer), self._timeout)
            return came.heard

        self._go_over(came.link, greet)


def returns_to(message: Message) -> str | None:
    """Return which session the HELLO of a new connection goes on with; None if with none."""
    if message.kind is not Kind.HELLO or "heard" not in message.meta:
        return None
    session = message.meta.get("session")
    whole = number_of(message, "heard") is not None and number_of(message, "attempt") is not None
    return session if whole and isinstance(session, str) else ""
