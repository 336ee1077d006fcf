"""What the peers say to each other besides tensors: handshake, checkpoints, goodbye.

    client                                   server
    HELLO  protocol, agreement, run, step ─►  compares; loads its checkpoint of that step
                                          ◄─  HELLO, or ERROR with both values
    ACTIVATION                            ─►
                                          ◄─  GRADIENT or PREDICTION
    CONTROL save: step                    ─►  writes its checkpoint
                                          ◄─  CONTROL saved: step
    CONTROL finish                        ─►
                                          ◄─  CONTROL finished; both close

Before the handshake a peer takes small frames only; after it, frames of a few batches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable

from splitlab.core.contract.errors import LinkError, NetworkError, ProtocolError, SplitlabError
from splitlab.core.contract.link import Link
from splitlab.core.contract.message import Kind, Message
from splitlab.core.engine.peers import Server
from splitlab.core.wire.ledger import Ledger

__all__ = ["PROTOCOL", "Agreement", "ClientSession", "ServerSession"]

PROTOCOL = 1
_HELLO_BYTES = 1 << 16

Agreement = dict[str, str]
"""What both peers must have in common, by the name that the user knows it by."""


def _frame_limit(message_bytes: int) -> int:
    # A codec may send more than it got (values and indices), hardly four times as much.
    return 4 * message_bytes + (1 << 20)


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
        self.server_seconds = 0.0
        self.link_seconds = 0.0

    def open(self, agreement: Agreement, *, run: str, step: int, batch_bytes: int) -> None:
        """Shake hands.

        Args:
            agreement: what must be equal at both peers.
            run: name of the run folder, under which the server keeps its checkpoints.
            step: to resume from; 0 for a new run.
            batch_bytes: size of one uncompressed batch, from which the frame limit follows.

        Raises:
            ProtocolError: the peers do not fit; names both values.
        """
        self._link.limits = dataclasses.replace(self._link.limits, frame_bytes=_HELLO_BYTES)
        hello = {"protocol": PROTOCOL, "agreement": agreement, "run": run, "step": step}
        answer = self.exchange(Message(Kind.HELLO, meta=hello))
        if answer.kind is not Kind.HELLO:
            raise ProtocolError(f"{self._link.peer} answered a HELLO with {answer.kind.name}")
        self._link.limits = dataclasses.replace(
            self._link.limits, frame_bytes=_frame_limit(batch_bytes)
        )

    def exchange(self, message: Message) -> Message:
        """Send a message and return the answer; the server's ERROR is raised here."""
        started = time.perf_counter()
        self._link.send(message, self._timeout)
        self._ledger.add(message, "up")
        answer = self._link.receive(self._timeout)
        self._ledger.add(answer, "down")
        server = answer.elapsed_ns * 1e-9
        self.server_seconds += server
        self.link_seconds += max(0.0, time.perf_counter() - started - server)
        if answer.kind is Kind.ERROR:
            raise ProtocolError(f"the server ended the run: {_reason(answer)}")
        return answer

    def save(self, step: int) -> None:
        """Make the server write its checkpoint of this step."""
        self._control("save", "saved", step)

    def finish(self, step: int) -> None:
        """Say goodbye; the server ends in good order."""
        self._control("finish", "finished", step)

    def fail(self, error: BaseException) -> None:
        """Tell the server, if it still listens, why this client ends."""
        _tell(self._link, error, min(self._timeout, 5.0))

    def _control(self, request: str, expected: str, step: int) -> None:
        answer = self.exchange(Message(Kind.CONTROL, step, meta={"do": request}))
        if answer.kind is not Kind.CONTROL or answer.meta.get("did") != expected:
            raise ProtocolError(f"the server answered {request!r} with {answer!r}")


class ServerSession:
    """The server's side of one link.

    Args:
        link: to the client.
        agreement: what must be equal at both peers.
        batch_bytes: size of one uncompressed batch, from which the frame limit follows.
        timeout: seconds of silence after which the client counts as gone.
        resume: called with run name and step after the handshake; loads the server's state.
        save: called with the step; writes the server's checkpoint.
    """

    def __init__(
        self,
        link: Link,
        server: Server,
        agreement: Agreement,
        *,
        batch_bytes: int,
        timeout: float,
        resume: Callable[[str, int], None],
        save: Callable[[int], None],
    ) -> None:
        self._link = link
        self._server = server
        self._agreement = agreement
        self._batch_bytes = batch_bytes
        self._timeout = timeout
        self._resume = resume
        self._save = save
        self._open = False
        self.steps = 0
        link.limits = dataclasses.replace(link.limits, frame_bytes=_HELLO_BYTES)

    def turn(self) -> bool:
        """Receive one message and send the answer; returns False after goodbye.

        Raises:
            SplitlabError: something is wrong; the client has been told.
        """
        try:
            message = self._link.receive(self._timeout)
            started = time.perf_counter_ns()
            answer = self._answer(message)
            answer.elapsed_ns = time.perf_counter_ns() - started
            self._link.send(answer, self._timeout)
        except NetworkError:
            raise  # nobody can be told
        except Exception as error:
            _tell(self._link, error, min(self._timeout, 5.0))
            raise
        return answer.meta.get("did") != "finished"

    def _answer(self, message: Message) -> Message:
        if message.kind is Kind.ERROR:
            raise LinkError(f"the client ended the run: {_reason(message)}")
        if not self._open:
            return self._hello(message)
        if message.kind is Kind.ACTIVATION:
            answer = self._server.handle(message)
            self.steps += message.training
            return answer
        if message.kind is Kind.CONTROL:
            request = message.meta.get("do")
            if request == "save":
                self._save(message.step)
                return Message(Kind.CONTROL, message.step, meta={"did": "saved"})
            if request == "finish":
                return Message(Kind.CONTROL, message.step, meta={"did": "finished"})
        raise ProtocolError(f"{self._link.peer} sent what a server does not take: {message!r}")

    def _hello(self, message: Message) -> Message:
        meta = message.meta
        if message.kind is not Kind.HELLO:
            raise ProtocolError(f"{self._link.peer} began with {message.kind.name}, not with HELLO")
        protocol = meta.get("protocol")
        if type(protocol) is int:  # a bool is an int, and True equals 1
            _compare({"protocol": str(protocol)}, {"protocol": str(PROTOCOL)})
        theirs, run, step = meta.get("agreement"), meta.get("run"), meta.get("step")
        if (
            type(protocol) is not int
            or not isinstance(theirs, dict)
            or not all(isinstance(value, str) for value in theirs.values())
            or not isinstance(run, str)
            or type(step) is not int
            or step < 0
        ):
            raise ProtocolError(f"{self._link.peer} sent a malformed HELLO")
        _compare(theirs, self._agreement)
        self._resume(run, step)
        self._open = True
        self._link.limits = dataclasses.replace(
            self._link.limits, frame_bytes=_frame_limit(self._batch_bytes)
        )
        return Message(Kind.HELLO, meta={"protocol": PROTOCOL})


def _compare(client: Agreement, server: Agreement) -> None:
    for key in [*server, *client]:
        if client.get(key) != server.get(key):
            raise ProtocolError(
                f"the peers differ in {_line(key)}: client {_line(client.get(key))}, "
                f"server {_line(server.get(key))}; give both the same options"
            )


def _tell(link: Link, error: BaseException, timeout: float) -> None:
    kind = "" if isinstance(error, SplitlabError) else f"{type(error).__name__}: "
    # If the link is what failed, or the peer is gone, nobody is left to be told.
    with contextlib.suppress(LinkError):
        link.send(Message(Kind.ERROR, meta={"error": _line(f"{kind}{error}")}), timeout)


def _reason(message: Message) -> str:
    text = message.meta.get("error")
    return _line(text) if isinstance(text, str) else "it gives no reason"


def _line(text: object) -> str:
    return " ".join(str(text).split())[:1000]
