"""What goes by TCP and what by the library, and how a link ends: on gloo, which needs no GPU."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from splitlab.core.contract.errors import ConfigError, NetworkError, Notice, ProtocolError
from splitlab.core.contract.link import Limits
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.testing.links import both_ends
from splitlab.core.wire.encode import encode
from splitlab.transports.collective import BULK_BYTES, Gloo, Nccl

CPU = torch.device("cpu")
SOON = 20.0

pytestmark = pytest.mark.skipif(bool(Gloo().unavailable()), reason=str(Gloo().unavailable()))


def message(size: int, step: int = 0) -> Message:
    """A message whose tensors take so many bytes, and 24 more."""
    made = Message(Kind.ACTIVATION, step, meta={"loss": 1 / (step + 1)})
    made.put("activations", torch.arange(size // 4, dtype=torch.float32), Role.PAYLOAD)
    made.put("targets", torch.arange(3), Role.TARGETS)
    return made


LARGE = 4 * BULK_BYTES


@pytest.fixture
def ends() -> Iterator[tuple[Any, Any, ThreadPoolExecutor]]:
    with both_ends(Gloo()) as made:
        yield made


def watch(link: Any, moved: list[list[int]]) -> None:
    """Note how many bytes the parts have that the library is given to send."""
    send = link._carrier.send

    def noted(parts: list[torch.Tensor], *rest: Any) -> Any:
        moved.append([part.nbytes for part in parts])
        return send(parts, *rest)

    link._carrier.send = noted


@pytest.mark.parametrize(
    ("size", "by_library"),
    [(0, []), (BULK_BYTES - 24, []), (BULK_BYTES - 20, [[24, BULK_BYTES - 20]])],
)
def test_small_tensors_go_by_tcp_and_large_ones_in_one_operation(
    ends: Any, size: int, by_library: list[list[int]]
) -> None:
    client, server, aside = ends
    moved: list[list[int]] = []
    for sender, receiver in ((client, server), (server, client)):
        del moved[:]
        watch(sender, moved)
        sent = message(size)
        sending = aside.submit(sender.send, sent, SOON)
        arrived = receiver.receive(SOON)
        assert sending.result() == arrived.frame_bytes == encode(sent).nbytes
        assert moved == by_library
        for name in sent:
            assert torch.equal(arrived[name], sent[name])


def test_frames_that_cross_wait_their_turn(ends: Any) -> None:
    """A sender that awaits GO is sent other frames meanwhile: they are received later, in order."""
    client, server, aside = ends
    for step in (1, 2):
        server.send(message(40, step), SOON)
    sending = aside.submit(client.send, message(LARGE, 3), SOON)
    assert server.receive(SOON).step == 3
    assert sending.result() == encode(message(LARGE, 3)).nbytes
    server.send(message(40, 4), SOON)
    assert [client.receive(SOON).step for _ in range(3)] == [1, 2, 4]


def test_a_large_frame_that_crosses_is_fetched_when_it_is_received(ends: Any) -> None:
    client, server, aside = ends
    there = aside.submit(server.send, message(LARGE, 1), SOON)
    time.sleep(0.1)  # the server awaits GO

    def answer() -> None:
        there.result()
        assert server.receive(SOON).step == 2

    with ThreadPoolExecutor(1) as more:
        # The client's frame waits until the server, which is sending, receives.
        sending = more.submit(client.send, message(40, 2), SOON)
        assert client.receive(SOON).step == 1
        sending.result()
        answer()


def test_a_refused_frame_leaves_nothing_under_way(ends: Any) -> None:
    client, server, aside = ends
    moved: list[list[int]] = []
    watch(client, moved)
    server.limits = Limits(frame_bytes=LARGE)
    sending = aside.submit(client.send, message(LARGE), SOON)
    with pytest.raises(ProtocolError, match=rf"allowed on this link: {LARGE} \(frame_bytes\)"):
        server.receive(SOON)
    server.close()
    with pytest.raises(NetworkError, match="the other end closed the connection"):
        sending.result(SOON)
    assert moved == []


def test_a_large_frame_that_nobody_takes_ends_by_the_deadline(ends: Any) -> None:
    client, _, _ = ends
    moved: list[list[int]] = []
    watch(client, moved)
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"the other end took nothing for 0.3 s"):
        client.send(message(LARGE), 0.3)
    assert 0.2 < time.monotonic() - start < 5
    assert moved == []
    with pytest.raises(NetworkError, match="this link is closed"):
        client.send(message(LARGE), 0.3)


def test_a_transfer_that_stops_ends_by_the_deadline(ends: Any) -> None:
    client, server, aside = ends
    release = threading.Event()
    client._carrier.send = lambda *rest: release.wait(SOON)
    sending = aside.submit(client.send, message(LARGE), SOON)
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"the other end sent nothing for 0.3 s"):
        server.receive(0.3)
    assert time.monotonic() - start < 5
    release.set()
    with pytest.raises(NetworkError, match="the other end closed the connection"):
        sending.result(SOON)


def test_out_of_memory_is_told_before_anything_comes(ends: Any) -> None:
    client, server, aside = ends

    def full(size: int) -> torch.Tensor:
        raise RuntimeError("out of memory")

    server._carrier.allocate = full
    sending = aside.submit(client.send, message(LARGE), SOON)
    with pytest.raises(ProtocolError, match="more than can be allocated on cpu"):
        server.receive(SOON)
    server.close()
    with pytest.raises(NetworkError, match="closed the connection"):
        sending.result(SOON)


@pytest.mark.parametrize("first", [0, 1])
def test_both_ends_close_well_in_either_order(ends: Any, first: int) -> None:
    client, server, aside = ends
    sending = aside.submit(client.send, message(LARGE), SOON)
    server.receive(SOON)
    sending.result()
    one, other = (client, server)[first], (server, client)[first]
    one.close()
    with pytest.raises(NetworkError, match="the other end closed the connection"):
        other.receive(SOON)
    other.close()
    one.close()


# Who comes.


def knock(address: str) -> socket.socket:
    host, _, port = address.rpartition("//")[2].partition(":")
    return socket.create_connection((host, int(port)), 5)


@pytest.mark.parametrize("word", [b"", b"GET / HTTP/1.1\r\n\r\n" + b" " * 600])
def test_who_only_knocks_is_passed_over(word: bytes) -> None:
    listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)
    with ThreadPoolExecutor(1) as aside:
        accepting = aside.submit(listener.accept, SOON)
        with knock(listener.address) as stranger:
            stranger.sendall(word)
        with (
            closing(Gloo().connect(listener.address, device=CPU, timeout=SOON)) as client,
            closing(accepting.result()) as server,
        ):
            sending = aside.submit(client.send, message(LARGE, 5), SOON)
            assert server.receive(SOON).step == 5
            sending.result()
    listener.close()


def test_a_client_that_dies_while_the_group_opens_holds_nobody_up() -> None:
    listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)

    def greet_and_go() -> None:
        with knock(listener.address) as dying:
            greeting = b""
            while len(greeting) < 512:
                greeting += dying.recv(512)
            dying.sendall(greeting)

    going = threading.Thread(target=greet_and_go)
    going.start()
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"^the client of gloo:.*: the other end [^\n]*$"):
        listener.accept(1.0)
    assert time.monotonic() - start < 10
    going.join(SOON)
    listener.close()


@pytest.mark.parametrize(
    "greeting",
    ["splitlab nccl 00", "splitlab gloo x", "splitlab gloo 99999999", "splitlab gloo 0", "\xff"],
)
def test_a_server_of_another_kind_is_named(greeting: str) -> None:
    bound = socket.create_server(("127.0.0.1", 0))
    address = f"gloo://127.0.0.1:{bound.getsockname()[1]}"

    def serve() -> None:
        with bound.accept()[0] as connection:
            connection.sendall(greeting.encode("latin-1").ljust(512))

    serving = threading.Thread(target=serve)
    serving.start()
    with pytest.raises(ProtocolError, match=r"is no gloo server .*name the same transport"):
        Gloo().connect(address, device=CPU, timeout=SOON)
    serving.join(SOON)
    bound.close()


def test_a_server_that_accepts_nobody_ends_the_wait() -> None:
    listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)
    start = time.monotonic()
    with pytest.raises(NetworkError, match=r"the server accepted nobody for 0.3 s"):
        Gloo().connect(listener.address, device=CPU, timeout=0.3)
    assert time.monotonic() - start < 5
    listener.close()


# Processes that die.

DYING = """
import os
import signal
import sys
import torch
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.transports.collective import Gloo

def die(*rest):
    os.kill(os.getpid(), signal.SIGKILL)

what, address = sys.argv[1:]
link = Gloo().connect(address, device=torch.device("cpu"), timeout=60)
link._carrier.send = link._carrier.receive = die
if what == "sending":
    message = Message(Kind.ACTIVATION)
    message.put("activations", torch.zeros(100_000), Role.PAYLOAD)
    link.send(message, 60)
if what == "idle":
    print("here", flush=True)
link.receive(60)
"""


@pytest.mark.parametrize("what", ["idle", "sending", "receiving"])
def test_a_process_that_is_killed_is_noticed_at_once(what: str) -> None:
    listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)
    command = [sys.executable, "-c", DYING, what, listener.address]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        with closing(listener.accept(60)) as link:
            listener.close()
            if what == "idle":
                assert process.stdout is not None
                while (line := process.stdout.readline()) != b"here\n":
                    assert line  # gloo of some versions has something to say, too
                threading.Timer(0.2, process.kill).start()
            act: Callable[[float], object] = link.receive
            if what == "receiving":
                act = partial(link.send, message(LARGE))
            start = time.monotonic()
            with pytest.raises(NetworkError, match="the other end closed the connection"):
                act(SOON)
            assert time.monotonic() - start < 10
        assert process.wait(SOON) == -signal.SIGKILL
    finally:
        process.kill()
        process.communicate()


def test_nothing_listens_beyond_loopback() -> None:
    def listening() -> set[str]:
        return {
            line.split()[1]
            for table in ("/proc/self/net/tcp", "/proc/self/net/tcp6")
            if os.path.exists(table)
            for line in Path(table).read_text().splitlines()[1:]
            if line.split()[3] == "0A" and line.split()[9] in own_sockets()
        }

    def own_sockets() -> set[str]:
        return {
            os.readlink(entry).removeprefix("socket:[").removesuffix("]")
            for entry in Path("/proc/self/fd").glob("*")
            if os.path.islink(entry)
        }

    before = listening()
    listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)
    with ThreadPoolExecutor(1) as aside:
        accepting = aside.submit(listener.accept, SOON)
        client = Gloo().connect(listener.address, device=CPU, timeout=SOON)
        server = accepting.result()
    found = listening() - before
    for each in (client, server, listener):
        each.close()
    port = int(listener.address.rpartition(":")[2])
    assert f"0100007F:{port:04X}" in found or not Path("/proc/self/net/tcp").exists()
    assert all(where.startswith("0100007F:") for where in found)


def test_both_kinds_meet_alike() -> None:
    assert (Gloo().default_address, Nccl().default_address) == (
        "gloo://127.0.0.1:0",
        "nccl://127.0.0.1:0",
    )
    assert Gloo().place == Nccl().place == "beside"


# Who may connect.


def test_with_a_secret_the_peers_prove_it_before_anything_else(
    secret: Callable[[str], str],
) -> None:
    file = secret("a secret of the lab's")
    with ThreadPoolExecutor(1) as aside:
        listener = Gloo(secret_file=file).listen("gloo://127.0.0.1:0", device=CPU)
        with closing(listener):
            accepted = aside.submit(listener.accept, SOON)
            for stranger in (Gloo(secret_file=secret("another secret, as good")), Gloo()):
                with pytest.raises(NetworkError, match=r"refused the proof|closed|came|accepted"):
                    stranger.connect(listener.address, device=CPU, timeout=0.5)
            connected = Gloo(secret_file=file).connect(listener.address, device=CPU, timeout=SOON)
            with closing(connected) as client, closing(accepted.result(SOON)) as server:
                sending = aside.submit(client.send, message(LARGE), SOON)
                assert server.receive(SOON).frame_bytes == sending.result()


def test_a_server_without_the_secret_is_refused(secret: Callable[[str], str]) -> None:
    with ThreadPoolExecutor(1) as aside:
        listener = Gloo().listen("gloo://127.0.0.1:0", device=CPU)
        with closing(listener):
            accepted = aside.submit(listener.accept, 0.5)
            with pytest.raises(NetworkError, match="asks for neither certificate nor secret"):
                Gloo(secret_file=secret("a secret of the lab's")).connect(
                    listener.address, device=CPU, timeout=SOON
                )
            assert isinstance(accepted.exception(), NetworkError)


@pytest.mark.parametrize("kind", [Gloo, Nccl])
def test_others_are_let_in_when_the_user_says_so_and_told_what_that_means(
    kind: type[Gloo] | type[Nccl], secret: Callable[[str], str]
) -> None:
    address, device = f"{kind.scheme}://0.0.0.0:0", torch.device("cpu" if kind is Gloo else "cuda")
    with pytest.raises(ConfigError, match=r"can be reached from other machines.*--insecure"):
        kind().listen(address, device=device)
    for made in (kind(insecure=True), kind(secret_file=secret("x" * 16))):
        with pytest.warns(Notice, match=f"{kind.scheme} encrypts nothing .* that you trust"):
            made.listen(address, device=device).close()
