"""What is special about TCP: the kernel's counts, and streams that stop, drip or lie."""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from splitlab.core.contract.errors import NetworkError, ProtocolError
from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.wire.encode import encode
from splitlab.transports.tcp import Tcp, TcpLink

CPU = torch.device("cpu")
SOON = 20.0


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def link_and_stranger() -> Iterator[tuple[TcpLink, socket.socket]]:
    """A link whose other end is a bare socket."""
    listener = Tcp().listen("tcp://127.0.0.1:0", device=CPU)
    host, _, port = listener.address.removeprefix("tcp://").partition(":")
    stranger = socket.create_connection((host, int(port)), 5)
    link = listener.accept(SOON)
    listener.close()
    yield link, stranger
    link.close()
    stranger.close()


def message(size: int, step: int = 0) -> Message:
    made = Message(Kind.ACTIVATION, step, meta={"loss": 1 / (step + 1)})
    made.put("activations", torch.arange(size, dtype=torch.float32), Role.PAYLOAD)
    made.put("targets", torch.arange(3), Role.TARGETS)
    return made


def raw(sent: Message) -> bytes:
    return b"".join(encode(sent).buffers())


def kernel_counts(link: TcpLink) -> tuple[int, int]:
    """Bytes (sent, received) by ``struct tcp_info`` of linux/tcp.h, without retransmissions."""
    info = link._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
    sent, again = struct.unpack_from("=QQ", info, 200)
    [received] = struct.unpack_from("=Q", info, 128)
    return sent - again, received


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's struct tcp_info")
def test_the_kernel_counts_the_same_bytes(aside: ThreadPoolExecutor) -> None:
    listener = Tcp().listen("tcp://127.0.0.1:0", device=CPU)
    connecting = aside.submit(Tcp().connect, listener.address, device=CPU, timeout=SOON)
    server, client = listener.accept(SOON), connecting.result()
    listener.close()
    up = down = 0
    for step, size in enumerate([0, 1, 10_000, 1_000_000]):
        sending = aside.submit(client.send, message(size, step), SOON)
        arrived = server.receive(SOON)
        up += sending.result()
        assert arrived.frame_bytes == sending.result()
        sending = aside.submit(server.send, message(size // 2, step), SOON)
        client.receive(SOON)
        down += sending.result()
    assert kernel_counts(client) == (up, down)
    assert kernel_counts(server) == (down, up)
    client.close()
    server.close()


def test_more_tensors_than_one_call_can_take(aside: ThreadPoolExecutor) -> None:
    many = Message(Kind.ACTIVATION)
    for index in range(1024):
        many.put(str(index), torch.full((2,), index), Role.SIDE)
    listener = Tcp().listen("tcp://127.0.0.1:0", device=CPU)
    client = Tcp().connect(listener.address, device=CPU, timeout=SOON)
    server = listener.accept(SOON)
    listener.close()
    sending = aside.submit(client.send, many, SOON)
    arrived = server.receive(SOON)
    sending.result()
    assert [int(arrived[name][1]) for name in arrived] == [*range(1024)]
    client.close()
    server.close()


@pytest.mark.parametrize("host", ["[::1]", "localhost"])
def test_hosts_by_name_and_by_number(host: str) -> None:
    try:
        listener = Tcp().listen(f"tcp://{host}:0", device=CPU)
    except NetworkError as error:
        pytest.skip(str(error))
    assert listener.address.startswith(f"tcp://{host}:")
    client = Tcp().connect(listener.address, device=CPU, timeout=SOON)
    server = listener.accept(SOON)
    listener.close()
    assert client.remote == listener.address
    assert server.remote.startswith("tcp://[::1]:" if "::1" in host else "tcp://")
    client.send(message(10), SOON)
    assert server.receive(SOON).frame_bytes == encode(message(10)).nbytes
    client.close()
    server.close()


def test_loopback_is_not_reached_from_outside() -> None:
    listener = Tcp().listen("tcp://127.0.0.1:0", device=CPU)
    assert listener._socket.getsockname()[0] == "127.0.0.1"
    listener.close()


def test_pieces_that_drip_are_put_together(
    link_and_stranger: tuple[TcpLink, socket.socket],
) -> None:
    link, stranger = link_and_stranger
    data = raw(message(5))

    def drip() -> None:
        for start in range(0, len(data), 40):
            time.sleep(0.05)
            stranger.sendall(data[start : start + 40])

    dripping = threading.Thread(target=drip)
    dripping.start()
    # Shorter than the whole takes: the deadline is that of a silence.
    assert len(link.receive(0.2)["activations"]) == 5
    dripping.join()


def test_messages_in_one_packet_come_apart(
    link_and_stranger: tuple[TcpLink, socket.socket],
) -> None:
    link, stranger = link_and_stranger
    stranger.sendall(raw(message(3, 1)) + raw(message(4, 2)))
    assert [len(link.receive(SOON)["activations"]) for _ in range(2)] == [3, 4]


class Counting:
    """A socket that counts how often it is read."""

    def __init__(self, inside: socket.socket) -> None:
        self.inside = inside
        self.reads = 0

    def recv_into(self, buffer: memoryview) -> int:
        self.reads += 1
        return self.inside.recv_into(buffer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inside, name)


def test_small_messages_cost_one_read(
    link_and_stranger: tuple[TcpLink, socket.socket],
) -> None:
    link, stranger = link_and_stranger
    counting: Any = Counting(link._socket)
    link._socket = counting
    for step in range(3):
        stranger.sendall(raw(message(16, step)))
        assert link.receive(SOON).step == step
        assert counting.reads == step + 1
    stranger.sendall(raw(message(16, 3)) + raw(message(16, 4)))
    assert [link.receive(SOON).step for _ in range(2)] == [3, 4]
    assert counting.reads == 4


def test_limits_are_those_of_when_a_message_is_taken(
    link_and_stranger: tuple[TcpLink, socket.socket],
) -> None:
    link, stranger = link_and_stranger
    size = len(raw(message(16)))
    stranger.sendall(raw(message(16)) * 2)
    link.limits = Limits(frame_bytes=size)
    assert link.receive(SOON).frame_bytes == size
    link.limits = Limits(frame_bytes=size - 1)
    with pytest.raises(ProtocolError, match=r"frame_bytes"):
        link.receive(SOON)


@pytest.mark.parametrize("sent", [0, 20, 100, 250])
def test_a_frame_that_stops_ends_by_the_deadline(
    link_and_stranger: tuple[TcpLink, socket.socket], sent: int
) -> None:
    link, stranger = link_and_stranger
    stranger.sendall(raw(message(50))[:sent])
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"the other end sent nothing for 0.2 s"):
        link.receive(0.2)
    assert time.monotonic() - start < 1


@pytest.mark.parametrize("sent", [0, 20, 100, 250])
def test_a_frame_that_breaks_off_is_a_closed_connection(
    link_and_stranger: tuple[TcpLink, socket.socket], sent: int
) -> None:
    link, stranger = link_and_stranger
    stranger.sendall(raw(message(50))[:sent])
    stranger.close()
    with pytest.raises(NetworkError, match="the other end closed the connection"):
        link.receive(SOON)


def test_a_reset_is_a_closed_connection(link_and_stranger: tuple[TcpLink, socket.socket]) -> None:
    link, stranger = link_and_stranger
    stranger.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stranger.close()
    with pytest.raises(NetworkError, match="the other end closed the connection"):
        link.receive(SOON)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\nHost: splitlab\r\n\r\n" + b" " * 40, r"does not speak splitlab's"),
        (raw(message(5)).replace(b'"F32"', b'"F23"'), r"the header and the checksum differ"),
        (raw(message(5)).replace(b"SPLT\x03", b"SPLT\x04"), r"the opening and the checksum differ"),
        (raw(message(2**19))[:-9] + b"\1" + raw(message(2**19))[-8:], r"the tensors and the check"),
    ],
)
def test_garbage_is_the_peers_fault(
    link_and_stranger: tuple[TcpLink, socket.socket], data: bytes, reason: str
) -> None:
    link, stranger = link_and_stranger
    stranger.sendall(data)
    with pytest.raises(ProtocolError, match=reason):
        link.receive(SOON)


def test_what_is_too_large_is_refused_before_it_comes(
    link_and_stranger: tuple[TcpLink, socket.socket],
) -> None:
    link, stranger = link_and_stranger
    link.limits = Limits(frame_bytes=10_000)
    stranger.sendall(raw(message(10_000))[:100])
    with pytest.raises(ProtocolError, match=r"allowed on this link: 10000 \(frame_bytes\)"):
        link.receive(SOON)


def test_a_slow_reader_is_not_a_silent_one(
    link_and_stranger: tuple[TcpLink, socket.socket], aside: ThreadPoolExecutor
) -> None:
    link, stranger = link_and_stranger
    large = message(5_000_000)
    size = encode(large).nbytes

    def read_slowly() -> int:
        count = 0
        while count < size:
            time.sleep(0.02)
            count += len(stranger.recv(1_000_000))
        return count

    reading = aside.submit(read_slowly)
    assert link.send(large, 0.3) == size
    assert reading.result() == size
