"""Page-locked memory between a GPU and a socket: while one chunk is on the wire, another is copied.

All copies go to the current stream of the device, behind what computed a tensor that is sent and
before what computes with one that has arrived; no stream of our own has to be waited for. The host
waits for a chunk that it is about to send, and before it fills one whose copy to the GPU may not be
done yet; never for anything else.

`Staging` is the order of copies and waits and knows no GPU; `Copies` is what it needs of one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import torch

from splitlab.core.contract.errors import ProtocolError
from splitlab.core.wire.layout import Slot, flat

__all__ = ["Copies", "CudaCopies", "Mark", "Staging"]

# Large enough that its copy costs more than starting it and waiting for it, small enough that the
# first chunk of a frame, which nothing hides, is a small part of it.
CHUNK_BYTES: Final = 2**21
_CHUNKS: Final = 2


class Mark(Protocol):
    """A point in the order of a device's work."""

    def synchronize(self) -> None:
        """Wait until everything before it is done."""
        ...


class Copies(Protocol):
    """What a device can do for `Staging`.

    Attributes:
        device: where tensors are sent from and arrive.
    """

    device: torch.device

    def pinned(self, size: int) -> torch.Tensor:
        """Return page-locked CPU memory, flat, uint8."""
        ...

    def start(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """Copy between such memory and the device behind the work that was started before.

        A source in CPU memory that is not page-locked has been copied on return.
        """
        ...

    def mark(self) -> Mark:
        """Return the point behind all that was started so far."""
        ...


class CudaCopies:
    """Copies on the current stream of a GPU (a `Copies`)."""

    def __init__(self, device: torch.device) -> None:
        self.device = torch.empty(0, device=device).device  # with its number

    def pinned(self, size: int) -> torch.Tensor:
        """Return page-locked memory; torch gives it back when no copy uses it any more."""
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def start(self, into: torch.Tensor, source: torch.Tensor) -> None:
        """Put the copy into the stream."""
        into.copy_(source, non_blocking=True)

    def mark(self) -> torch.cuda.Event:
        """Put an event into the stream."""
        event: torch.cuda.Event = torch.cuda.current_stream(self.device).record_event()
        return event


class Staging:
    """Takes tensors to and from a device in chunks; each direction has memory of its own.

    The memory is taken when the first tensor needs it, and used again for every frame.
    """

    def __init__(self, copies: Copies, *, chunk_bytes: int = CHUNK_BYTES) -> None:
        self._copies = copies
        self._chunk_bytes = chunk_bytes
        self._outgoing = _Ring(copies, chunk_bytes)
        self._incoming = _Ring(copies, chunk_bytes)

    def serves(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Return whether any of them is on the device."""
        return any(tensor.device == self._copies.device for tensor in tensors)

    def outgoing(self, tensors: Iterable[torch.Tensor]) -> Iterator[memoryview]:
        """Yield the bytes of contiguous tensors, one behind the other.

        Every chunk must be sent before the next is asked for: its memory is used again.
        """
        started = self._started(tensors)
        ready = next(started, None)
        while ready is not None:
            chunk, mark = ready
            ready = next(started, None)  # copied while this one is sent
            mark.synchronize()
            yield chunk

    def _started(self, tensors: Iterable[torch.Tensor]) -> Iterator[tuple[memoryview, Mark]]:
        """Start the copy of a chunk for each one that is asked for."""
        for pieces in _cut(map(self._near, tensors), self._chunk_bytes):
            chunk = self._outgoing.take()
            begin = 0
            for piece in pieces:
                self._copies.start(chunk.memory[begin : begin + len(piece)], piece)
                begin += len(piece)
            mark = chunk.copied = self._copies.mark()
            yield chunk.view[:begin], mark

    def land(self, size: int) -> Arrival:
        """Return where the tensors of a frame arrive, of so many bytes in all."""
        return Arrival(self._copies, self._incoming, size)

    def _near(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return its bytes; those of a third device come to the CPU first."""
        near = tensor.is_cpu or tensor.device == self._copies.device
        return flat(tensor if near else tensor.cpu())


class Arrival:
    """One allocation on the device, filled by way of the chunks (a `Landing` of the wire)."""

    def __init__(self, copies: Copies, ring: _Ring, size: int) -> None:
        self._copies = copies
        self._ring = ring
        try:
            self._data = torch.empty(size, dtype=torch.uint8, device=copies.device)
        except RuntimeError:
            raise ProtocolError(
                f"the other end's frame declares {size} bytes of tensors, more than can be "
                f"allocated on {copies.device}"
            ) from None

    def pieces(self) -> Iterator[memoryview]:
        """Yield chunks; each goes up to the device while the next is filled."""
        for part in _split(self._data, self._ring.chunk_bytes):
            chunk = self._ring.take()
            yield chunk.view[: len(part)]
            self._copies.start(part, chunk.memory[: len(part)])
            chunk.copied = self._copies.mark()

    def tensor(self, slot: Slot) -> torch.Tensor:
        """Return a view of the allocation; whatever the current stream does next finds it there."""
        return slot.in_tensor(self._data)


class _Chunk:
    """Page-locked memory, and behind which copy it is free."""

    def __init__(self, memory: torch.Tensor) -> None:
        self.memory = memory
        self.view = memory.numpy().data
        self.copied: Mark | None = None


class _Ring:
    """Chunks, taken in turn."""

    def __init__(self, copies: Copies, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self._copies = copies
        self._chunks: list[_Chunk] = []

    def take(self) -> _Chunk:
        """Return the chunk whose turn is longest ago, when its copy is done."""
        if len(self._chunks) < _CHUNKS:
            chunk = _Chunk(self._copies.pinned(self.chunk_bytes))
        else:
            chunk = self._chunks.pop(0)
        if chunk.copied is not None:
            chunk.copied.synchronize()
        self._chunks.append(chunk)
        return chunk


def _cut(tensors: Iterable[torch.Tensor], size: int) -> Iterator[list[torch.Tensor]]:
    """Yield lists of pieces of flat tensors, each of ``size`` bytes in all, the last less."""
    pieces: list[torch.Tensor] = []
    room = size
    for tensor in tensors:
        for piece in tensor[:room], *_split(tensor[room:], size):
            pieces.append(piece)
            room -= len(piece)
            if not room:
                yield pieces
                pieces, room = [], size
    if pieces:
        yield pieces


def _split(tensor: torch.Tensor, size: int) -> list[torch.Tensor]:
    """Return its pieces of ``size`` bytes, the last less; none of a tensor without any."""
    return [tensor[begin : begin + size] for begin in range(0, len(tensor), size)]
