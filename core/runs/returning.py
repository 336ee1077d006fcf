"""Where a client comes back to whose connection was lost: the listener, heard in a thread."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable

from splitlab.core.contract.errors import LinkError, NetworkError, ProtocolError
from splitlab.core.contract.link import (
    DEFAULT_LIMITS,
    Link,
    SeverableLink,
    WrappedLink,
)
from splitlab.core.contract.message import Message
from splitlab.core.session.awaiting import Awaiting, Returned, Superseded, returns_to
from splitlab.core.session.protocol import HELLO_BYTES, number_of, tell

__all__ = ["Returning"]

_A_LOOK = 1.0
"""Seconds after which the thread looks whether it is to end."""
_A_WORD = 1.0


class Returning:
    """Hears, besides a session, who comes: its own client, on another connection, or others.

    Its own is known by the name of the session; the run that it began anew, after it was killed, by
    that of the run. Everybody else is told that this server has its client.

    Args:
        hear: of the listener where they come, a `PatientListener`.
        opening: seconds that somebody may take to say who it is.
        away: is told in a line of everybody who was turned away.
    """

    def __init__(
        self, hear: Callable[..., SeverableLink], opening: float, away: Callable[[str], None]
    ) -> None:
        self._hear_one = hear
        self._opening = opening
        self._away = away
        self._link: Awaiting | None = None
        self._run = ""
        self._news = threading.Condition()
        self._back: Returned | None = None
        self._anew: SeverableLink | None = None
        self._attempt = 0
        self._over = False
        self._thread: threading.Thread | None = None

    def begin(self, link: Awaiting, run: str) -> None:
        """Hear from now on who comes.

        Args:
            link: of the session.
            run: what the client's run is known by, however often it begins.
        """
        self._link, self._run = link, run
        self._attempt, self._over = 0, False
        self._thread = threading.Thread(target=self._hear, name="returning", daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> Returned | None:
        """Return the client's next connection, or None; `Superseded` if it began anew."""
        with self._news:
            self._news.wait_for(lambda: self._back or self._anew, seconds)
            back, self._back = self._back, None
            if back is None and self._anew is not None:
                anew, self._anew = self._anew, None
                raise Superseded(anew)
        return back

    def end(self) -> None:
        """Hear nobody any more, and let go who waits; the listener may be closed already."""
        self._over = True
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        for link in (self._back.link if self._back else None, self._anew):
            if link is not None:
                link.close()
        self._back = self._anew = None

    def _hear(self) -> None:
        limits = dataclasses.replace(DEFAULT_LIMITS, frame_bytes=HELLO_BYTES)
        while not self._over:
            began = time.monotonic()
            try:
                link = self._hear_one(
                    _A_LOOK, opening=self._opening, limits=limits, away=self._away
                )
            except NetworkError:
                if time.monotonic() - began < _A_LOOK / 2:
                    return  # the listener is closed
                continue
            try:
                self._look_at(link, link.receive(self._opening))
            except LinkError as error:
                self._refuse(link, error)

    def _look_at(self, link: SeverableLink, said: Message) -> None:
        """Take who has said this for what it is; `ProtocolError` if it does not belong here."""
        own, session = self._link, returns_to(said)
        assert own is not None
        if session is None:
            marks = said.meta.get("marks")
            if not isinstance(marks, dict) or marks.get("run") != self._run:
                raise ProtocolError("this server has its client; it takes one only")
            with self._news:
                other, self._anew = self._anew, _Heard(link, said)
                self._news.notify()
            if other is not None:
                other.close()
            if said.meta.get("session") == own.session:
                own.sever()  # this very client, which did not hear an answer
            return
        if not own.session or session != own.session:
            raise ProtocolError(
                "this server does not have that session, or has it no more; go on from the last "
                "checkpoint"
            )
        attempt, heard = number_of(said, "attempt") or 0, number_of(said, "heard") or 0
        if attempt <= self._attempt:
            link.close()  # it is late: the client has made another one since
            return
        self._attempt = attempt
        with self._news:
            before, self._back = self._back, Returned(link, heard)
            self._news.notify()
        if before is not None:
            before.link.close()
        own.sever()

    def _refuse(self, link: Link, error: LinkError) -> None:
        tell(link, error, _A_WORD)
        link.close()
        self._away(str(error) if link.remote in str(error) else f"{link.remote}: {error}")


class _Heard(WrappedLink):
    """A link whose next message was looked at already (a `SeverableLink`)."""

    inside: SeverableLink

    def __init__(self, inside: SeverableLink, message: Message) -> None:
        super().__init__(inside)
        self._message: Message | None = message

    def receive(self, timeout: float) -> Message:
        """Return that message, then those that follow."""
        message, self._message = self._message, None
        return super().receive(timeout) if message is None else message

    def sever(self) -> None:
        """End the connection at once."""
        self.inside.sever()
