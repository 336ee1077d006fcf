"""The server's side of a session: one turn is one message and its answer."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from collections.abc import Callable, Mapping
from typing import TypeGuard

from splitlab.core.contract.errors import LinkError, NetworkError, ProtocolError, when
from splitlab.core.contract.link import Link
from splitlab.core.contract.message import Kind, Message
from splitlab.core.contract.peer import Schedule
from splitlab.core.engine.server import Server
from splitlab.core.session.protocol import (
    HELLO_BYTES,
    MARKS,
    PROTOCOL,
    Agreement,
    compare,
    ended,
    frame_limit,
    tell,
)

__all__ = ["ServerSession"]


_MOST = 2**63 - 1
"""Samples and steps that a run may have; more is no number to count with."""
_STEPS = re.compile("([0-9]{1,19}( [0-9]{1,19})*)?")


class ServerSession:
    """The server's side of one link.

    Args:
        link: to the client.
        agreement: what must be equal at both peers.
        batch_bytes: size of one uncompressed batch, from which the frame limit follows.
        timeout: seconds of silence after which the client counts as gone.
        resume: called with run name, step and marks after the handshake; loads the server's state.
        save: called with the step and the older ones to keep; writes the server's checkpoint.
        measured: called after every training step that has metrics, with its number from 1.
    """

    def __init__(
        self,
        link: Link,
        server: Server,
        agreement: Agreement,
        *,
        batch_bytes: int,
        timeout: float,
        resume: Callable[[str, int, Mapping[str, str]], None],
        save: Callable[[int, list[int]], None],
        measured: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._link = link
        self._server = server
        self._agreement = agreement
        self._batch_bytes = batch_bytes
        self._timeout = timeout
        self._resume = resume
        self._save = save
        self._measured = measured
        self._open = False
        self._over = False
        self._trained = 0  # steps of the whole run, those before it was resumed among them
        self.steps = 0
        self.resumed = False
        link.limits = dataclasses.replace(link.limits, frame_bytes=HELLO_BYTES)

    def turn(self, timeout: float | None = None) -> bool:
        """Receive one message and send the answer; returns False after goodbye.

        Args:
            timeout: seconds of silence, where they are others than the session's.

        Raises:
            SplitlabError: something is wrong; the client has been told.
        """
        try:
            message = self._link.receive(self._timeout if timeout is None else timeout)
            started = time.perf_counter_ns()
            answer = self._answer(message)
            answer.elapsed_ns = time.perf_counter_ns() - started
            self._link.send(answer, self._timeout)
        except NetworkError:
            raise  # nobody can be told
        except Exception as error:
            tell(self._link, error, min(self._timeout, 5.0))
            raise
        return answer.meta.get("did") != "finished"

    def _answer(self, message: Message) -> Message:
        if message.kind is Kind.ERROR:
            raise ended(message, "the client", LinkError)
        if not self._open:
            return self._hello(message)
        if self._over:
            raise ProtocolError(f"{self._link.remote} sent {message!r} after its goodbye")
        if message.kind not in (Kind.HELLO, Kind.CONTROL):
            if message.training and message.step != self._trained:
                raise ProtocolError(
                    f"{self._link.remote} sent {message.kind.name} of {message.when}, "
                    f"and {when(self._trained)} is due"
                )
            answer = self._server.handle(message)
            if answer.kind is Kind.GRADIENT and answer.training:  # the last word of a step
                self.steps += 1
                self._trained += 1
                if self._server.metrics:
                    self._measured(message.step + 1)
            return answer
        request = message.meta.get("do")
        if message.kind is Kind.HELLO or request not in ("save", "finish"):
            raise ProtocolError(
                f"{self._link.remote} sent what a server does not take: {message!r}"
            )
        if message.step != self._trained:
            raise ProtocolError(
                f"{self._link.remote} asks to {request} after step {message.step}, "
                f"and {self._trained} are trained"
            )
        self._server.settle()
        if request == "save":
            keep = message.meta.get("keep", "")
            if not isinstance(keep, str) or not _STEPS.fullmatch(keep):
                raise ProtocolError(f"{self._link.remote} asks to keep {keep!r:.200}")
            self._save(message.step, [int(step) for step in keep.split()])
            return Message(Kind.CONTROL, message.step, meta={"did": "saved"})
        self._over = True
        return Message(Kind.CONTROL, message.step, meta={"did": "finished"})

    def _hello(self, message: Message) -> Message:
        meta = message.meta
        if message.kind is not Kind.HELLO:
            raise ProtocolError(
                f"{self._link.remote} began with {message.kind.name}, not with HELLO"
            )
        protocol = meta.get("protocol")
        if type(protocol) is int:  # a bool is an int, and True equals 1
            compare({"protocol": str(protocol)}, {"protocol": str(PROTOCOL)})
        theirs, run, step = meta.get("agreement"), meta.get("run"), meta.get("step")
        marks = meta.get("marks")
        if (
            type(protocol) is not int
            or not isinstance(theirs, dict)
            or not all(isinstance(value, str) for value in theirs.values())
            or not isinstance(run, str)
            or type(step) is not int
            or step < 0
            or not isinstance(marks, dict)
            or not all(isinstance(value, str) for value in marks.values())
            or not marks.keys() >= set(MARKS)
        ):
            raise ProtocolError(f"{self._link.remote} sent a malformed HELLO")
        schedule = _schedule(meta.get("schedule"))
        if schedule is None and "schedule" in meta:
            raise ProtocolError(f"{self._link.remote} sent a malformed HELLO")
        compare(theirs, self._agreement)
        if schedule is not None:
            self._server.peer.schedule = schedule
        self.resumed = True
        self._resume(run, step, marks)
        self._open, self._trained = True, step
        self._link.limits = dataclasses.replace(
            self._link.limits, frame_bytes=frame_limit(self._batch_bytes)
        )
        return Message(Kind.HELLO, meta={"protocol": PROTOCOL})


def _schedule(said: object) -> Schedule | None:
    """Return what a HELLO says of how long the run is to last; None if it makes no sense."""
    if not isinstance(said, dict) or {"steps", *said} != {*Schedule.__dataclass_fields__}:
        return None
    samples, unit, amount, steps = (said.get(name) for name in Schedule.__dataclass_fields__)
    if not (_counts(samples) and (steps is None or _counts(steps))):
        return None
    if type(amount) is int:
        amount = float(amount) if amount <= _MOST else math.inf
    if not isinstance(unit, str) or type(amount) is not float or not 0 < amount < math.inf:
        return None
    return Schedule(samples, unit, amount, steps)


def _counts(said: object) -> TypeGuard[int]:
    return type(said) is int and 1 <= said <= _MOST
