"""The proxy does to a connection what it says, and leaves nothing behind."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from proxy import ELSEWHERE, FAULTS, PARTS, Fault, FaultProxy, name_of

from splitlab.core import Kind, Message, Role
from splitlab.core.testing.tiny import freeze, thaw
from splitlab.core.wire.checksum import SUM_BYTES
from splitlab.core.wire.layout import OPENING_BYTES
from splitlab.transports.address import Address

SECONDS = 5.0


def frame(kind: Kind = Kind.ACTIVATION, step: int = 0, **said: Any) -> bytes:
    message = Message(kind, step, meta=said)
    if kind is not Kind.CONTROL:
        message.put("x", torch.arange(100.0), Role.PAYLOAD)
    return freeze(message)


class Echo:
    """A server that says everything again, and keeps what it heard on each connection.

    Attributes:
        heard: of each connection, in the order in which they came.
        ends: how each ended: ``b""`` in good order, or the error.
        sources: where each came from.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heard: list[bytes] = []
        self.ends: list[object] = []
        self.sources: list[str] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)

    def __enter__(self) -> Echo:
        self._accepting.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in (self._accepting, *self._threads):
            thread.join(SECONDS)

    def _accept(self) -> None:
        while True:
            try:
                connection, source = self._listener.accept()
            except OSError:
                return
            self.sources.append(source[0])
            self.heard.append(b"")
            self.ends.append(None)
            number = len(self.heard) - 1
            self._threads.append(threading.Thread(target=self._serve, args=(connection, number)))
            self._threads[-1].start()

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection:
            connection.settimeout(SECONDS)
            try:
                while more := connection.recv(1 << 16):
                    self.heard[number] += more
                    connection.sendall(more)
                self.ends[number] = b""
            except OSError as error:
                self.ends[number] = type(error)

    def ended(self, number: int = 0) -> object:
        """Return how a connection ended, once it has."""
        deadline = time.monotonic() + SECONDS
        while len(self.ends) <= number or self.ends[number] is None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        return self.ends[number]


@contextmanager
def through(*faults: Fault) -> Iterator[tuple[Callable[[], socket.socket], Echo, FaultProxy]]:
    """Yield what connects to an echo through a proxy, the echo, and the proxy."""
    with Echo() as echo, FaultProxy(echo.address, faults, SECONDS) as proxy:
        where = Address.parse(proxy.address, "tcp")
        yield lambda: socket.create_connection((where.host, where.port), SECONDS), echo, proxy
        proxy.check()


def heard(client: socket.socket, size: int = 1 << 20) -> bytes:
    """Return what comes, at most so much, until the end or a reset."""
    found = b""
    try:
        while len(found) < size and (more := client.recv(size - len(found))):
            found += more
    except ConnectionResetError:
        return found + b"reset"
    return found


def test_what_passes_is_as_it_was() -> None:
    frames = [
        frame(),
        frame(Kind.CONTROL, do="save"),
        frame(Kind.CONTROL, did="saved"),
        frame(Kind.PREDICTION),
    ]
    with through() as (connect, echo, proxy), connect() as client:
        for piece in (frames[0][:3], frames[0][3:70], frames[0][70:] + frames[1] + frames[2][:60]):
            client.sendall(piece)
            time.sleep(0.005)
        client.sendall(frames[2][60:] + frames[3])
        assert heard(client, len(b"".join(frames))) == b"".join(frames)
        client.sendall(frames[0][:9])  # not whole, and the end
        client.shutdown(socket.SHUT_WR)
        assert heard(client) == frames[0][:9]
        assert echo.ended() == b""
    names = ["ACTIVATION of training", "CONTROL save", "CONTROL saved", "PREDICTION"]
    for way in ("up", "down"):
        assert [name for direction, name in proxy.seen if direction == way] == names
    assert [name_of(thaw(each)) for each in frames] == names


@pytest.mark.parametrize("kind", ["cut", "reset"])
@pytest.mark.parametrize("where", [0, 0.5, 1])
@pytest.mark.parametrize("direction", ["up", "down"])
def test_a_connection_ends_before_amid_or_behind_a_frame(
    kind: str, where: float, direction: Any
) -> None:
    first, second = frame(), frame(step=1)
    passed = first + second[: int(where * len(second))]
    with through(Fault(kind, direction, skip=1, where=where)) as (connect, echo, _):
        with connect() as client:
            client.sendall(first)
            assert heard(client, len(first)) == first
            client.sendall(second)
            # What is under way when a reset comes may be lost.
            assert heard(client).removesuffix(b"reset") in {passed[len(first) :], b""}
            ended = echo.ended()
        # Who says something to a connection that is closed hears of a reset as well.
        allowed = {ConnectionResetError} if kind == "reset" else {b""}
        assert ended in allowed | ({ConnectionResetError} if direction == "up" else set())


def test_nothing_passes_for_a_while_and_then_all_of_it() -> None:
    raw = frame()
    with through(Fault("stall", "up", seconds=0.1)) as (connect, _, _), connect() as client:
        started = time.monotonic()
        client.sendall(raw)
        assert heard(client, len(raw)) == raw
        assert time.monotonic() - started >= 0.1


def test_it_passes_in_slow_drops_and_what_follows_behind_it() -> None:
    raw, more = frame(), frame(step=1)
    with through(Fault("throttle", "up", seconds=0.1)) as (connect, echo, _), connect() as client:
        started = time.monotonic()
        client.sendall(raw + more)
        client.shutdown(socket.SHUT_WR)
        assert heard(client) == raw + more
        assert time.monotonic() - started >= 0.08
        assert echo.ended() == b""


def test_neither_is_told_that_nothing_passes() -> None:
    raw = frame()
    with through(Fault("silence", "up")) as (connect, echo, _):
        with connect() as client:
            client.sendall(raw)
            client.settimeout(0.05)
            with pytest.raises(TimeoutError):
                client.recv(1)
        with connect() as client:
            client.sendall(raw)
            assert heard(client, len(raw)) == raw
        assert echo.ended(1) == b""
        assert echo.ends[0] is None
        assert echo.heard[0] == b""


@pytest.mark.parametrize("kind", ["truncate", "half-close"])
def test_one_direction_ends(kind: str) -> None:
    raw = frame()
    with through(Fault(kind, "up")) as (connect, echo, _), connect() as client:
        client.sendall(raw)
        client.sendall(raw)  # swallowed
        passed = raw[: len(raw) // 2] if kind == "truncate" else raw
        assert heard(client).removesuffix(b"reset") in (
            {passed} if kind == "half-close" else {b"", passed}
        )
        assert echo.ended() == b""
        assert echo.heard == [passed]


@pytest.mark.parametrize("part", [*PARTS, None])
@pytest.mark.parametrize("bit", [0, 77, 10**6 + 3])
def test_one_bit_changes(part: str | None, bit: int) -> None:
    raw = frame()
    flip = Fault("flip", "up", part=part, bit=bit)
    with through(flip) as (connect, echo, _), connect() as client:
        client.sendall(raw)
        client.shutdown(socket.SHUT_WR)
        echo.ended()
    [got] = echo.heard
    changed = [i for i, (a, b) in enumerate(zip(raw, got, strict=True)) if a != b]
    [place] = changed
    assert (raw[place] ^ got[place]).bit_count() == 1
    ends = [OPENING_BYTES, len(raw) - 400 - SUM_BYTES, len(raw) - SUM_BYTES, len(raw)]
    begins = dict(zip(PARTS, [0, *ends[:-1]], strict=True))
    begin = begins[part] if part else 0
    end = min((e for e in ends if e > begin), default=0) if part else len(raw)
    assert begin <= place < end


def test_a_part_that_a_frame_does_not_have_is_not_struck() -> None:
    raw = frame(Kind.CONTROL, do="save")
    fault = Fault("flip", "up", part="tensors")
    with Echo() as echo, FaultProxy(echo.address, [fault], SECONDS) as proxy:
        where = Address.parse(proxy.address, "tcp")
        with socket.create_connection((where.host, where.port), SECONDS) as client:
            client.sendall(raw)
            assert heard(client, len(raw)) == raw
        with pytest.raises(AssertionError, match="never struck"):
            proxy.check()


def test_a_frame_comes_twice_or_not_at_all() -> None:
    frames = [frame(step=number) for number in range(3)]
    faults = Fault("duplicate", "up"), Fault("drop", "up", name="ACTIVATION of training")
    with through(*faults) as (connect, echo, _), connect() as client:
        client.sendall(b"".join(frames))
        client.shutdown(socket.SHUT_WR)
        echo.ended()
        assert echo.heard == [frames[0] * 2 + frames[2]]


def test_a_fault_strikes_so_many_times_and_the_next_one_waits() -> None:
    raw = frame()
    faults = Fault("cut", "up", skip=1, times=2), Fault("drop", "down")
    with through(*faults) as (connect, _, proxy):
        for _ in range(2):
            with connect() as client:
                client.sendall(raw)
                if not faults[0].struck:
                    assert heard(client, len(raw)) == raw
                    client.sendall(raw)
                heard(client)
        assert [fault.struck for fault in faults] == [2, 0]
        with connect() as client:
            client.sendall(raw + raw)
            assert heard(client, len(raw)) == raw
        assert len(proxy.seen) == 2 + 1 + 1 + 4 - 1 + 1


def test_who_comes_next_is_refused() -> None:
    raw = frame()
    with through(Fault("refuse", "up", count=2)) as (connect, echo, proxy):
        for _ in range(3):
            with contextlib.suppress(OSError), connect() as client:
                client.sendall(raw)
                heard(client)
        with connect() as client:
            client.sendall(raw)
            assert heard(client, len(raw)) == raw
        assert proxy.connections == 4
        assert len(echo.heard) == 2


def test_nobody_listens_for_a_while() -> None:
    raw = frame()
    with through(Fault("away", "up", seconds=0.1)) as (connect, _, _):
        with connect() as client:
            client.sendall(raw)
            heard(client)
        with pytest.raises(ConnectionRefusedError):
            connect()
        deadline = time.monotonic() + SECONDS
        while True:
            assert time.monotonic() < deadline
            try:
                client = connect()
            except ConnectionRefusedError:
                time.sleep(0.005)
                continue
            with client:
                client.sendall(raw)
                assert heard(client, len(raw)) == raw
            return


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is one loopback address")
def test_a_client_comes_back_from_elsewhere_and_the_server_is_not_told() -> None:
    raw = frame()
    with through(Fault("move", "up", where=1)) as (connect, echo, _):
        with connect() as client:
            client.sendall(raw)
            assert heard(client) == b"reset"
        with connect() as client:
            client.sendall(raw)
            assert heard(client, len(raw)) == raw
            assert echo.ends[0] is None
        assert echo.sources == ["127.0.0.1", ELSEWHERE]
        assert echo.ended(1) == b""


def test_a_server_loses_its_client_which_is_not_told() -> None:
    raw = frame()
    with through(Fault("forget", "up")) as (connect, echo, _), connect() as client:
        client.sendall(raw)
        assert echo.ended() is ConnectionResetError
        client.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.recv(1)


def test_what_was_under_way_comes_late() -> None:
    first, second = frame(), frame(step=1)
    with through(Fault("late", "up")) as (connect, echo, _):
        with connect() as client:
            client.sendall(first)
            assert heard(client) == b"reset"
        with connect() as client:
            client.sendall(second)
            assert heard(client, len(second)) == second
            deadline = time.monotonic() + SECONDS
            while echo.heard != [first, second]:
                assert time.monotonic() < deadline
                time.sleep(0.001)


def test_it_sees_the_records_of_tls(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from splitlab.core.command.certs import make

    make(tmp_path, [], [])
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.load_cert_chain(tmp_path / "server.pem", tmp_path / "server.key")
    ours = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"

        def serve() -> None:
            try:
                with closing(theirs.wrap_socket(listener.accept()[0], server_side=True)) as end:
                    end.sendall(end.recv(100))
                    told.append(end.recv(100))
            except OSError as error:
                told.append(error)

        told: list[object] = []
        fault = Fault("flip", "up", name="record", skip=1 + 3)
        with FaultProxy(address, [fault], SECONDS) as proxy:
            where = Address.parse(proxy.address, "tcp")
            thread = threading.Thread(target=serve)
            thread.start()
            with (
                socket.create_connection((where.host, where.port), SECONDS) as bare,
                ours.wrap_socket(bare, server_hostname="127.0.0.1") as client,
            ):
                client.sendall(b"hello")
                assert client.recv(100) == b"hello"
                client.sendall(b"again")
                thread.join(SECONDS)
            assert {name for _, name in proxy.seen} == {"record"}
            proxy.check()
    assert isinstance(told[0], ssl.SSLError)


def test_what_is_no_frame_passes_in_the_pieces_in_which_it_comes() -> None:
    dropped = Fault("drop", "up", name="proof", skip=1)
    with through(dropped) as (connect, _, proxy), connect() as client:
        for said, answer in ((b"SPA\1 and more", b"SPA\1 and more"), (b"second", b"")):
            client.sendall(said)
            assert heard(client, len(answer)) == answer
            time.sleep(0.005)
        client.sendall(frame())
        assert heard(client, len(frame())) == frame()
    assert proxy.seen[-1] == ("down", "ACTIVATION of training")


def test_it_ends_by_itself() -> None:
    with Echo() as echo, FaultProxy(echo.address, seconds=0.05) as proxy:
        where = Address.parse(proxy.address, "tcp")
        with socket.create_connection((where.host, where.port), SECONDS) as client:
            assert heard(client) == b""
        proxy._thread.join(SECONDS)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((where.host, where.port), SECONDS)


def test_every_fault_is_known_by_its_name() -> None:
    for kind in FAULTS:
        assert callable(getattr(FaultProxy, f"_on_{kind.replace('-', '_')}"))
    with pytest.raises(AssertionError, match="unknown fault 'storm'"):
        Fault("storm", "up")
    with pytest.raises(AssertionError, match="unknown part 'tail'"):
        Fault("flip", "up", part="tail")
