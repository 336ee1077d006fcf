"""NCCL's calls in their order, on a library of this file: no GPU is needed to lose a peer.

The library moves the bytes of CPU memory between two ranks in this process when both have put the
operation into their streams. What needs a GPU and the real library is marked `gpu`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from splitlab.core.contract.errors import ConfigError, NetworkError
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.testing import TRANSPORT_CHECKS, check_transport
from splitlab.core.testing.links import both_ends
from splitlab.transports import collective, nccl
from splitlab.transports.collective import BULK_BYTES, Nccl
from splitlab.transports.nccl import Library, loaded

CPU = torch.device("cpu")
SOON = 20.0
TORCHRUN = ("LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)


class Rank:
    """What the library knows of one communicator."""

    def __init__(self, group: list[Rank]) -> None:
        self.group = group
        self.sends: deque[tuple[int, int, list[bool]]] = deque()
        self.receives: deque[tuple[int, int, list[bool]]] = deque()
        self.waiting: list[list[bool]] = []
        self.asked = 0
        self.aborted = 0


class FakeNccl:
    """The calls of `Library`, between ranks of this process.

    Attributes:
        fails: status by the name of a call.
        stuck: whether nothing that is begun ever ends.
        groups: how many operations were begun, by rank.
    """

    def __init__(self) -> None:
        self.fails: dict[str, int] = {}
        self.stuck = False
        self.groups = [0, 0]
        self.ranks: dict[int, Rank] = {}
        self._groups: dict[bytes, list[Rank]] = {}
        self._lock = threading.Lock()
        self._thread = threading.local()

    def version(self) -> tuple[int, int, int]:
        return 2, 30, 7

    def unique_id(self) -> tuple[int, bytes]:
        return self.fails.get("unique_id", 0), os.urandom(128)

    def begin(self, unique_id: bytes, rank: int) -> tuple[int, int | None]:
        if status := self.fails.get("begin", 0):
            return status, None
        with self._lock:
            group = self._groups.setdefault(unique_id, [])
            made = Rank(group)
            group.append(made)
            comm = 100 + 2 * len(self.ranks) + rank
            self.ranks[comm] = made
        return 7, comm

    def status(self, comm: int) -> int:
        rank = self.ranks[comm]
        assert not rank.aborted, "an ended communicator is used"
        rank.asked += 1
        both = len(rank.group) == 2
        return self.fails.get("status", 0) or (0 if both and rank.asked % 3 else 7)

    def group_start(self) -> int:
        assert not getattr(self._thread, "calls", None), "the thread is still in a group"
        self._thread.calls = []
        return self.fails.get("group_start", 0)

    def group_end(self) -> int:
        calls, self._thread.calls = self._thread.calls, []
        with self._lock:
            for comm, queue, address, count, done in calls:
                rank = self.ranks[comm]
                self.groups[comm % 2] += queue == "sends"
                getattr(rank, queue).append((address, count, done))
                rank.waiting.append(done)
                if not self.stuck and not self.fails:
                    for one, other in (rank.group, rank.group[::-1]):
                        self._match(one, other)
        return self.fails.get("group_end", 7)

    def _match(self, sender: Rank, receiver: Rank) -> None:
        while sender.sends and receiver.receives:
            source, size, sent = sender.sends.popleft()
            target, room, received = receiver.receives.popleft()
            assert size == room, "both ends know the sizes"
            ctypes.memmove(target, source, size)
            sent[0] = received[0] = True

    def send(self, address: int, count: int, peer: int, comm: int, stream: int) -> int:
        assert peer == 1 - comm % 2
        self._thread.calls.append((comm, "sends", address, count, FakeStream.begin(stream)))
        return self.fails.get("send", 0)

    def receive(self, address: int, count: int, peer: int, comm: int, stream: int) -> int:
        assert peer == 1 - comm % 2
        self._thread.calls.append((comm, "receives", address, count, FakeStream.begin(stream)))
        return self.fails.get("receive", 0)

    def abort(self, comm: int) -> None:
        self.ranks[comm].aborted += 1

    def says(self, status: int, comm: int | None) -> str:
        return f"status {status}"


class FakeStream:
    """A stream of what `FakeNccl` has begun."""

    cuda_stream = 0
    made: ClassVar[dict[int, FakeStream]] = {}
    error: RuntimeError | None = None

    def __init__(self, device: torch.device) -> None:
        self.cuda_stream = id(self)
        self.work: list[list[bool]] = []
        self.made[self.cuda_stream] = self

    @classmethod
    def begin(cls, stream: int) -> list[bool]:
        done = [False]
        cls.made[stream].work.append(done)
        return done

    def wait_stream(self, other: object) -> None:
        assert other is FakeStream, "it waits for the current stream"

    def record_event(self) -> FakeStream:
        return self

    def query(self) -> bool:
        if FakeStream.error is not None:
            raise FakeStream.error
        return all(done[0] for done in self.work)

    @classmethod
    def synchronize(cls) -> None:
        """The current stream is computed."""


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeNccl]:
    """NCCL, such that its transport works on the CPU."""
    made = FakeNccl()
    monkeypatch.setattr(collective, "loaded", lambda: made)
    monkeypatch.setattr(Nccl, "unavailable", lambda self: None)
    monkeypatch.setattr(Nccl, "_check_device", lambda self, device: None)
    monkeypatch.setattr(torch.cuda, "Stream", FakeStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: FakeStream)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(FakeStream, "made", {})
    monkeypatch.setattr(FakeStream, "error", None)
    yield made
    assert all(rank.aborted == 1 for rank in made.ranks.values()), "each is ended once"


def large(value: float = 1.0) -> Message:
    made = Message(Kind.ACTIVATION, 3)
    made.put("activations", torch.full((BULK_BYTES // 4 + 1,), value), Role.PAYLOAD)
    made.put("targets", torch.arange(3), Role.TARGETS)
    return made


@pytest.mark.parametrize("check", [check.name for check in TRANSPORT_CHECKS])
def test_the_contract(library: FakeNccl, check: str) -> None:
    report = check_transport("nccl", only=[check])
    report.raise_if_failed()


def test_a_large_message_is_one_operation_and_a_small_one_none(library: FakeNccl) -> None:
    with both_ends(Nccl()) as (client, server, aside):
        assert library.groups == [1, 1]  # both have met
        for size, sent in ((BULK_BYTES // 4, 0), (BULK_BYTES // 4 + 1, 1)):
            before = library.groups[0]
            message = Message(Kind.ACTIVATION)
            message.put("activations", torch.arange(size, dtype=torch.float32), Role.PAYLOAD)
            sending = aside.submit(client.send, message, SOON)
            arrived = server.receive(SOON)
            assert torch.equal(arrived["activations"], message["activations"])
            assert sending.result() == arrived.frame_bytes
            assert library.groups[0] - before == sent


def test_several_tensors_are_one_group(library: FakeNccl, monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    end = library.group_end
    monkeypatch.setattr(library, "group_end", lambda: ended.append(1) or end())
    with both_ends(Nccl()) as (client, server, aside):
        del ended[:]
        sending = aside.submit(client.send, large(2.0), SOON)
        arrived = server.receive(SOON)
        sending.result()
        assert len(ended) == 2  # one at each end
        assert arrived["targets"].tolist() == [0, 1, 2]
        assert arrived["activations"].unique().tolist() == [2.0]


@pytest.mark.parametrize("dies", [0, 1])
def test_a_peer_that_goes_amid_a_transfer_is_noticed_at_once(library: FakeNccl, dies: int) -> None:
    with both_ends(Nccl()) as ends:
        client, server, aside = ends
        library.stuck = True
        sending = aside.submit(client.send, large(), SOON)
        # As the kernel does when a process ends, whatever that waits for.
        dying = ends[dies]._channel._socket
        threading.Timer(0.2, dying.shutdown, (socket.SHUT_RDWR,)).start()
        start = time.monotonic()
        with pytest.raises(NetworkError, match="the other end closed the connection"):
            server.receive(SOON)
        with pytest.raises(NetworkError, match="the other end closed the connection"):
            sending.result(SOON)
        assert time.monotonic() - start < 5


def test_a_transfer_that_does_not_end_ends_by_the_deadline(library: FakeNccl) -> None:
    with both_ends(Nccl()) as (client, server, aside):
        library.stuck = True
        sending = aside.submit(client.send, large(), 0.5)
        with pytest.raises(NetworkError, match=r"sent nothing for 0.3 s"):
            server.receive(0.3)
        with pytest.raises(NetworkError, match=r"took nothing for 0.5 s|closed the connection"):
            sending.result(SOON)


def test_who_has_all_may_leave_before_the_senders_gpu_is_done(
    library: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = threading.Event()
    query = FakeStream.query

    def slow(stream: FakeStream) -> bool:
        return query(stream) and (stream is not sender or late.is_set())

    with both_ends(Nccl()) as (client, server, aside):
        sender = client._carrier._stream  # type: ignore[attr-defined]
        monkeypatch.setattr(FakeStream, "query", slow)
        sending = aside.submit(client.send, large(), SOON)
        server.receive(SOON)
        server.close()
        threading.Timer(0.2, late.set).start()
        assert sending.result(SOON) > BULK_BYTES


@pytest.mark.parametrize("call", ["group_start", "send", "group_end", "status"])
def test_what_nccl_says_is_one_line_and_the_thread_leaves_its_group(
    library: FakeNccl, call: str
) -> None:
    with both_ends(Nccl()) as (client, server, aside):
        library.fails[call] = 3
        waiting = aside.submit(server.receive, SOON)
        with pytest.raises(NetworkError) as caught:
            client.send(large(), SOON)
        with pytest.raises(NetworkError):
            waiting.result(SOON)
        said = str(caught.value)
        assert "NCCL 2.30.7: status 3" in said or "closed the connection" in said
        assert "\n" not in said
    library.fails.clear()
    assert library.group_start() == 0  # this thread is in no group
    library.group_end()


def test_nccl_may_hear_of_the_end_first(library: FakeNccl) -> None:
    with both_ends(Nccl()) as (client, server, aside):
        library.stuck = True
        waiting = aside.submit(server.receive, SOON)
        threading.Timer(0.2, library.fails.__setitem__, ("status", 6)).start()
        with pytest.raises(NetworkError, match="the other end closed the connection"):
            client.send(large(), SOON)
        with pytest.raises(NetworkError, match="the other end closed the connection"):
            waiting.result(SOON)


def test_a_gpu_that_failed_is_asked_nothing_more(library: FakeNccl) -> None:
    with both_ends(Nccl()) as (client, server, aside):
        FakeStream.error = RuntimeError("CUDA error: an illegal memory access\nand more")
        waiting = aside.submit(server.receive, SOON)
        with pytest.raises(NetworkError, match=r"an illegal memory access$|closed the connection"):
            client.send(large(), SOON)
        with pytest.raises(NetworkError, match=r"an illegal memory access$|closed the connection"):
            waiting.result(SOON)
        # Its communicator was left to the end of the process; one that heard of it by TCP is ended.
        left = [rank for rank in library.ranks.values() if not rank.aborted]
        assert left
        for rank in left:
            rank.aborted = 1


@pytest.mark.parametrize(("call", "status"), [("begin", 5), ("status", 5), ("unique_id", 2)])
def test_a_group_that_cannot_open_says_why_at_once(
    library: FakeNccl, call: str, status: int
) -> None:
    library.fails[call] = status
    listener = Nccl().listen("nccl://127.0.0.1:0", device=CPU)
    found: list[Exception] = []

    def accept() -> None:
        try:
            listener.accept(SOON)
        except NetworkError as error:
            found.append(error)

    accepting = threading.Thread(target=accept)
    accepting.start()
    with pytest.raises(NetworkError) as caught:
        Nccl().connect(listener.address, device=CPU, timeout=SOON)
    accepting.join(SOON)
    listener.close()
    said = [str(caught.value), *map(str, found)]
    assert len(said) == 2
    assert any(f"status {status}" in text for text in said)
    assert all(f"status {status}" in text or "closed the conn" in text for text in said)


def test_a_client_that_dies_while_the_group_opens_is_noticed_at_once(
    library: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    listener = Nccl().listen("nccl://127.0.0.1:0", device=CPU)
    begin = library.begin

    def dies(unique_id: bytes, rank: int) -> tuple[int, int | None]:
        if rank == 0:
            raise RuntimeError("killed")
        return begin(unique_id, rank)

    monkeypatch.setattr(library, "begin", dies)
    client = threading.Thread(target=lambda: _suppressed(listener.address))
    client.start()
    start = time.monotonic()
    with pytest.raises(NetworkError, match="the other end closed the connection"):
        listener.accept(SOON)
    assert time.monotonic() - start < 10
    client.join(SOON)
    listener.close()


def _suppressed(address: str) -> None:
    with pytest.raises(NetworkError, match="killed"):
        Nccl().connect(address, device=CPU, timeout=SOON)


def test_an_abort_that_hangs_does_not_hold_the_process(
    library: FakeNccl, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = threading.Event()
    abort = library.abort

    def late(comm: int) -> None:
        answers.wait(SOON)
        abort(comm)

    monkeypatch.setattr(library, "abort", late)
    monkeypatch.setattr(nccl, "_ABORT_SECONDS", 0.05)
    with both_ends(Nccl()) as (client, server, _):
        start = time.monotonic()
        client.close()
        assert time.monotonic() - start < 5
        server.close()
        answers.set()
    deadline = time.monotonic() + SOON
    while not all(rank.aborted for rank in library.ranks.values()) and time.monotonic() < deadline:
        time.sleep(0.01)


# The library that is really there.


@pytest.mark.skipif(loaded() is None, reason="torch came without NCCL")
def test_the_version_is_that_of_the_loaded_library() -> None:
    library = loaded()
    assert library is not None
    version = library.version()
    assert version >= (2, 14)  # what the configuration of a communicator speaks
    assert loaded() is library
    mapped = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines()]
    assert {path for path in mapped if Path(path).name.startswith("libnccl.so")}


@pytest.mark.skipif(loaded() is None, reason="torch came without NCCL")
def test_what_a_status_means_is_one_line() -> None:
    text = Library().says(5, None)
    assert "invalid usage" in text
    assert "\n" not in text


def nccl_without(monkeypatch: pytest.MonkeyPatch, **facts: Any) -> str | None:
    """What NCCL misses on a machine of these facts; a single GPU and NCCL 2.30.7 otherwise."""
    facts = {"library": True, "gpu": True, "gpus": 1, "version": (2, 30, 7)} | facts
    fake = FakeNccl()
    monkeypatch.setattr(fake, "version", lambda: facts["version"])
    monkeypatch.setattr(collective, "loaded", lambda: fake if facts["library"] else None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: facts["gpu"])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: facts["gpus"])
    return Nccl().unavailable()


def test_nccl_says_precisely_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "came without NCCL" in str(nccl_without(monkeypatch, library=False))
    assert nccl_without(monkeypatch, gpu=False) == "NCCL needs a CUDA GPU, and torch finds none"
    reason = str(nccl_without(monkeypatch, version=(2, 28, 9)))
    assert "share the one GPU from NCCL 2.30 on, and NCCL 2.28.9 is loaded; a newer" in reason
    assert nccl_without(monkeypatch) is None
    assert nccl_without(monkeypatch, gpus=2, version=(2, 28, 9)) is None


def test_old_nccl_serves_a_peer_that_is_alone_on_its_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert nccl_without(monkeypatch, version=(2, 28, 9)) is None


def test_nccl_refuses_a_peer_on_the_cpu() -> None:
    with pytest.raises(ConfigError, match="this peer computes on cpu; choose --device cuda"):
        Nccl().listen("nccl://127.0.0.1:0", device=CPU)
    with pytest.raises(ConfigError, match="this peer computes on cpu"):
        Nccl().connect("nccl://127.0.0.1:1", device=CPU, timeout=1)


# Two processes on a GPU.

PEER = """
import sys
import os
import signal
import torch
from splitlab.core.contract.errors import NetworkError
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.transports.collective import Nccl

what, address = sys.argv[1:]
device = torch.device("cuda", 0)
link = Nccl().connect(address, device=device, timeout=60)
message = Message(Kind.ACTIVATION, 3)
message.put("activations", torch.arange(2.0**20, device=device), Role.PAYLOAD)
if what == "dies sending":
    link._carrier.send = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)
if what == "dies receiving":
    link._carrier.receive = lambda *rest: os.kill(os.getpid(), signal.SIGKILL)
    link.receive(60)
link.send(message, 60)
if what == "answers":
    assert link.receive(60)["activations"].sum() == message["activations"].sum()
if what == "is left":
    try:
        link.receive(60)
    except NetworkError as error:
        print(error)
link.close()
"""


@pytest.fixture
def peer() -> Iterator[Callable[[str], tuple[Any, subprocess.Popen[str]]]]:
    """Both ends of a link: the server's, and the client's process."""
    if missing := Nccl().unavailable():
        pytest.skip(missing)
    started: list[subprocess.Popen[str]] = []
    links: list[Any] = []

    def start(what: str) -> tuple[Any, subprocess.Popen[str]]:
        device = torch.device("cuda", 1 % torch.cuda.device_count())
        listener = Nccl().listen("nccl://127.0.0.1:0", device=device)
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", PEER, what, listener.address],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        links.append(listener.accept(60))
        listener.close()
        return links[0], started[0]

    yield start
    for link in links:
        link.close()
    for process in started:
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.gpu
@pytest.mark.parametrize("first", ["server", "client"])
def test_two_processes_end_well_in_either_order(peer: Any, first: str) -> None:
    link, process = peer("is left" if first == "server" else "answers")
    arrived = link.receive(60)
    assert arrived["activations"].is_cuda
    if first == "server":
        link.close()
    else:
        link.send(arrived, 60)
    out, complaints = process.communicate(timeout=60)
    assert (process.returncode, complaints) == (0, "")
    assert ("the other end closed the connection" in out) is (first == "server")


@pytest.mark.gpu
@pytest.mark.parametrize("what", ["dies sending", "dies receiving"])
def test_a_killed_process_is_noticed_at_once(peer: Any, what: str) -> None:
    link, process = peer(what)
    made = Message(Kind.GRADIENT)
    made.put("gradient", torch.zeros(2**20, device=link.device), Role.PAYLOAD)
    act = link.receive if what == "dies sending" else partial(link.send, made)
    start = time.monotonic()
    with pytest.raises(NetworkError, match="the other end closed the connection"):
        act(60)
    assert time.monotonic() - start < 30
    link.close()
    assert process.wait(60) == -signal.SIGKILL
    assert torch.zeros(1, device=link.device).item() == 0  # this process still has its GPU
