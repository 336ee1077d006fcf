"""Both peers in one process: real frames, no socket.

What one end sends is encoded, copied into fresh memory and decoded at the other end, so the peers
share no tensor and the frames are those of every other transport.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from splitlab.core.contract.errors import NetworkError
from splitlab.core.contract.link import DEFAULT_LIMITS, Limits
from splitlab.core.contract.message import Message
from splitlab.core.wire.decode import decode
from splitlab.core.wire.encode import Frame, encode

__all__ = ["InProcess"]


class InProcess:
    """Makes both ends of a link in this process (an `InsideTransport`)."""

    place: Literal["inside"] = "inside"

    def unavailable(self) -> str | None:
        """Return None: it works everywhere."""
        return None

    def pair(self, serve: Callable[[], object] | None = None) -> tuple[PairLink, PairLink]:
        """Return (client end, server end).

        Args:
            serve: lets the server take one turn (receive one message, send the answer), inside of
                the client's `receive`. Without it each end belongs to a thread of its own.
        """
        up, down = _Pipe(), _Pipe()
        return (
            PairLink("the server in this process", inbox=down, outbox=up, serve=serve),
            PairLink("the client in this process", inbox=up, outbox=down),
        )


class PairLink:
    """One end of the link (a `splitlab.core.contract.link.Link`)."""

    def __init__(
        self,
        remote: str,
        *,
        inbox: _Pipe,
        outbox: _Pipe,
        serve: Callable[[], object] | None = None,
    ) -> None:
        self.limits: Limits = DEFAULT_LIMITS
        self.remote = remote
        self._inbox = inbox
        self._outbox = outbox
        self._serve = serve

    def send(self, message: Message, timeout: float) -> int:
        """Send without waiting: only memory bounds what is in flight."""
        frame = encode(message)
        message.sent(frame.nbytes)
        if not self._outbox.put(frame):
            raise NetworkError(f"{self.remote}: the other end closed the connection")
        return frame.nbytes

    def receive(self, timeout: float) -> Message:
        """Return the next message; first let the server take its turns until it has answered."""
        deadline = time.monotonic() + timeout
        while self._serve and self._outbox and not self._inbox and time.monotonic() < deadline:
            self._serve()
        # In one thread nothing can arrive while we wait.
        patience = 0.0 if self._serve else timeout
        arrived = self._inbox.get(patience)
        if arrived is None:
            reason = "closed the connection" if self._inbox.closed else "sent nothing"
            raise NetworkError(f"{self.remote}: the other end {reason}")
        return decode(*arrived, self.limits)

    def close(self) -> None:
        """Close both directions; what was sent before can still be received."""
        self._inbox.close()
        self._outbox.close()


class _Pipe:
    """One direction: frames in flight."""

    def __init__(self) -> None:
        self.closed = False
        self._frames: deque[tuple[bytes, bytearray]] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Frame) -> bool:
        """Append a copy of the frame; return whether the pipe is open."""
        data = bytearray().join(frame.buffers()[1:])
        with self._changed:
            if not self.closed:
                self._frames.append((frame.head, data))
                self._changed.notify()
            return not self.closed

    def get(self, timeout: float) -> tuple[bytes, bytearray] | None:
        """Return the oldest frame, or None if none came in time or can come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self.closed, timeout)
            return self._frames.popleft() if self._frames else None

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()
