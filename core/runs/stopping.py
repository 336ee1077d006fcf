"""A server that is to stop asks its client to, which then ends the run after its step.

The server only answers, so the wish travels with the gradient that ends a step: ``do: stop`` in its
metadata, which neither session nor engine sees.
"""

from __future__ import annotations

from collections.abc import Callable

from splitlab.core.contract.link import Link, WrappedLink
from splitlab.core.contract.message import Kind, Message

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

    def send(self, message: Message, timeout: float) -> int:
        """Send the message, with the wish if it ends a step."""
        if message.kind is Kind.GRADIENT and message.training and self._should_stop():
            message.meta[_DO] = _STOP
        return self.inside.send(message, timeout)


class Heeding(WrappedLink):
    """The client's end of a link.

    Attributes:
        asked: whether the server has asked to stop.
    """

    def __init__(self, inside: Link) -> None:
        super().__init__(inside)
        self.asked = False

    def receive(self, timeout: float) -> Message:
        """Return the next message without the wish."""
        message = self.inside.receive(timeout)
        if message.kind is Kind.GRADIENT and message.meta.get(_DO) == _STOP:
            del message.meta[_DO]
            self.asked = True
        return message
