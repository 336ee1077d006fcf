"""A server that is to stop asks its client to, which then ends the run after its step.

The server only answers, so the wish travels before the gradient that ends a step, in a frame of its
own (CONTROL, ``do: stop``), which neither session nor engine sees. It is no part of the step, whose
bytes are those of a run that nobody stops.
"""

from __future__ import annotations

from collections.abc import Callable

from splitlab.core.contract.link import Link, WrappedLink
from splitlab.core.contract.message import Kind, Message
from splitlab.core.wire.ledger import Ledger

__all__ = ["Asking", "Heeding"]

_DO, _STOP = "do", "stop"


class Asking(WrappedLink):
    """The server's end of a link: asks the client to stop when the server is to.

    Args:
        inside: the link.
        should_stop: whether the server is to stop.
    """

    def __init__(self, inside: Link, should_stop: Callable[[], bool]) -> None:
        super().__init__(inside)
        self._should_stop = should_stop
        self._asked = False

    def send(self, message: Message, timeout: float) -> int:
        """Send the message, and once before one that ends a step the wish."""
        if message.kind is Kind.GRADIENT and message.training and not self._asked:
            self._asked = self._should_stop()
            if self._asked:
                self.inside.send(Message(Kind.CONTROL, message.step, meta={_DO: _STOP}), timeout)
        return self.inside.send(message, timeout)


class Heeding(WrappedLink):
    """The client's end of a link.

    Args:
        inside: the link.
        ledger: counts the frame in which the server asks to stop.

    Attributes:
        asked: whether it has.
    """

    def __init__(self, inside: Link, ledger: Ledger) -> None:
        super().__init__(inside)
        self.asked = False
        self._ledger = ledger

    def receive(self, timeout: float) -> Message:
        """Return the next message that is no wish."""
        message = self.inside.receive(timeout)
        if message.kind is Kind.CONTROL and message.meta.get(_DO) == _STOP and not self.asked:
            self._ledger.add(message, "down")
            self.asked = True
            message = self.inside.receive(timeout)
        return message
