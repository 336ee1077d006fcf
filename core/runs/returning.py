"""Where a client comes back to whose connection was lost: the listener, heard in a thread."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable
from contextlib import suppress

from splitlab.core.contract.errors import LinkError, NetworkError, ProtocolError, SplitlabError
from splitlab.core.contract.link import (
    DEFAULT_LIMITS,
    Link,
    SeverableLink,
    WrappedLink,
)
from splitlab.core.contract.message import Message
from splitlab.core.session.awaiting import Awaiting, Returned, Superseded, returns_to
from splitlab.core.session.protocol import ENDED, HELLO_BYTES, NO_SESSION, number_of, tell

__all__ = ["Returning"]

_A_LOOK = 1.0
"""Seconds after which the thread looks whether it is to end."""
_A_WORD = 1.0
_A_PAUSE = 0.02


class Returning:
    """Hears, besides a session, who comes: its own client, on another connection, or others.

    Its own is known by the name of the session; the run that it began anew, after it was killed, by
    that of the run. Everybody else is told that this server has its client.

    Args:
        hear: of the listener where they come, a `PatientListener`.
        opening: seconds that somebody may take to say who it is.
        away: is told in a line of everybody who was turned away.

    Attributes:
        hears: whether it has begun to; from then on nobody else may.
    """

    def __init__(
        self, hear: Callable[..., SeverableLink], opening: float, away: Callable[[str], None]
    ) -> None:
        self.hears = False
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
        self._thread = threading.Thread(target=self._hear, name="returning", daemon=True)

    def begin(self, link: Awaiting, run: str) -> None:
        """Hear from now on who comes besides a session.

        Args:
            link: of the session.
            run: what the client's run is known by, however often it begins.
        """
        with self._news:
            self._link, self._run, self._attempt = link, run, 0
        if not self.hears:
            self.hears = True
            self._thread.start()

    def pause(self) -> None:
        """Forget the session: whoever comes may begin another one."""
        with self._news:
            back, self._back, self._link = self._back, None, None
        if back is not None:
            back.link.close()

    def wait(self, seconds: float) -> Returned | None:
        """Return the client's next connection, or None; `Superseded` if it began anew."""
        with self._news:
            self._news.wait_for(lambda: self._back or self._anew, seconds)
            if self._back is None and self._anew is not None:
                anew, self._anew = self._anew, None
                raise Superseded(anew)
        return self.back()

    def back(self) -> Returned | None:
        """Return the client's next connection if it is there."""
        with self._news:
            back, self._back = self._back, None
        return back

    def next(self, seconds: float) -> SeverableLink | None:
        """Return the link to who came to begin a session, or None."""
        with self._news:
            self._news.wait_for(lambda: self._anew, seconds)
            anew, self._anew = self._anew, None
        return anew

    def end(self, close: Callable[[], None], error: SplitlabError | None = None) -> None:
        """Hear nobody any more, and let go who waits.

        Args:
            close: the listener.
            error: why this server ends, which who waits is told.
        """
        self._over = True
        close()
        if self.hears:
            self._thread.join()
        back = self.back()
        for link in (back.link if back else None, self.next(0.0)):
            if link is not None:
                tell(link, error or ProtocolError(ENDED), _A_WORD)
                link.close()

    def _hear(self) -> None:
        limits = dataclasses.replace(DEFAULT_LIMITS, frame_bytes=HELLO_BYTES)
        while not self._over:
            try:
                link = self._hear_one(
                    _A_LOOK, opening=self._opening, limits=limits, away=self._tell_of
                )
            except NetworkError:
                time.sleep(_A_PAUSE)  # nobody came, or the listener fails; `end` closes it
                continue
            try:
                self._look_at(link, link.receive(self._opening))
            except LinkError as error:
                self._refuse(link, error)

    def _look_at(self, link: SeverableLink, said: Message) -> None:
        """Take who has said this for what it is; `ProtocolError` if it does not belong here."""
        with self._news:
            own, run = self._link, self._run
        session = returns_to(said)
        if session is None:
            if own is not None and said.meta.get("session") == own.session:
                self._greet_again(link, own)
            else:
                self._begin_anew(link, said, own, run)
            return
        if own is None or not own.session or session != own.session:
            raise ProtocolError(NO_SESSION)
        attempt, heard = number_of(said, "attempt") or 0, number_of(said, "heard") or 0
        if heard:
            self._take(Returned(link, heard), own, attempt)
        else:
            link.close()  # it was never answered here

    def _begin_anew(
        self, link: SeverableLink, said: Message, own: Awaiting | None, run: str
    ) -> None:
        """Keep somebody who begins a session until the server is free."""
        if own is not None:
            marks = said.meta.get("marks")
            if not isinstance(marks, dict) or marks.get("run") != run or not said.number:
                raise ProtocolError("this server has its client; it takes one only")
            if not own.away:
                raise ProtocolError(
                    "this server takes one client only, and that of this run is connected; try "
                    "again when it is gone"
                )
        with self._news:
            other, self._anew = self._anew, _Heard(link, said)
            self._news.notify()
        if other is not None:
            other.close()

    def _greet_again(self, link: SeverableLink, own: Awaiting) -> None:
        """Take a client that says its first HELLO again, unless it is known to have the answer."""
        if own.heard == 1:
            self._take(Returned(link, 0), own, None)
        else:
            link.close()

    def _take(self, back: Returned, own: Awaiting, attempt: int | None) -> None:
        """Hand a connection over, if it is not late: the client has made another one since.

        Args:
            back: the connection.
            own: the session's end when its client was heard.
            attempt: the client's count of its connections; a first HELLO says none.
        """
        with self._news:
            late = self._link is not own or (attempt is not None and attempt <= self._attempt)
            if late:
                gone: Returned | None = back
            else:
                gone, self._back = self._back, back
                self._attempt = self._attempt if attempt is None else attempt
                self._news.notify()
        if gone is not None:
            gone.link.close()
        if not late:
            own.sever()

    def _refuse(self, link: Link, error: LinkError) -> None:
        tell(link, error, _A_WORD)
        self._tell_of(str(error) if link.remote in str(error) else f"{link.remote}: {error}")
        link.close()

    def _tell_of(self, line: str) -> None:
        """Say who was turned away, if anybody can be told: this must go on in any case."""
        with suppress(Exception):
            self._away(line)


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
