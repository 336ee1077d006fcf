"""Bytes with deadlines: pieces, silence, ends, and who is let in."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from splitlab.core.contract.errors import NetworkError
from splitlab.transports.address import Address
from splitlab.transports.channel import Channel, Door

SOON = 20.0
LOOPBACK = Address("gloo", "127.0.0.1", 0)


@pytest.fixture
def door() -> Iterator[Door]:
    made = Door(LOOPBACK, lambda address, number: None)
    yield made
    made.close()


@pytest.fixture
def ends(door: Door) -> Iterator[tuple[Channel, Channel]]:
    """Who knocked, and who took it."""
    knocking = Channel.to(door.address, SOON)
    taken = door.take(time.monotonic() + SOON, "the client")
    assert taken is not None
    yield knocking, taken
    knocking.close()
    taken.close()


def test_buffers_arrive_as_one_stream(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    near.send([memoryview(b"ab"), memoryview(b""), memoryview(b"cde")], SOON)
    near.send([], SOON)
    assert far.receive(4, SOON) == b"abcd"
    assert far.receive(1, SOON) == b"e"


def test_what_the_kernel_takes_in_pieces_arrives_whole(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    parts = [bytes([index % 251]) * 30_000 for index in range(2_000)]  # more than one call takes
    sending = threading.Thread(
        target=near.send, args=([memoryview(part) for part in parts], SOON), daemon=True
    )
    sending.start()
    assert far.receive(60_000_000, SOON) == b"".join(parts)
    sending.join(SOON)
    assert not sending.is_alive()


def test_each_end_knows_its_host_and_the_other(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    assert near.hosts == far.hosts == ("127.0.0.1", "127.0.0.1")
    assert near.remote.startswith("gloo://127.0.0.1:")
    assert far.remote == "the client"


def test_silence_ends_by_the_deadline_in_the_words_of_who_waits(
    ends: tuple[Channel, Channel],
) -> None:
    _, far = ends
    with pytest.raises(NetworkError, match=r"the client: the other end sent nothing for 0.05 s"):
        far.receive(1, 0.05)
    with pytest.raises(NetworkError, match="the client: nobody came"):
        far.receive(1, 0.05, "nobody came")
    with pytest.raises(NetworkError, match=r"the client: the other end took nothing for 0.05 s"):
        far.send([memoryview(bytes(100_000_000))], 0.05)


def test_an_end_is_seen_past_what_is_unread(ends: tuple[Channel, Channel]) -> None:
    near, far = ends
    assert not near.gone()
    assert not far.gone()
    near.send([memoryview(b"last")], SOON)
    near.close()
    deadline = time.monotonic() + SOON
    while not far.gone() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert far.gone()
    assert far.receive(4, SOON) == b"last"
    with pytest.raises(NetworkError, match="the client: the other end closed the connection"):
        far.receive(1, SOON)


def test_a_closed_channel_says_so(ends: tuple[Channel, Channel]) -> None:
    near, _ = ends
    near.close()
    near.close()
    assert near.gone()
    with pytest.raises(NetworkError, match="this link is closed"):
        near.receive(1, SOON)
    with pytest.raises(NetworkError, match="this link is closed"):
        near.send([memoryview(b"x")], SOON)
    assert "this link is closed" in str(near.closed())


def test_nobody_comes(door: Door) -> None:
    assert door.take(time.monotonic() + 0.05, "nobody") is None
    assert door.take(time.monotonic() - 1, "nobody") is None
    door.close()
    with pytest.raises(NetworkError, match=f"{door.address}: this listener is closed"):
        door.take(time.monotonic() + SOON, "nobody")


def test_who_is_gone_before_it_is_let_in_is_passed_over_or_found_out(door: Door) -> None:
    rude = socket.create_connection((door.address.host, door.address.port), SOON)
    rude.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
    rude.close()
    polite = Channel.to(door.address, SOON)
    polite.send([memoryview(b"hello")], SOON)
    taken = door.take(time.monotonic() + SOON, "the client")
    assert taken is not None
    if taken.gone():  # the kernel had it in the queue
        taken.close()
        taken = door.take(time.monotonic() + SOON, "the client")
        assert taken is not None
    assert taken.receive(5, SOON) == b"hello"
    taken.close()
    polite.close()
