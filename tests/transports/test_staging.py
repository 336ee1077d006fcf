"""Chunks between a device and a socket: what is copied when, and that nothing is used too early.

The device of these tests puts off every copy until somebody waits for it, as a GPU may.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from splitlab.core.contract.errors import ProtocolError
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.testing.links import a_message
from splitlab.core.testing.seen import Seen, difference
from splitlab.core.wire.decode import Reader
from splitlab.core.wire.encode import encode
from splitlab.core.wire.layout import flat
from splitlab.transports import staging as module
from splitlab.transports import tcp
from splitlab.transports.staging import CudaCopies, Staging
from splitlab.transports.tcp import Tcp, TcpLink

CPU = torch.device("cpu")
SOON = 20.0
gpu = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


class LazyMark:
    def __init__(self, device: LazyCopies) -> None:
        self.device = device
        self.number = device.started

    def synchronize(self) -> None:
        self.device.finish(self.number)


class LazyCopies:
    """A device in CPU memory that copies, in order, only what is waited for."""

    device = CPU

    def __init__(self) -> None:
        self.started = 0
        self.taken: list[int] = []
        self.most = 0
        self._waiting: list[tuple[torch.Tensor, torch.Tensor]] = []

    def pinned(self, size: int) -> torch.Tensor:
        self.taken.append(size)
        return torch.zeros(size, dtype=torch.uint8)

    def start(self, into: torch.Tensor, source: torch.Tensor) -> None:
        assert into.shape == source.shape
        assert into.dtype is source.dtype is torch.uint8
        self.started += 1
        self._waiting.append((into, source))
        self.most = max(self.most, len(self._waiting))

    def mark(self) -> LazyMark:
        return LazyMark(self)

    def finish(self, number: int) -> None:
        """Copy until so many have been copied."""
        while self.started - len(self._waiting) < number:
            into, source = self._waiting.pop(0)
            into.copy_(source)


@st.composite
def some_tensors(draw: st.DrawFn) -> list[torch.Tensor]:
    sizes = draw(st.lists(st.integers(1, 40), max_size=6))
    draws = draw(st.randoms())
    return [torch.tensor([*draws.randbytes(size)], dtype=torch.uint8) for size in sizes]


def joined(tensors: list[torch.Tensor]) -> bytes:
    return b"".join(bytes(flat(tensor.contiguous()).tolist()) for tensor in tensors)


@given(some_tensors(), st.integers(1, 50))
@settings(deadline=None)
def test_chunks_are_the_bytes_in_their_order(tensors: list[torch.Tensor], size: int) -> None:
    copies = LazyCopies()
    sent = [bytes(chunk) for chunk in Staging(copies, chunk_bytes=size).outgoing(tensors)]
    assert b"".join(sent) == joined(tensors)
    assert all(len(chunk) == size for chunk in sent[:-1])
    assert all(sent)
    assert copies.taken in ([], [size], [size] * 2)


def test_a_chunk_is_copied_while_the_one_before_is_sent() -> None:
    copies = LazyCopies()
    staging = Staging(copies, chunk_bytes=4)
    started = []
    for _ in staging.outgoing([torch.arange(10, dtype=torch.uint8)]):
        started.append(copies.started)
    assert started == [2, 3, 3]


def test_the_memory_is_that_of_the_frame_before() -> None:
    copies = LazyCopies()
    staging = Staging(copies, chunk_bytes=4)
    assert copies.taken == []
    for value in range(5):
        tensor = torch.full((11,), value, dtype=torch.uint8)
        assert b"".join(map(bytes, staging.outgoing([tensor]))) == bytes([value]) * 11
    assert copies.taken == [4, 4]


def a_stream(count: int) -> tuple[list[Message], bytes]:
    sent = []
    for step in range(count):
        message = a_message(step=step, loss=float(step))
        message.put("more", torch.full((3, 5), step, dtype=torch.int16), Role.SIDE)
        message.sent(encode(message).nbytes)
        sent.append(message)
    return sent, b"".join(b"".join(encode(message).buffers()) for message in sent)


@pytest.mark.parametrize("size", [1, 7, 64, 4096])
@pytest.mark.parametrize("pace", [1, 33, 1000])
def test_what_arrives_is_what_was_sent(size: int, pace: int) -> None:
    copies = LazyCopies()
    reader = Reader(land=Staging(copies, chunk_bytes=size).land)
    sent, raw = a_stream(4)
    arrived = []
    while raw:
        buffer = reader.buffer()
        count = min(len(buffer), len(raw), pace)
        buffer[:count], raw = raw[:count], raw[count:]
        message = reader.advance(count)
        while message is not None:
            arrived.append(message)
            message = reader.take()
    # Frames later, what was put off comes still from memory that nobody has filled anew.
    copies.finish(copies.started)
    assert difference(list(map(Seen.of, sent)), list(map(Seen.of, arrived))) is None
    assert copies.taken == [size, size]
    assert 1 <= copies.most <= 2, "as many as there are chunks"


def test_more_than_the_device_holds_is_the_other_ends_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(size: int, **more: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError(f"{size} bytes")

    staging = Staging(LazyCopies())
    monkeypatch.setattr("torch.empty", full)
    with pytest.raises(ProtocolError, match=r"999 bytes of tensors, more than .* on cpu"):
        staging.land(999)


# In a link. The lazy device takes what lies in CPU memory for its own.


@contextmanager
def both_ends(device: torch.device) -> Iterator[tuple[TcpLink, TcpLink, ThreadPoolExecutor]]:
    listener = Tcp().listen("tcp://127.0.0.1:0", device=device)
    with (
        closing(Tcp().connect(listener.address, device=device, timeout=SOON)) as client,
        closing(listener.accept(SOON)) as server,
        ThreadPoolExecutor(1) as aside,
    ):
        listener.close()
        yield client, server, aside


def large(device: torch.device, step: int) -> Message:
    """Three chunks, with tensors that lie across their ends, and a transposed one."""
    made = a_message(Kind.ACTIVATION, step).to(device)
    numbers = torch.arange(1_000_003, dtype=torch.int32, device=device) * (step + 1)
    made.put("a", numbers[:500_000], Role.SIDE)
    made.put("b", numbers[1:].view(-1, 2).t().to(torch.bfloat16), Role.PAYLOAD)
    made.put("c", numbers[-3:].to(torch.uint8), Role.TARGETS)
    return made


def test_a_link_takes_its_tensors_through_the_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    devices: list[LazyCopies] = []

    def lazy(device: torch.device) -> LazyCopies:
        assert device == torch.device("cuda", 5)
        devices.append(LazyCopies())
        return devices[-1]

    monkeypatch.setattr(tcp, "CudaCopies", lazy)
    with both_ends(torch.device("cuda", 5)) as (client, server, aside):
        for step in range(3):
            for sender, receiver in ((client, server), (server, client)):
                sent = large(CPU, step)
                sending = aside.submit(sender.send, sent, SOON)
                arrived = receiver.receive(SOON)
                assert sending.result() == arrived.frame_bytes == encode(large(CPU, step)).nbytes
                for device in devices:
                    device.finish(device.started)
                assert difference([Seen.of(sent)], [Seen.of(arrived)]) is None
        none = Message(Kind.CONTROL, meta={"do": "finish"})
        client.send(none, SOON)
        assert server.receive(SOON).meta == none.meta
    assert [device.taken for device in devices] == [[module.CHUNK_BYTES] * 4] * 2


def test_a_peer_on_the_cpu_stages_nothing() -> None:
    with both_ends(CPU) as (client, server, _):
        assert client._staging is server._staging is None


@gpu
@needs_gpu
def test_a_gpus_tensors_arrive_on_the_gpu() -> None:
    device = torch.device("cuda", 0)
    with both_ends(torch.device("cuda")) as (client, server, aside):
        for step in range(4):
            for sender, receiver in ((client, server), (server, client)):
                torch.cuda._sleep(5_000_000)  # the numbers are not there yet when they are sent
                sent = large(device, step)
                sending = aside.submit(sender.send, sent, SOON)
                arrived = receiver.receive(SOON)
                assert sending.result() == arrived.frame_bytes
                assert {arrived[name].device for name in arrived} == {device}
                assert difference([Seen.of(sent)], [Seen.of(arrived)]) is None
        # What lies elsewhere is sent all the same.
        mixed = large(device, 1)
        mixed.put("targets", torch.arange(3), Role.TARGETS)
        client.send(a_message(), SOON)
        sending = aside.submit(client.send, mixed, SOON)
        first, second = server.receive(SOON).to(CPU), server.receive(SOON)
        sending.result()
        assert difference([Seen.of(mixed.to(CPU))], [Seen.of(second.to(CPU))]) is None
        assert first["activations"].shape == (4, 3)


@gpu
@needs_gpu
def test_chunks_lie_in_page_locked_memory() -> None:
    copies = CudaCopies(torch.device("cuda"))
    assert copies.device == torch.device("cuda", torch.cuda.current_device())
    assert copies.pinned(10).is_pinned()
    device = torch.arange(10, dtype=torch.uint8, device="cuda")
    [chunk] = Staging(copies).outgoing([device])
    assert chunk.tolist() == [*range(10)]
