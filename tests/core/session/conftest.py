"""What the tests of both sides share: two sessions at one table, and what they say."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from splitlab.core import Kind, Link, Message, NetworkError, ProtocolError, Role, WrappedLink
from splitlab.core.session.awaiting import Awaiting, Returned, Superseded
from splitlab.core.session.client import ClientSession
from splitlab.core.session.protocol import PROTOCOL, ended
from splitlab.core.session.redialling import Redialling
from splitlab.core.session.server import ServerSession
from splitlab.core.wire.ledger import Ledger
from splitlab.transports.inprocess import InProcess

AGREEMENT = {
    "stack": "adc:ratio=0.1",
    "model": "vit-mini",
    "image size": "28",
    "cut": "3",
    "classes": "10",
    "weights": "0123456789abcdef",
    "batch size": "128",
    "optimizer": "adam lr=0.0003 weight_decay=0.0",
    "seed": "0",
}
BATCH_BYTES = 1000
MARKS = {"run": "0123456789abcdef", "seed": "0", "plan": "fedcba9876543210"}
HELLO: dict[str, Any] = {
    "protocol": PROTOCOL,
    "agreement": AGREEMENT,
    "run": "run",
    "step": 0,
    "marks": MARKS,
    "session": "00112233445566778899aabbccddeeff",
    "timeout": 60.0,
}


class Echo:
    """Stands in for the server: answers every message, or raises."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.handled: list[Message] = []
        self.metrics: dict[str, dict[str, float]] = {}
        self.owed: Exception | None = None

    def settle(self) -> None:
        if self.owed:
            raise self.owed

    def handle(self, message: Message) -> Message:
        self.handled.append(message)
        if self.error:
            raise self.error
        time.sleep(0.002)
        kind = Kind.GRADIENT if message.training else Kind.PREDICTION
        answer = Message(kind, message.step, training=message.training, meta={"loss": 1.0})
        answer.put("gradient", torch.zeros(10), Role.PAYLOAD)
        return answer


class Table:
    """Both sessions at one table: two ends of a link in this thread."""

    def __init__(
        self,
        agreement: dict[str, str] | None = None,
        *,
        nested: bool = True,
        server: Any = None,
    ) -> None:
        self.echo = server or Echo()
        self.resumed: list[tuple[str, int, Any]] = []
        self.saved: list[tuple[int, list[int]]] = []
        self.measured: list[int] = []
        self.resume_error: Exception | None = None
        self.told: list[BaseException] = []
        self.ledger = Ledger()
        self.client_end, self.server_end = InProcess().pair(self._serve if nested else None)
        self.server = ServerSession(
            self.server_end,
            self.echo,
            AGREEMENT if agreement is None else agreement,
            batch_bytes=BATCH_BYTES,
            timeout=1.0,
            resume=self._resume,
            save=lambda step, keep: self.saved.append((step, keep)),
            measured=self.measured.append,
        )
        self.client = ClientSession(self.client_end, self.ledger, 1.0)

    def _resume(self, run: str, step: int, marks: Any) -> None:
        if self.resume_error:
            raise self.resume_error
        self.resumed.append((run, step, marks))

    def _serve(self) -> None:
        """Take a turn as a server process would: what it raises does not reach the client."""
        try:
            self.server.turn()
        except Exception as error:  # noqa: BLE001
            self.told.append(error)

    def say(self, message: Message) -> Message:
        """Send whatever it is, past the client's own session; return the server's answer."""
        self.client_end.send(message, 1.0)
        answer = self.client_end.receive(1.0)
        if answer.kind is Kind.ERROR:
            raise ended(answer, "the server", ProtocolError)
        return answer

    def open(self, **changes: Any) -> Table:
        settings = {"run": "run", "step": 0, "marks": MARKS, "batch_bytes": BATCH_BYTES}
        self.client.open(AGREEMENT, **settings | changes)
        return self


def activation(step: int = 0, *, training: bool = True, size: int = 10) -> Message:
    made = Message(Kind.ACTIVATION, step, training=training)
    made.put("activations", torch.zeros(size), Role.PAYLOAD)
    return made


class Talk:
    """What a session is made of, in one place for the tests."""

    AGREEMENT = AGREEMENT
    BATCH_BYTES = BATCH_BYTES
    HELLO = HELLO
    MARKS = MARKS
    Table = Table
    activation = staticmethod(activation)


@pytest.fixture(scope="session")
def talk() -> Talk:
    """Return it."""
    return Talk()


# Connections that come and go.

SESSION = "0123456789abcdef0123456789abcdef"


class Severable(WrappedLink):
    """An end that can be severed, and told what to raise.

    Attributes:
        raises: instead of the next message.
        leaves: whether the other end closes the connection behind its last message.
        limits_seen: of every message that was received.
    """

    def __init__(self, inside: Link, limits_seen: list[int] | None = None) -> None:
        super().__init__(inside)
        self.raises: Exception | None = None
        self.leaves = False
        self.limits_seen = [] if limits_seen is None else limits_seen

    def receive(self, timeout: float) -> Message:
        self.limits_seen.append(self.limits.frame_bytes)
        error, self.raises = self.raises, None
        if error is not None:
            raise error
        if not self.leaves:
            return super().receive(timeout)
        with suppress(NetworkError):
            return super().receive(0.0)
        raise NetworkError(f"{self.remote}: the other end closed the connection")

    def sever(self) -> None:
        self.inside.close()


def numbered(message: Message, number: int) -> Message:
    message.number = number
    return message


@dataclass
class Upcoming:
    """What a server says on a connection as soon as that is made."""

    heard: Any = ...
    answers: list[int] = field(default_factory=list)
    limits: list[int] | None = None
    beats: int = 0
    closes: bool = False
    error: dict[str, Any] | None = None
    raises: Exception | None = None


class Ends:
    """A client's lasting end, and the server's bare ones, over connections that are made for it."""

    session = SESSION

    def __init__(self) -> None:
        self.upcoming: list[Upcoming] = []
        self.servers: list[Link] = []
        self.dialled = 0
        self.said: list[str] = []
        self.made: Redialling | None = None
        self._timeout = 1.0

    def client(
        self,
        timeout: float = 1.0,
        patience: float = 9.0,
        **more: Any,
    ) -> Redialling:
        self._timeout = timeout
        self.made = Redialling(
            self._connect(Upcoming()),
            self._dial,
            timeout=timeout,
            patience=patience,
            say=self.said.append,
            **more,
        )
        return self.made

    def hello(self) -> Message:
        return Message(Kind.HELLO, meta={"protocol": PROTOCOL, "session": SESSION})

    def shake_hands(self, waits: float = 9.0) -> None:
        assert self.made is not None
        self.made.send(self.hello(), 1.0)
        assert self.server.receive(1.0).number == 1
        meta = {"protocol": PROTOCOL, "timeout": self._timeout, "waits": waits}
        self.server.send(numbered(Message(Kind.HELLO, meta=meta), 1), 1.0)
        assert self.made.receive(1.0).meta == meta

    def greets(self, **what: Any) -> None:
        """Say what becomes of the next connection."""
        self.upcoming.append(Upcoming(**what))

    def answer(self, number: int) -> None:
        self.server.send(numbered(Message(Kind.GRADIENT), number), 1.0)

    def beat(self) -> None:
        self.server.send(Message(Kind.CONTROL, training=False, meta={"do": "beat"}), 1.0)

    def cut(self) -> None:
        self.server.close()

    def raises(self, error: Exception) -> None:
        """Let the client's next message be an error."""
        self._client.raises = error

    def _dial(self, timeout: float) -> Link:
        self.dialled += 1
        if not self.upcoming:
            raise NetworkError("nobody there")
        return self._connect(self.upcoming.pop(0))

    def _connect(self, what: Upcoming) -> Link:
        client, self.server = InProcess().pair(None)
        self._client = Severable(client, what.limits)
        self._client.raises, self._client.leaves = what.raises, what.closes
        if what.error is not None:
            self.server.send(Message(Kind.ERROR, meta=what.error), 1.0)
        elif what.heard is not ...:
            meta = {"protocol": PROTOCOL, "heard": what.heard}
            self.server.send(Message(Kind.HELLO, meta=meta), 1.0)
        for number in what.answers:
            self.answer(number)
        for _ in range(what.beats):
            self.beat()
        self.servers.append(self.server)
        return self._client


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Return them; what they made is closed."""
    made = Ends()
    yield made
    if made.made is not None:
        made.made.close()


class Doors:
    """A server's lasting end, and the client's bare ones."""

    def __init__(self) -> None:
        self.returns: list[Returned | Superseded] = []
        self.said: list[str] = []
        self.made: Awaiting | None = None

    def back(self) -> Returned | None:
        return self.wait(0.0) if self.returns else None

    def wait(self, seconds: float) -> Returned | None:
        if not self.returns:
            time.sleep(seconds)
            return None
        came = self.returns.pop(0)
        if isinstance(came, Superseded):
            raise came
        return came

    def server(
        self,
        patience: float = 9.0,
        greeted: bool = True,
        counts: bool = True,
        **more: Any,
    ) -> Awaiting:
        link = self.other()
        self.made = made = Awaiting(
            link, self, timeout=1.0, patience=patience, say=self.said.append, **more
        )
        self.send(Message(Kind.HELLO, meta={"session": SESSION}), int(counts))
        made.receive(1.0)
        made.send(Message(Kind.HELLO), 1.0)
        self.client.receive(1.0)
        if greeted:
            made.keep()
        return made

    def other(self) -> Severable:
        self.client, server = InProcess().pair(None)
        return Severable(server)

    def send(self, message: Message, number: int) -> None:
        self.client.send(numbered(message, number), 1.0)

    def ask(self, server: Awaiting, number: int) -> None:
        self.send(Message(Kind.ACTIVATION), number)
        assert server.receive(1.0).number == number

    def cut(self) -> None:
        self.client.close()

    def comes(self, heard: int, *, closed: bool = False) -> None:
        """Let the client come back, who says that it heard so much."""
        self.returns.append(Returned(self.other(), heard))
        if closed:
            self.client.close()


@pytest.fixture
def doors() -> Iterator[Doors]:
    """Return them; what they made is closed."""
    made = Doors()
    yield made
    if made.made is not None:
        made.made.close()
