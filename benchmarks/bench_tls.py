"""What TLS costs: a link under it beside a plain one, and beside a bare socket under TLS.

The other peer echoes from a process of its own, and the contestants take turns, as in
``bench_links.py``:

- ``tls``: messages by `splitlab.transports.tcp` with certificates of both ends;
- ``plain``: the same without;
- ``bare``: Python's ``ssl`` on a blocking socket, with the same cipher, that moves as many bytes as
  the frame has, in memory it already has.
"""

from __future__ import annotations

import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.wire.encode import encode
from splitlab.transports.tcp import Tcp
from splitlab.transports.trust import Trust

CPU = torch.device("cpu")
WAIT = 60.0
SIZES = {64: (40, 30), 1_000_000: (60, 1), 19_400_000: (15, 1)}
"""Turns, and round trips in each, by bytes of payload."""

LARGEST_RATIO = {1_000_000: 1.35, 19_400_000: 1.15}
"""What larger messages may take of the bare socket, which reuses its memory: a message's is new."""


def files(lab: str) -> dict[str, str]:
    return {
        "tls_cert": f"{lab}/server.pem",
        "tls_key": f"{lab}/server.key",
        "tls_ca": f"{lab}/ca.pem",
    }


def wrap(tensor: torch.Tensor, kind: Kind = Kind.ACTIVATION) -> Message:
    message = Message(kind)
    message.put("activations", tensor, Role.PAYLOAD)
    return message


# The other process.


def echo(port: int, size: int, lab: str) -> None:
    transport = Tcp(**files(lab)) if lab else Tcp()  # type: ignore[arg-type]
    link = transport.connect(f"tcp://127.0.0.1:{port}", device=CPU, timeout=WAIT)
    while (message := link.receive(WAIT)).kind is Kind.ACTIVATION:
        link.send(wrap(message["activations"]), WAIT)
        del message
    link.close()


def echo_bare(port: int, size: int, lab: str) -> None:
    context = Trust(**files(lab)).client  # type: ignore[arg-type]
    assert context is not None
    with socket.create_connection(("127.0.0.1", port)) as plain:
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            memory = memoryview(bytearray(size))
            while fill(connection, memory):
                connection.sendall(memory)


def fill(connection: socket.socket, memory: memoryview) -> bool:
    while memory:
        count = connection.recv_into(memory)
        if count == 0:
            return False
        memory = memory[count:]
    return True


# This process.


@contextmanager
def other_process(role: str, port: int, size: int, lab: str) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, __file__, role, str(port), str(size), lab])
    try:
        yield
        assert process.wait(WAIT) == 0
    finally:
        process.kill()
        process.wait()


@contextmanager
def over_link(size: int, lab: str) -> Iterator[Callable[[], object]]:
    transport = Tcp(**files(lab)) if lab else Tcp()  # type: ignore[arg-type]
    listener = transport.listen("tcp://127.0.0.1:0", device=CPU)
    tensor = torch.zeros(size // 4)

    def round_trip() -> object:
        link.send(wrap(tensor), WAIT)
        return link.receive(WAIT)["activations"]

    with other_process("echo", int(listener.address.rpartition(":")[2]), size, lab):
        link = listener.accept(WAIT)
        listener.close()
        yield round_trip
        link.send(Message(Kind.CONTROL), WAIT)
    link.close()


@contextmanager
def over_bare_tls(size: int, lab: str) -> Iterator[Callable[[], object]]:
    frame = memoryview(bytearray(encode(wrap(torch.zeros(size // 4))).nbytes))
    memory = memoryview(bytearray(len(frame)))
    context = Trust(**files(lab)).server  # type: ignore[arg-type]
    assert context is not None

    def round_trip() -> None:
        connection.sendall(frame)
        fill(connection, memory)

    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        other_process("echo_bare", server.getsockname()[1], len(frame), lab),
    ):
        plain, _ = server.accept()
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain, server_side=True) as connection:
            yield round_trip


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("cryptography")
    from splitlab.core.command.certs import make

    folder: Path = tmp_path_factory.mktemp("lab")
    make(folder, [], [])
    return str(folder)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("size", SIZES, ids="{:,} bytes".format)
def test_round_trip_under_tls(
    benchmark: Any, size: int, lab: str, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    turns, trips = SIZES[size]
    times: dict[str, list[float]] = {"tls": [], "plain": [], "bare": []}

    def take_turn(name: str) -> None:
        for _ in range(trips):
            start = time.perf_counter()
            ways[name]()
            times[name].append(time.perf_counter() - start)

    def others() -> None:
        take_turn("plain")
        take_turn("bare")

    with ExitStack() as ends:
        ways = {
            "tls": ends.enter_context(over_link(size, lab)),
            "plain": ends.enter_context(over_link(size, "")),
            "bare": ends.enter_context(over_bare_tls(size, lab)),
        }
        benchmark.pedantic(take_turn, args=("tls",), setup=others, rounds=turns)
    took = {name: statistics.median(found) for name, found in times.items()}
    ratios = {name: took["tls"] / took[name] for name in ("bare", "plain")}
    benchmark.extra_info |= ratios
    with capsys.disabled():
        print(
            f"\n{size:,} bytes there and back under TLS: {took['tls'] * 1e6:,.0f} µs, "
            f"{ratios['bare']:.2f} of a bare socket under TLS, {ratios['plain']:.2f} of plain TCP"
        )
    if size in LARGEST_RATIO:
        assert ratios["bare"] <= LARGEST_RATIO[size]
    else:
        assert took["tls"] <= 300e-6


if __name__ == "__main__":
    torch.set_num_threads(1)
    role, port, size, lab_folder = sys.argv[1:]
    globals()[role](int(port), int(size), lab_folder)
