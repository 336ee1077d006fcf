"""Several at once may come to a port: handshakes that wait for each other in one thread.

A handshake is a generator (`Steps`) that yields what it waits for, as flags of `select.poll`, or
`FURTHER` when the other end has shown something, and returns what came of it. Its connection does
not block.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from splitlab.core.contract.errors import NetworkError
from splitlab.transports.proof import Exchange
from splitlab.transports.trust import tls_trouble

__all__ = ["FURTHER", "MOST_AT_ONCE", "Reception", "Steps", "complete", "held", "ready", "trouble"]

T = TypeVar("T")

Steps = Generator[int, None, T]

FURTHER: Final = -1
"""The other end has shown what not everybody can: TLS is done, or it knows the secret."""

MOST_AT_ONCE: Final = 64
"""Connections whose handshake is under way; the next one takes the place of the oldest."""
_FAIR_SECONDS = 0.25
"""Nobody gives way sooner: who has something to say begins at once."""
_ROOM_SECONDS = 0.05
"""When to look again if this process may have no more connections, and none of these is to end."""


def ready(call: Callable[..., T], *arguments: Any, wants: int) -> Steps[T]:
    """Return what the call returns when it no longer would have to wait.

    Args:
        call: of a connection that does not block.
        arguments: of the call.
        wants: what a wait is for, on a plain socket; TLS says itself.
    """
    while True:
        try:
            return call(*arguments)
        except BlockingIOError:
            yield wants
        except ssl.SSLWantReadError:
            yield select.POLLIN
        except ssl.SSLWantWriteError:
            yield select.POLLOUT


def held(connection: socket.socket, exchange: Exchange) -> Steps[None]:
    """Hold an exchange on a connection."""
    answer: bytes | None = None
    while True:
        try:
            want = exchange.send(answer)
        except StopIteration:
            return
        if isinstance(want, bytes):
            while want:
                sent = yield from ready(connection.send, want, wants=select.POLLOUT)
                want = want[sent:]
            answer = None
            continue
        answer = b""
        while len(answer) < want:
            more = yield from ready(connection.recv, want - len(answer), wants=select.POLLIN)
            if not more:
                raise ConnectionResetError
            answer += more


def complete(descriptor: int, steps: Steps[T], seconds: float) -> T:
    """Return what comes of a handshake, waiting for it; `TimeoutError` after so many seconds."""
    deadline = time.monotonic() + seconds
    waiting = select.poll()
    while True:
        try:
            wants = next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        waiting.register(descriptor, wants)
        left = deadline - time.monotonic()
        if left <= 0 or not waiting.poll(left * 1000):
            raise TimeoutError


@dataclass
class _Coming(Generic[T]):
    """Somebody whose handshake is under way.

    Attributes:
        come: how far it has come: 0 until it says something, then 1, and 1 more each `FURTHER`.
    """

    descriptor: int
    remote: str
    steps: Steps[T]
    since: float
    until: float
    wants: int = 0
    come: int = 0


class Reception(Generic[T]):
    """Who comes to a listening socket, several at once, until one of them is through.

    Args:
        bound: the socket; it is the caller's to close.
        name: makes the name of who has such an address, as `socket.socket.accept` returns it.
        greet: makes the handshake of a connection with this name, and closes it if that fails.

    Attributes:
        closed: whether it is.
    """

    def __init__(
        self,
        bound: socket.socket,
        name: Callable[[Any], str],
        greet: Callable[[socket.socket, str], Steps[T]],
    ) -> None:
        bound.setblocking(False)
        self._bound = bound
        self._name = name
        self._greet = greet
        self.closed = False
        self._coming: list[_Coming[T]] = []
        self._left = 0.0
        self._inside = threading.Lock()  # of whoever is in `first`
        self._woken, self._waking = os.pipe()

    def first(self, timeout: float, opening: float, away: Callable[[str], None]) -> T:
        """Return what comes of the first handshake that is done; the next call goes on with others.

        Args:
            timeout: seconds to wait.
            opening: seconds that one handshake may take as a whole.
            away: is told in a line of everybody whose handshake failed.

        Raises:
            TimeoutError: nobody's was done.
            OSError: the socket is closed, or this.
        """
        with self._inside:
            return self._first(timeout, opening, away)

    def _first(self, timeout: float, opening: float, away: Callable[[str], None]) -> T:
        now = time.monotonic()
        deadline = now + timeout
        for one in self._coming:  # nobody has looked after them meanwhile
            one.since += now - self._left
            one.until += now - self._left
        try:
            while True:
                found = self._wait(deadline)
                if self.closed:
                    raise OSError(errno.EBADF, os.strerror(errno.EBADF))
                for one in [each for each in self._coming if each.descriptor in found]:
                    one.come = max(one.come, 1)
                    if (done := self._go_on(one, away)) is not None:
                        return done
                for one in [each for each in self._coming if each.until <= time.monotonic()]:
                    self._drop(one, away, f"its handshake was not done in {opening:g} s")
                new = self._take(opening, away) if self._bound.fileno() in found else None
                if new is not None and (done := self._go_on(new, away)) is not None:
                    return done
                if time.monotonic() >= deadline:
                    raise TimeoutError
        finally:
            self._left = time.monotonic()

    def close(self) -> None:
        """Close all connections whose handshake is under way; from any thread, and twice."""
        if not self.closed:
            self.closed = True
            os.write(self._waking, b"\0")
            with self._inside:
                for one in self._coming:
                    one.steps.close()
                self._coming.clear()
                os.close(self._woken)
                os.close(self._waking)

    def _wait(self, deadline: float) -> set[int]:
        """Return whose connection, or the socket itself, is ready; none when something is due."""
        if self.closed:
            return set()
        polled = select.poll()
        polled.register(self._woken, select.POLLIN)
        ends = [deadline, *(one.until for one in self._coming)]
        for one in self._coming:
            polled.register(one.descriptor, one.wants)
        now, fair = time.monotonic(), self._next().since + _FAIR_SECONDS if self._full() else 0.0
        if fair <= now:
            polled.register(self._bound, select.POLLIN)  # OSError if it is closed
        else:
            ends.append(fair)
        return {found for found, _ in polled.poll(max(0.0, min(ends) - now) * 1000)}

    def _full(self) -> bool:
        return len(self._coming) >= MOST_AT_ONCE

    def _next(self) -> _Coming[T]:
        """Return who gives way next: the oldest of those who have come least far."""
        return min(self._coming, key=lambda one: (one.come, one.since))

    def _take(self, opening: float, away: Callable[[str], None]) -> _Coming[T] | None:
        """Let the next one in who waits at the socket; None if it is gone."""
        if self._full():
            self._drop(self._next(), away, "it gave way to others who came")
        try:
            connection, where = self._bound.accept()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                if self._coming:
                    self._drop(self._next(), away, "this process has no room for more connections")
                else:
                    time.sleep(_ROOM_SECONDS)  # who waits at the socket makes it ready all the time
            elif error.errno in (errno.EBADF, errno.EINVAL):
                raise
            return None
        connection.setblocking(False)
        remote, now = self._name(where), time.monotonic()
        steps = self._greet(connection, remote)
        one = _Coming(connection.fileno(), remote, steps, now, now + opening)
        heard = select.poll()
        heard.register(connection, select.POLLIN)
        one.come = len(heard.poll(0))
        self._coming.append(one)
        return one

    def _go_on(self, one: _Coming[T], away: Callable[[str], None]) -> T | None:
        """Take a handshake as far as it goes; returns what came of it when it is done."""
        try:
            while (wants := next(one.steps)) == FURTHER:
                one.come = max(one.come, 1) + 1
            one.wants = wants
            return None
        except StopIteration as end:
            self._coming.remove(one)
            result: T = end.value
            return result
        except (NetworkError, OSError) as error:
            self._coming.remove(one)
            away(f"{one.remote}: {trouble(error, client=False)}")
            return None

    def _drop(self, one: _Coming[T], away: Callable[[str], None], why: str) -> None:
        self._coming.remove(one)
        one.steps.close()
        away(f"{one.remote}: {why}")


def trouble(error: NetworkError | OSError, client: bool | None) -> str:
    """Say why a connection failed, as the rest of a line about the other end; see `tls_trouble`."""
    if isinstance(error, NetworkError):
        return str(error)
    if isinstance(error, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ConnectionError)):
        return "the other end closed the connection"
    if isinstance(error, ssl.SSLError):
        return tls_trouble(error, client)
    return error.strerror or str(error)
