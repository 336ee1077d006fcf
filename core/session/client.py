"""The client's side of a session: it speaks first, and waits for every answer."""

from __future__ import annotations

import dataclasses
import secrets
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from splitlab.core.contract.errors import LinkError, NetworkError, ProtocolError
from splitlab.core.contract.link import Link
from splitlab.core.contract.message import Kind, Message
from splitlab.core.contract.peer import Schedule
from splitlab.core.engine.conversation import Conversation, hold
from splitlab.core.session.protocol import (
    BYE,
    HELLO_BYTES,
    LEAST_SECONDS,
    MOST_SECONDS,
    PROTOCOL,
    Agreement,
    ended,
    frame_limit,
    seconds_of,
    tell,
)
from splitlab.core.session.states import State, Word, after, refused, word_of
from splitlab.core.wire.ledger import Ledger

__all__ = ["ClientSession"]

R = TypeVar("R")


class ClientSession:
    """The client's side of one link.

    Args:
        link: to the server.
        ledger: counts every frame.
        timeout: seconds of silence after which the server counts as gone.

    Attributes:
        server_seconds: what the server says it computed in all its answers so far.
        link_seconds: what was spent waiting for answers besides.
    """

    def __init__(self, link: Link, ledger: Ledger, timeout: float) -> None:
        self._link = link
        self._ledger = ledger
        self._timeout = timeout
        self._state = State.NEW
        self.server_seconds = 0.0
        self.link_seconds = 0.0

    def open(
        self,
        agreement: Agreement,
        *,
        run: str,
        step: int,
        marks: Mapping[str, str],
        batch_bytes: int,
        schedule: Schedule | None = None,
    ) -> None:
        """Shake hands.

        Args:
            agreement: what must be equal at both peers.
            run: name of the run folder, under which the server keeps its checkpoints.
            step: to resume from; 0 for a new run.
            marks: what the checkpoint of that step belongs to, by the names in `MARKS`; with
                ``steps`` and ``again``, which other steps the client has, and the command that goes
                on with the run.
            batch_bytes: size of one uncompressed batch, from which the frame limit follows.
            schedule: how long the run is to last, which the server's plugins may ask for, and its
                learning rate follows.

        Raises:
            ProtocolError: the peers do not fit; names both values.
            NetworkError: the server does not answer; it may have another client.
        """
        self._link.limits = dataclasses.replace(self._link.limits, frame_bytes=HELLO_BYTES)
        hello: dict[str, Any] = {
            "protocol": PROTOCOL,
            "agreement": agreement,
            "run": run,
            "step": step,
            "marks": dict(marks),
            "session": secrets.token_hex(16),
            "timeout": self._timeout,
        }
        if schedule is not None:
            said = dataclasses.asdict(schedule)
            hello["schedule"] = {key: value for key, value in said.items() if value is not None}
        try:
            answer = self.exchange(Message(Kind.HELLO, meta=hello))
        except NetworkError as error:
            raise NetworkError(
                f"{error} before it answered; a server takes one client only"
            ) from error
        words = {"protocol", "timeout", "waits"}
        timeout, waits = (seconds_of(answer, word, -1.0) for word in ("timeout", "waits"))
        sane = LEAST_SECONDS <= timeout <= MOST_SECONDS and 0 <= waits <= MOST_SECONDS
        if answer.meta.keys() != words or answer.meta["protocol"] != PROTOCOL or not sane:
            raise ProtocolError(f"{self._link.remote} answered a HELLO with {answer.meta!r:.200}")
        self._link.limits = dataclasses.replace(
            self._link.limits, frame_bytes=frame_limit(batch_bytes)
        )

    def exchange(self, message: Message) -> Message:
        """Send a message and return the answer; the server's ERROR is raised here.

        Raises:
            ProtocolError: the answer is none to this message, by the session's state table.
        """
        asked = after(self._state, word_of(message, "client"), "client")
        if asked is None:
            raise refused("this client", message, self._state, "client")
        self._state = State.FAILED  # until there is an answer
        started = time.perf_counter()
        self._link.send(message, self._timeout)
        self._ledger.add(message, "up")
        answer = self._link.receive(self._timeout)
        self._ledger.add(answer, "down")
        server = answer.elapsed_ns * 1e-9
        self.server_seconds += server
        self.link_seconds += max(0.0, time.perf_counter() - started - server)
        word = word_of(answer, "server")
        if word is Word.ERROR:
            raise ended(answer, "the server", ProtocolError)
        then = after(asked, word, "server")
        if then is None or answer.step != message.step:
            raise refused(self._link.remote, answer, asked, "server")
        self._state = then
        return answer

    def hold(self, conversation: Conversation[R]) -> R:
        """Hold a conversation with the server, and return what came of it."""
        return hold(conversation, self.exchange)

    def save(self, step: int, keep: Sequence[int] = ()) -> None:
        """Make the server write its checkpoint of this step, and keep these older ones."""
        more = {"keep": " ".join(map(str, keep))} if keep else {}
        self.exchange(Message(Kind.CONTROL, step, meta={"do": "save", **more}))

    def finish(self, step: int) -> None:
        """Say goodbye; the server ends in good order."""
        self.exchange(Message(Kind.CONTROL, step, meta={"do": "finish"}))
        bye = Message(Kind.CONTROL, step, meta={"do": BYE})
        with suppress(LinkError):  # then the server waits a little for nobody
            self._link.send(bye, min(self._timeout, 5.0))
            self._ledger.add(bye, "up")
        self._state = State.OVER

    def fail(self, error: BaseException) -> None:
        """Tell the server, if it still listens, why this client ends."""
        tell(self._link, error, min(self._timeout, 5.0))
