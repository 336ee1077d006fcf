"""A link that outlives its connection: what a fault has lost is said again, and once.

Both ends number what they say in a session, from 1, and keep it until the other end speaks again,
which it does when it has heard all of it. A connection that is lost, silent for too long, or brings
what is no frame, or not the next number, is given up: the client makes another one, on which both
say how much they have heard, and what is missing is said again. Sessions and engines notice
nothing.

    client                                   server
    HELLO  session, heard, attempt        ─►  on a new connection
                                          ◄─  HELLO  heard
    what was not heard, if anything       ─►
                                          ◄─  and the same

A HELLO that opens a session is said again as it is: until it is answered there is nothing to keep.
An end that computes for long gives a sign of life now and then (CONTROL, ``do: beat``), which has
no number, so that a long step is not taken for a dead peer.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final

from splitlab.core.contract.errors import DamagedError, LinkError, NetworkError, ProtocolError
from splitlab.core.contract.link import Limits, Link, WrappedLink
from splitlab.core.contract.message import Kind, Message
from splitlab.core.session.protocol import BYE, HELLO_BYTES, LEAST_SECONDS
from splitlab.core.wire.ledger import Direction, Ledger

__all__ = ["BROKEN", "Lasting"]

BROKEN: Final = (NetworkError, DamagedError)
"""What another connection may mend."""
_BEATS: Final = 4
"""Signs of life in the time after which an end counts as gone."""
_LONGEST: Final = 10
"""How many of these times an end may compute for one message, whatever signs of life it gives; what
its connection is lost for comes on top, as far as this end is patient."""
_BEAT = "beat"
_BEAT_SECONDS = 5.0


class Lasting(WrappedLink, ABC):
    """One end of a session that outlives its connections; innermost of what is around a link.

    Args:
        inside: the link over the first connection.
        timeout: seconds of silence after which the other end counts as gone.
        patience: as the attribute.
        hopeless: whether the other end cannot come back.
        stopping: whether this end is to stop, and to give another connection no more than a moment.
        say: is told in a line of a connection that is lost, and of the next one.

    Attributes:
        patience: seconds that a session may be without connection, or without getting further.
        ledger: counts signs of life and what is said or heard again.
        session: its name, which only its two ends know; empty before the handshake, and if the
            other end keeps nothing that could be said again.
    """

    _speaks: Direction
    _hears: Direction

    def __init__(
        self,
        inside: Link,
        *,
        timeout: float,
        patience: float,
        hopeless: Callable[[], bool] = lambda: False,
        stopping: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(inside)
        self.ledger = Ledger()
        self.session = ""
        self._timeout = timeout
        self.patience = patience
        self._hopeless = hopeless
        self._stopping = stopping
        self._say = say
        self._limits = inside.limits
        self._said = self._heard = 0
        self._left = 0  # number of the last message that left whole
        self._kept: list[Message] = []
        self._since: float | None = None  # when it broke, if it got no further
        self._silent = 0  # how often in a row nothing came for too long
        self._tries = 0  # connections that were tried since it got further
        self._beats: list[Message] = []  # that are to be counted
        self._beating = False  # whether the other end wants signs of life
        self._calls = threading.Lock()
        self._heartbeat: _Heartbeat | None = None
        self._closed = False

    @property
    def heard(self) -> int:
        """How many messages of the other end were heard."""
        return self._heard

    @property
    def limits(self) -> Limits:
        """What an incoming frame may declare, on this connection and those to come."""
        return self._limits

    @limits.setter
    def limits(self, limits: Limits) -> None:
        self._limits = self.inside.limits = limits

    def send(self, message: Message, timeout: float) -> int:
        """Send the message, and keep it until the other end speaks."""
        with self._calls:
            if message.kind is Kind.ERROR or not self._numbers(message):
                return self.inside.send(message, timeout)
            self._said += 1
            message.number = self._said
            self._kept.append(message)
            try:
                self.inside.send(message, timeout)
                self._left = self._said
            except BROKEN as error:
                if _is(message, BYE):
                    raise
                self._mend(error)
            return message.frame_bytes

    def receive(self, timeout: float) -> Message:
        """Return the next message of the conversation, over as many connections as it takes."""
        with self._calls:
            began = heard = time.monotonic()
            longest = _LONGEST * timeout + self.patience
            while True:
                try:
                    message = self.inside.receive(timeout)
                    if message.kind is Kind.ERROR or not self._numbers(message):
                        self._expect_whole(message)
                        return message
                    if self._is_next(message):
                        break
                except BROKEN as error:
                    self._silent += time.monotonic() - heard >= timeout
                    self._mend(error)
                heard = time.monotonic()
                if heard - began > longest:
                    raise ProtocolError(
                        f"{self.remote}: the other end has said nothing new for {longest:g} s, but "
                        "that it lives; if it computes for so long, give a larger --timeout"
                    )
            self._heard += 1
            self._kept.clear()
            self._since, self._silent, self._tries = None, 0, 0
            self._note(message)
            for beat in self._beats:
                self.ledger.add(beat, self._speaks)
            self._beats.clear()
        if self._heartbeat is None and self._beating:
            self._heartbeat = _Heartbeat(self._beat, max(self._timeout, LEAST_SECONDS) / _BEATS)
        return message

    def close(self) -> None:
        """Release everything."""
        self._closed = True
        if self._heartbeat is not None:
            self._heartbeat.end()
        super().close()

    def _is_next(self, message: Message) -> bool:
        """Return whether this is the next message, and none that was heard before."""
        if _is(message, _BEAT):
            self.ledger.add(message, self._hears)
            self._since, self._silent = None, 0  # this connection is a good one
            return False
        if message.number > self._heard + 1:
            raise DamagedError(
                f"{self.remote}: message {message.number} came, and {self._heard + 1} is missing"
            )
        if message.number <= self._heard:
            self.ledger.again(message, self._hears)
            return False
        return True

    def _numbers(self, message: Message) -> bool:
        """Return whether messages have numbers here."""
        return True

    def _expect_whole(self, message: Message) -> None:
        """Raise `DamagedError` if the other end says that it heard something damaged."""

    def _note(self, message: Message) -> None:
        """Take from the handshake how patient the other end is."""

    @abstractmethod
    def _mend(self, error: LinkError) -> None:
        """Go on over another connection, or raise this error, or why there is none."""

    def _mend_meanwhile(self) -> None:
        """Go on over another connection while this end computes, if there is one."""

    def _go_over(self, link: Link, greet: Callable[[], int]) -> None:
        """Go on over this link, which is closed if that fails.

        Args:
            link: to the other end, over another connection.
            greet: says on it how much this end has heard, and returns how much the other one has.
        """
        try:
            link.limits = dataclasses.replace(self._limits, frame_bytes=HELLO_BYTES)
            heard = greet()
            link.limits = self._limits
            for message in self._kept:
                if message.number > heard:
                    link.send(message, self._timeout)
                    if message.number > self._left:
                        self._left = message.number  # whoever sent it first counts it
                    else:
                        self.ledger.again(message, self._speaks)
        except BaseException:
            link.close()
            raise
        self.inside = link

    def _can_have_heard(self, count: int) -> bool:
        """Return whether the other end may say that it heard so much."""
        return self._said - len(self._kept) <= count <= self._said

    def _beat(self) -> None:
        """Give a sign of life, if the other end waits for this one."""
        if not self._calls.acquire(blocking=False):
            return  # this end waits for the other one
        try:
            beat = Message(Kind.CONTROL, training=False, meta={"do": _BEAT})
            try:
                self.inside.send(beat, min(self._timeout, _BEAT_SECONDS))
                self._beats.append(beat)
            except LinkError:
                self.inside.close()  # the next message finds that out
                self._mend_meanwhile()
        finally:
            self._calls.release()

    def _lost(self, error: LinkError) -> float:
        """Give the connection up; returns until when there may be another one."""
        self.inside.close()
        if self._closed or not self.patience:
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return self._since + self.patience


class _Heartbeat:
    """Calls something again and again, in a thread.

    Args:
        beat: what to call.
        seconds: between the calls.
    """

    def __init__(self, beat: Callable[[], None], seconds: float) -> None:
        self._beat = beat
        self._seconds = seconds
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Call it no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._seconds):
            self._beat()


def _is(message: Message, what: str) -> bool:
    return message.kind is Kind.CONTROL and message.meta.get("do") == what
