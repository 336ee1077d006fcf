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
from splitlab.core.session.awaiting import Superseded
from splitlab.core.session.protocol import (
    ENDED,
    HELLO_BYTES,
    LEAST_SECONDS,
    MARKS,
    MOST_SECONDS,
    MOST_STEPS,
    NO_SESSION,
    PROTOCOL,
    Agreement,
    compare,
    ended,
    frame_limit,
    names_a_run,
    seconds_of,
    tell,
)
from splitlab.core.session.states import State, Steps, Word, after, refused, word_of

__all__ = ["ServerSession"]


_STEPS = re.compile("([0-9]{1,19}( [0-9]{1,19})*)?")
_SESSION = re.compile("[0-9a-f]{32}")


class ServerSession:
    """The server's side of one link.

    Args:
        link: to the client.
        agreement: what must be equal at both peers.
        batch_bytes: size of one uncompressed batch, from which the frame limit follows.
        timeout: seconds of silence after which the client counts as gone.
        waits: seconds that a client may take to come back whose connection is lost, where the link
            allows for it; the client is told.
        resume: called with run name, step and marks after the handshake; loads the server's state.
        save: called with the step and the older ones to keep; writes the server's checkpoint.
        measured: called after every training step that has metrics, with its number from 1.

    Attributes:
        run: what the client's run is known by, in all its sessions; empty before the handshake.
        steps: that were trained here.
        resumed: whether ``resume`` was called.
    """

    def __init__(
        self,
        link: Link,
        server: Server,
        agreement: Agreement,
        *,
        batch_bytes: int,
        timeout: float,
        waits: float = 0.0,
        resume: Callable[[str, int, Mapping[str, str]], None],
        save: Callable[[int, list[int]], None],
        measured: Callable[[int], None] = lambda step: None,
    ) -> None:
        self._link = link
        self._server = server
        self._agreement = agreement
        self._batch_bytes = batch_bytes
        self._timeout = timeout
        self._waits = waits
        self._resume = resume
        self._save = save
        self._measured = measured
        self._state = State.NEW
        self._numbers = Steps()
        self.run = ""
        self.steps = 0
        self.resumed = False
        link.limits = dataclasses.replace(link.limits, frame_bytes=HELLO_BYTES)

    def turn(self, timeout: float | None = None) -> bool:
        """Receive one message and send the answer; returns False after an answered goodbye.

        Args:
            timeout: seconds of silence, where they are others than the session's.

        Raises:
            SplitlabError: something is wrong; the client has been told.
        """
        try:
            message = self._link.receive(self._timeout if timeout is None else timeout)
            if word_of(message, "client") is Word.BYE and self._state is State.PARTED:
                self._state = State.OVER
                return False
            started = time.perf_counter_ns()
            answer = self._answer(message)
            answer.elapsed_ns = time.perf_counter_ns() - started
            self._link.send(answer, self._timeout)
        except NetworkError:
            self._state = State.FAILED
            raise  # nobody can be told
        except Exception as error:
            self._state = State.FAILED
            tell(self._link, error, min(self._timeout, 5.0))
            raise
        return self._state not in (State.PARTED, State.OVER)

    def part(self, timeout: float) -> None:
        """Wait until the client has heard the answer to its goodbye, but no longer than this."""
        try:
            self.turn(timeout)
        except Superseded as other:
            tell(other.link, ProtocolError(ENDED), min(timeout, 5.0))
            other.link.close()
        except LinkError:
            pass  # it has gone without a word

    def _answer(self, message: Message) -> Message:
        """Take a message through the state table, and the answer, too."""
        word, state = word_of(message, "client"), self._state
        then = after(state, word, "client")
        if then is not None and word is Word.ERROR:
            raise ended(message, "the client", LinkError)
        if then is None:
            raise refused(self._link.remote, message, state, "client")
        self._check_number(word, message)
        answer = self._act(word, message)
        said = word_of(answer, "server")
        done = after(then, said, "server")
        if done is None:
            raise refused("this server", answer, then, "server")
        self._state = done
        self._numbers.done(said, message.step)
        if said is Word.TRAINED:
            self.steps += 1
            if self._server.metrics:
                self._measured(message.step + 1)
        return answer

    def _check_number(self, word: Word, message: Message) -> None:
        if word in (Word.HELLO, Word.MORE):
            return  # what is open is looked up by its number
        due = self._numbers.due(word)
        if message.step in due:
            return
        if word in (Word.SAVE, Word.FINISH):
            raise ProtocolError(
                f"{self._link.remote} asks to {message.meta['do']} after step {message.step}, "
                f"and {due[0]} are trained"
            )
        training = word is not Word.QUERY and message.training
        raise ProtocolError(
            f"{self._link.remote} sent {message.kind.name} of {message.when}, "
            f"and {' or '.join(when(number, training) for number in due)} is due"
        )

    def _act(self, word: Word, message: Message) -> Message:
        """Do what a message says, and return the answer."""
        if word is Word.HELLO:
            return self._hello(message)
        if word not in (Word.SAVE, Word.FINISH):
            return self._server.handle(message)
        self._server.settle()
        if word is Word.FINISH:
            return Message(Kind.CONTROL, message.step, meta={"did": "finished"})
        keep = message.meta.get("keep", "")
        if not isinstance(keep, str) or not _STEPS.fullmatch(keep):
            raise ProtocolError(f"{self._link.remote} asks to keep {keep!r:.200}")
        self._save(message.step, [int(step) for step in keep.split()])
        return Message(Kind.CONTROL, message.step, meta={"did": "saved"})

    def _hello(self, message: Message) -> Message:
        meta = message.meta
        if "heard" in meta:
            raise ProtocolError(NO_SESSION)
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
            or not 0 <= step <= MOST_STEPS
            or message.step
            or not isinstance(session := meta.get("session"), str)
            or not _SESSION.fullmatch(session)
            or not LEAST_SECONDS <= seconds_of(message, "timeout", 0.0) <= MOST_SECONDS
            or not isinstance(marks, dict)
            or not all(isinstance(value, str) for value in marks.values())
            or not marks.keys() >= set(MARKS)
        ):
            raise ProtocolError(f"{self._link.remote} sent a malformed HELLO")
        schedule = _schedule(meta.get("schedule"))
        if schedule is None and "schedule" in meta:
            raise ProtocolError(f"{self._link.remote} sent a malformed HELLO")
        compare(theirs, self._agreement)
        if not names_a_run(run):
            raise ProtocolError(
                f"the client's name for the run, {run!r:.220}, cannot name a folder; it is a line "
                "of 1 to 200 characters without slashes"
            )
        if schedule is not None:
            self._server.peer.schedule = schedule
        self.run = marks["run"]
        self.resumed = True
        self._resume(run, step, marks)
        self._numbers = Steps(step)
        self._link.limits = dataclasses.replace(
            self._link.limits, frame_bytes=frame_limit(self._batch_bytes)
        )
        said = {"protocol": PROTOCOL, "timeout": self._timeout, "waits": self._waits}
        return Message(Kind.HELLO, meta=said)


def _schedule(said: object) -> Schedule | None:
    """Return what a HELLO says of how long the run is to last; None if it makes no sense."""
    if not isinstance(said, dict) or {"steps", *said} != {*Schedule.__dataclass_fields__}:
        return None
    samples, unit, amount, steps = (said.get(name) for name in Schedule.__dataclass_fields__)
    if not (_counts(samples) and (steps is None or _counts(steps))):
        return None
    if type(amount) is int:
        amount = float(amount) if amount <= MOST_STEPS else math.inf
    if not isinstance(unit, str) or type(amount) is not float or not 0 < amount < math.inf:
        return None
    return Schedule(samples, unit, amount, steps)


def _counts(said: object) -> TypeGuard[int]:
    return type(said) is int and 1 <= said <= MOST_STEPS
