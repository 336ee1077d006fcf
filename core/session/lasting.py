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
import itertools
import math
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final, Protocol

from splitlab.core.contract.errors import DamagedError, LinkError, NetworkError, ProtocolError
from splitlab.core.contract.link import Limits, Link, SeverableLink, WrappedLink
from splitlab.core.contract.message import Kind, Message
from splitlab.core.session.protocol import BYE, HELLO_BYTES, PROTOCOL, ended, number_of, seconds_of
from splitlab.core.wire.ledger import Direction, Ledger

__all__ = [
    "Awaiting",
    "Lasting",
    "Redialling",
    "Returned",
    "Superseded",
    "returns_to",
]

_BROKEN: Final = (NetworkError, DamagedError)
"""What another connection may mend."""
_BEATS: Final = 4
"""Signs of life in the time after which an end counts as gone."""
_LONGEST: Final = 10
"""How many of these times an end may compute for one message, whatever signs of life it gives."""
_STRANGE: Final = 3
"""Answers to a first HELLO that may be damaged, until they are taken for none."""
_A_LOOK: Final = 0.2
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 5.0
_FIRST_TRY, _LONGEST_TRY = 0.5, 30.0
_BEAT = "beat"

_chance = random.SystemRandom()


class Superseded(NetworkError):
    """The client is not coming back: it began the same run anew.

    Attributes:
        link: to it; its HELLO is the next message.
    """

    def __init__(self, link: Link) -> None:
        super().__init__(f"{link.remote}: the client began its run anew")
        self.link = link


@dataclasses.dataclass(frozen=True)
class Returned:
    """A connection on which the client goes on with its session.

    Attributes:
        link: over it.
        heard: how many messages of the server the client has heard.
    """

    link: SeverableLink
    heard: int


class Lasting(WrappedLink, ABC):
    """One end of a session that outlives its connections; innermost of what is around a link.

    Args:
        inside: the link over the first connection.
        timeout: seconds of silence after which the other end counts as gone.
        patience: seconds that a session may be without connection, or without getting further.
        say: is told in a line of a connection that is lost, and of the next one.

    Attributes:
        ledger: counts signs of life and what is said or heard again.
        session: its name, which only its two ends know; empty before the handshake, and if the
            other end keeps nothing that could be said again.
    """

    _speaks: Direction
    _hears: Direction

    def __init__(
        self, inside: Link, *, timeout: float, patience: float, say: Callable[[str], None]
    ) -> None:
        super().__init__(inside)
        self.ledger = Ledger()
        self.session = ""
        self._timeout = timeout
        self._patience = patience
        self._say = say
        self._limits = inside.limits
        self._said = self._heard = 0
        self._left = 0  # number of the last message that left whole
        self._kept: list[Message] = []
        self._since: float | None = None  # when it broke, if it got no further
        self._silent = 0  # how often in a row nothing came for too long
        self._calls = threading.Lock()
        self._heartbeat: _Heartbeat | None = None
        self._closed = False

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
            except _BROKEN as error:
                if _is(message, BYE):
                    raise
                self._mend(error)
            return message.frame_bytes

    def receive(self, timeout: float) -> Message:
        """Return the next message of the conversation, over as many connections as it takes."""
        with self._calls:
            began = time.monotonic()
            while True:
                try:
                    message = self.inside.receive(timeout)
                    if message.kind is Kind.ERROR or not self._numbers(message):
                        self._expect_whole(message)
                        return message
                    if self._is_next(message):
                        break
                except _BROKEN as error:
                    self._silent += time.monotonic() - began >= timeout
                    self._mend(error)
                    began = time.monotonic()
                if time.monotonic() - began > _LONGEST * timeout:
                    raise ProtocolError(
                        f"{self.remote}: the other end has computed for {_LONGEST * timeout:g} s "
                        "and said nothing but that it lives; give a larger --timeout"
                    )
            self._heard += 1
            self._kept.clear()
            self._since, self._silent = None, 0
            self._note(message)
        if self._heartbeat is None and self.session:
            self._heartbeat = _Heartbeat(self._beat, self._timeout / _BEATS)
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

    @contextmanager
    def _greeting(self, link: Link) -> Iterator[None]:
        """Let a link that is new take small frames only, and close it if that fails."""
        try:
            link.limits = dataclasses.replace(self._limits, frame_bytes=HELLO_BYTES)
            yield
            link.limits = self._limits
        except BaseException:
            link.close()
            raise

    def _say_again(self, link: Link, heard: int) -> None:
        """Send what the other end has not heard."""
        for message in self._kept:
            if message.number > heard:
                link.send(message, self._timeout)
                if message.number > self._left:
                    self._left = message.number  # whoever sent it first counts it
                else:
                    self.ledger.again(message, self._speaks)

    def _beat(self) -> None:
        """Give a sign of life, if the other end waits for this one."""
        if not self._calls.acquire(blocking=False):
            return  # this end waits for the other one
        try:
            beat = Message(Kind.CONTROL, training=False, meta={"do": _BEAT})
            with suppress(LinkError):  # the next message will find that out
                self.inside.send(beat, self._timeout)
                self.ledger.add(beat, self._speaks)
        finally:
            self._calls.release()

    def _lost(self, error: LinkError) -> float:
        """Give the connection up; returns until when there may be another one."""
        self.inside.close()
        if self._closed or not self._patience:
            raise error
        now = time.monotonic()
        if self._since is None:
            self._since = now
        return self._since + self._patience


class Redialling(Lasting):
    """The client's end, which makes the new connection.

    Args:
        inside: the link over the first connection.
        dial: connects anew, within so many seconds.
        hopeless: whether nobody is there any more to connect to, or nobody wants it.
        timeout, patience, say: as of `Lasting`.
    """

    _speaks, _hears = "up", "down"

    def __init__(
        self,
        inside: Link,
        dial: Callable[[float], Link],
        *,
        timeout: float,
        patience: float,
        hopeless: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(inside, timeout=timeout, patience=patience, say=say)
        self._dial = dial
        self._hopeless = hopeless
        self._attempt = 0

    def send(self, message: Message, timeout: float) -> int:
        """Send the message; see `Lasting`."""
        if message.kind is Kind.HELLO:
            self.session = str(message.meta.get("session", ""))
        return super().send(message, timeout)

    def _note(self, message: Message) -> None:
        if message.kind is Kind.HELLO:
            self._patience = min(self._patience, seconds_of(message, "waits", math.inf))
            self._timeout = min(self._timeout, seconds_of(message, "timeout", math.inf))

    def _mend(self, error: LinkError) -> None:
        until, began, last = self._lost(error), time.monotonic(), error
        if not self._hopeless():
            self._say(f"lost the connection ({error}); trying again for {self._patience:g} s")
        for attempt in itertools.count():
            left = until - time.monotonic()
            if self._hopeless() or self._is_no_server(last, attempt):
                raise last
            if left <= 0:
                raise NetworkError(
                    f"{error}; there was no other connection in {self._patience:g} s: {last}"
                ) from error
            try:
                self.inside = self._again(min(left, _FIRST_TRY * 2**attempt, _LONGEST_TRY))
                break
            except _BROKEN as found:
                last = found
            pause = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * _chance.uniform(0.5, 1.0)
            time.sleep(max(0.0, min(pause, until - time.monotonic())))
        self._say(f"connected again after {time.monotonic() - began:.2g} s")

    def _expect_whole(self, message: Message) -> None:
        if self.session and message.meta.get("damaged") is True:
            raise ended(message, "the server", ProtocolError)

    def _is_no_server(self, error: LinkError, attempt: int) -> bool:
        """Return whether who was called first says nothing, or nothing that is ours."""
        strange = isinstance(error, DamagedError) and attempt >= _STRANGE
        return not self._heard and (strange or self._silent > 1)

    def _again(self, timeout: float) -> Link:
        """Return a link over another connection, on which all is said."""
        link = self._dial(timeout)
        heard = 0
        with self._greeting(link):
            if self._heard:
                heard = self._go_on(link, timeout)
        try:
            self._say_again(link, heard)
        except BaseException:
            link.close()
            raise
        return link

    def _go_on(self, link: Link, timeout: float) -> int:
        """Ask to go on with the session; returns how much the server has heard."""
        self._attempt += 1
        said = {"session": self.session, "heard": self._heard, "attempt": self._attempt}
        asked = Message(Kind.HELLO, meta={"protocol": PROTOCOL, **said})
        link.send(asked, timeout)
        self.ledger.add(asked, "up")
        # The server may be busy with what it heard before the connection was lost.
        answer = link.receive(max(timeout, self._timeout))
        self.ledger.add(answer, "down")
        if answer.kind is Kind.ERROR:
            raise ended(answer, "the server", ProtocolError)
        heard = number_of(answer, "heard")
        if answer.kind is not Kind.HELLO or heard is None or heard > self._said:
            raise ProtocolError(f"{link.remote} answered a HELLO with {answer.meta!r:.200}")
        return heard


class Returns(Protocol):
    """Where clients come back to."""

    def wait(self, seconds: float) -> Returned | None:
        """Return the client's next connection, or None; `Superseded` if it began anew."""
        ...


class Awaiting(Lasting):
    """The server's end (a `SeverableLink`), which waits for the client's new connection.

    A client that counts nothing, whose HELLO has no number, is none to wait for.

    Args:
        inside: the link over the first connection.
        returns: where the client comes back to.
        hopeless: whether nobody wants it any more.
        timeout, patience, say: as of `Lasting`.
    """

    _speaks, _hears = "down", "up"

    def __init__(
        self,
        inside: SeverableLink,
        returns: Returns,
        *,
        timeout: float,
        patience: float,
        hopeless: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__(inside, timeout=timeout, patience=patience, say=say)
        self.inside: SeverableLink = inside
        self._returns = returns
        self._hopeless = hopeless
        self._counts = False
        self._established = False

    def sever(self) -> None:
        """End the connection at once, from any thread: the client has another one."""
        self.inside.sever()

    def keep(self) -> None:
        """From now on, wait for the client if its connection is lost: its HELLO was answered."""
        self._established = True

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
        self._say(f"lost the connection ({error}); its client has {self._patience:g} s to return")
        while (left := until - time.monotonic()) > 0 and not self._hopeless():
            came = self._returns.wait(min(left, _A_LOOK))
            if came is None:
                continue
            with suppress(*_BROKEN):
                self.inside = self._taken(came)
                self._say(f"the client is back after {time.monotonic() - began:.2g} s")
                return
        if self._hopeless():
            raise error
        raise NetworkError(f"{error}; its client did not return in {self._patience:g} s") from error

    def _taken(self, came: Returned) -> SeverableLink:
        """Return the link of a client that is back, on which all is said."""
        link = came.link
        with self._greeting(link):
            if not self._said - len(self._kept) <= came.heard <= self._said:
                raise DamagedError(f"{link.remote} says that it heard {came.heard} messages")
            answer = {"protocol": PROTOCOL, "heard": self._heard}
            link.send(Message(Kind.HELLO, meta=answer), self._timeout)
        try:
            self._say_again(link, came.heard)
        except BaseException:
            link.close()
            raise
        return link


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


def returns_to(message: Message) -> str | None:
    """Return which session the HELLO of a new connection goes on with; None if with none."""
    if message.kind is not Kind.HELLO or "heard" not in message.meta:
        return None
    session = message.meta.get("session")
    whole = number_of(message, "heard") is not None and number_of(message, "attempt") is not None
    return session if whole and isinstance(session, str) else ""


def _is(message: Message, what: str) -> bool:
    return message.kind is Kind.CONTROL and message.meta.get("do") == what
