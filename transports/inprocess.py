"""Both peers in one process: real frames, no socket.

What one end sends is encoded, copied into fresh memory and decoded at the other end, so the peers
share no tensor and the frames are those of every other transport. Only the bytes of tensors on a
GPU stay there, without a checksum: they are copied from one place of its memory to another, in the
order of its other work, while nobody waits. A receiver that computes on another GPU fetches them
from there.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch

from splitlab.core.contract.errors import NetworkError
from splitlab.core.contract.link import DEFAULT_LIMITS, Limits
from splitlab.core.contract.message import Message
from splitlab.core.wire.decode import assemble, decode, parse_header, parse_opening
from splitlab.core.wire.encode import Frame, encode
from splitlab.core.wire.layout import OPENING_BYTES

__all__ = ["InProcess"]


class InProcess:
    """Makes both ends of a link in this process (an `InsideTransport`).

    Args:
        real_bytes: whether tensors on a GPU go through CPU memory too, as bytes of a whole frame:
            slower, the same results; it shows whether a fault is one of the copies on the GPU.
    """

    place: Literal["inside"] = "inside"

    def __init__(self, *, real_bytes: bool = False) -> None:
        self._copy: _CopyFrame = _Bytes.of if real_bytes else _copy

    def unavailable(self) -> str | None:
        """Return None: it works everywhere."""
        return None

    def pair(self, serve: Callable[[], object] | None = None) -> tuple[PairLink, PairLink]:
        """Return (client end, server end).

        Args:
            serve: lets the server take one turn (receive one message, send the answer), inside of
                the client's `receive`. Without it each end belongs to a thread of its own.
        """
        up, down = _Pipe(self._copy), _Pipe(self._copy)
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
        return arrived.message(self.limits)

    def close(self) -> None:
        """Close both directions; what was sent before can still be received."""
        self._inbox.close()
        self._outbox.close()


class _Bytes(NamedTuple):
    """A frame as bytes in CPU memory."""

    head: bytes
    data: bytearray

    @classmethod
    def of(cls, frame: Frame) -> _Bytes:
        """Copy the frame, from whatever device its tensors are on."""
        return cls(frame.head, bytearray().join(frame.buffers()[1:]))

    def message(self, limits: Limits) -> Message:
        """Decode it; the tensors view the data."""
        return decode(self.head, self.data, limits)


class _Copies(NamedTuple):
    """A frame whose tensors stay on their devices.

    Attributes:
        head: opening and header.
        tensors: the copies, in the order of the layout.
        streams: by GPU, where its copies were started.
    """

    head: bytes
    tensors: list[torch.Tensor]
    streams: dict[torch.device, torch.cuda.Stream]

    @classmethod
    def of(cls, frame: Frame) -> _Copies:
        """Start to copy the tensors, each on its device, behind the work that made it."""
        # data: as those of other frames, tensors are no views for autograd.
        copies = [tensor.data.clone() for tensor in frame.tensors]
        gpus = {copy.device for copy in copies if copy.is_cuda}
        return cls(frame.head, copies, {gpu: torch.cuda.current_stream(gpu) for gpu in gpus})

    def message(self, limits: Limits) -> Message:
        """Check and decode the head; the tensors are the copies."""
        opening = parse_opening(self.head[:OPENING_BYTES], limits)
        header = parse_header(self.head[OPENING_BYTES:], opening, limits)
        self._wait()
        full = [slot for slot in header.slots if slot.end > slot.begin]
        full.sort(key=lambda slot: slot.begin)
        found = {slot.name: copy for slot, copy in zip(full, self.tensors, strict=True)}
        device = next(copy.device for copy in self.tensors if _stays(copy))
        for slot in header.slots:
            if slot.name not in found:
                found[slot.name] = torch.empty(slot.shape, dtype=slot.dtype, device=device)
        return assemble(opening, header, [found[slot.name] for slot in header.slots])

    def _wait(self) -> None:
        """Let what this thread computes next on a GPU wait until the copies are done."""
        for device, theirs in self.streams.items():
            ours = torch.cuda.current_stream(device)
            if ours == theirs:
                continue  # what is started in one stream is done in order
            ours.wait_stream(theirs)
            for copy in self.tensors:
                if copy.device == device:
                    # The memory belongs to the sender's stream, which must not take it back early.
                    copy.record_stream(ours)


_CopyFrame = Callable[[Frame], _Bytes | _Copies]


def _copy(frame: Frame) -> _Bytes | _Copies:
    return (_Copies if any(map(_stays, frame.tensors)) else _Bytes).of(frame)


def _stays(tensor: torch.Tensor) -> bool:
    return not tensor.is_cpu


class _Pipe:
    """One direction: frames in flight."""

    def __init__(self, copy: _CopyFrame) -> None:
        self.closed = False
        self._copy = copy
        self._frames: deque[_Bytes | _Copies] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Frame) -> bool:
        """Append a copy of the frame; return whether the pipe is open."""
        copy = self._copy(frame)
        with self._changed:
            if not self.closed:
                self._frames.append(copy)
                self._changed.notify()
            return not self.closed

    def get(self, timeout: float) -> _Bytes | _Copies | None:
        """Return the oldest frame, or None if none came in time or can come any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._frames or self.closed, timeout)
            return self._frames.popleft() if self._frames else None

    def close(self) -> None:
        with self._changed:
            self.closed = True
            self._changed.notify_all()
