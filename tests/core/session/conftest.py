"""What the tests of both sides share: two sessions at one table, and what they say."""

from __future__ import annotations

import time
from typing import Any

import pytest
import torch

from splitlab.core import Kind, Message, ProtocolError, Role
from splitlab.core.session.client import ClientSession
from splitlab.core.session.protocol import PROTOCOL, ended
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
