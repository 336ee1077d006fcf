"""The contract of `splitlab.core.transport`, held by every transport of ``registry.toml``."""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
import torch

from splitlab.core.errors import ConfigError, NetworkError, ProtocolError
from splitlab.core.message import Kind, Message, Role
from splitlab.core.registry import catalogue, load
from splitlab.core.transport import Link, PairTransport
from splitlab.core.wire import Frame, Limits, encode

CPU = torch.device("cpu")
SOON = 20.0  # a deadline that is never reached


def working(name: str) -> Any:
    transport = load("transports", name)()
    if reason := transport.unavailable():
        pytest.skip(f"{name}: {reason}")
    return transport


@pytest.fixture(params=sorted(catalogue()["transports"]))
def transport(request: pytest.FixtureRequest) -> Any:
    return working(request.param)


@pytest.fixture
def device(transport: Any) -> torch.device:
    return torch.device("cuda" if type(transport).__name__ == "Nccl" else "cpu")


@pytest.fixture
def networked(transport: Any) -> Any:
    if isinstance(transport, PairTransport):
        pytest.skip("both peers are in one process")
    return transport


@pytest.fixture
def aside() -> Iterator[ThreadPoolExecutor]:
    """The other peer's thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.fixture
def ends(
    transport: Any, device: torch.device, aside: ThreadPoolExecutor
) -> Iterator[tuple[Link, Link]]:
    if isinstance(transport, PairTransport):
        client, server = transport.pair()
    else:
        listener = transport.listen(transport.default_address, device=device)
        accepted = aside.submit(listener.accept, SOON)
        client = transport.connect(listener.address, device=device, timeout=SOON)
        server = accepted.result()
        listener.close()
    yield client, server
    client.close()
    server.close()


def message(kind: Kind = Kind.ACTIVATION, step: int = 7, **meta: Any) -> Message:
    made = Message(kind, step, training=step % 2 == 0, stacked=step % 3 == 0, meta=meta)
    made.elapsed_ns = 123_456_789
    made.put("side", torch.tensor(5, dtype=torch.uint8), Role.SIDE)
    made.put("activations", torch.arange(12.0).view(3, 4).t(), Role.PAYLOAD)
    made.put("targets", torch.arange(3), Role.TARGETS)
    made.put("nothing", torch.zeros(0, 4, dtype=torch.bfloat16), Role.SIDE)
    return made


def same(arrived: Message, sent: Message) -> bool:
    fields = ("kind", "step", "training", "stacked", "meta", "elapsed_ns", "frame_bytes")
    return (
        all(getattr(arrived, field) == getattr(sent, field) for field in fields)
        and [*arrived] == [*sent]
        and all(arrived.role(name) is sent.role(name) for name in sent)
        and all(arrived[name].dtype == sent[name].dtype for name in sent)
        and all(torch.equal(arrived[name].cpu(), sent[name]) for name in sent)
    )


def test_every_kind_arrives_both_ways_with_the_bytes_of_the_wire(
    ends: tuple[Link, Link], aside: ThreadPoolExecutor
) -> None:
    for sender, receiver in (ends, ends[::-1]):
        for step, kind in enumerate(Kind):
            sent = message(kind, step, loss=0.1, words=["a", None])
            size = encode(message(kind, step, loss=0.1, words=["a", None])).nbytes
            sending = aside.submit(sender.send, sent, SOON)
            arrived = receiver.receive(SOON)
            assert sending.result() == size
            assert arrived.frame_bytes == sent.frame_bytes == size
            assert same(arrived, sent)


def test_a_message_without_tensors_arrives(
    ends: tuple[Link, Link], aside: ThreadPoolExecutor
) -> None:
    sending = aside.submit(ends[0].send, Message(Kind.CONTROL, meta={"say": "goodbye"}), SOON)
    assert ends[1].receive(SOON).meta == {"say": "goodbye"}
    sending.result()


def test_messages_arrive_in_order(ends: tuple[Link, Link], aside: ThreadPoolExecutor) -> None:
    def send_all() -> None:
        for step in range(20):
            ends[0].send(message(step=step), SOON)

    sending = aside.submit(send_all)
    assert [ends[1].receive(SOON).step for _ in range(20)] == [*range(20)]
    sending.result()


def test_a_large_message_arrives_in_memory_of_its_own(
    ends: tuple[Link, Link], aside: ThreadPoolExecutor
) -> None:
    tensor = torch.arange(2**23, dtype=torch.int32)
    sent = Message(Kind.ACTIVATION)
    sent.put("activations", tensor, Role.PAYLOAD)
    sending = aside.submit(ends[0].send, sent, SOON)
    arrived = ends[1].receive(SOON)["activations"]
    sending.result()
    assert torch.equal(arrived.cpu(), tensor)
    assert arrived.data_ptr() != tensor.data_ptr()


def test_silence_ends_by_the_deadline(ends: tuple[Link, Link]) -> None:
    start = time.monotonic()
    with pytest.raises(NetworkError, match="the peer sent nothing"):
        ends[1].receive(0.3)
    assert 0.2 < time.monotonic() - start < 1.5


def test_sending_to_a_peer_that_does_not_read_ends_by_the_deadline(
    ends: tuple[Link, Link],
) -> None:
    large = Message(Kind.ACTIVATION)
    large.put("activations", torch.zeros(2**25, dtype=torch.uint8), Role.PAYLOAD)
    start = time.monotonic()
    with contextlib.suppress(NetworkError):  # in one process, memory takes everything
        ends[0].send(large, 0.5)
    assert time.monotonic() - start < 3


@pytest.mark.parametrize("operation", ["receive", "send"])
def test_a_peer_that_closes_is_noticed_at_once(ends: tuple[Link, Link], operation: str) -> None:
    def use() -> None:
        if operation == "receive":
            ends[1].receive(SOON)
        for _ in range(100):  # the kernel takes some before it hears of it
            ends[1].send(message(), SOON)

    ends[0].close()
    start = time.monotonic()
    with pytest.raises(NetworkError, match="the peer closed the connection"):
        use()
    assert time.monotonic() - start < 5


def test_closing_twice_is_allowed_and_a_closed_link_says_so(ends: tuple[Link, Link]) -> None:
    ends[0].close()
    ends[0].close()
    with pytest.raises(NetworkError, match="closed"):
        ends[0].receive(SOON)
    with pytest.raises(NetworkError, match="closed"):
        ends[0].send(message(), SOON)


def refused(ends: tuple[Link, Link], aside: ThreadPoolExecutor, reason: str) -> None:
    """Send a message that the other end refuses to take."""
    sending: Future[int] = aside.submit(ends[0].send, message(), SOON)
    with pytest.raises(ProtocolError, match=reason):
        ends[1].receive(SOON)
    ends[1].close()
    with contextlib.suppress(NetworkError):
        sending.result()


def test_garbage_is_the_peers_fault(
    transport: Any,
    ends: tuple[Link, Link],
    aside: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def corrupt(message: Message) -> Frame:
        frame = encode(message)
        return frame._replace(head=b"HTTP" + frame.head[4:])

    module = importlib.import_module(type(transport).__module__)
    monkeypatch.setattr(module, "encode", corrupt)
    refused(ends, aside, "does not speak splitlab's wire format")


def test_limits_hold_for_the_next_message(
    ends: tuple[Link, Link], aside: ThreadPoolExecutor
) -> None:
    size = encode(message()).nbytes
    sending = aside.submit(ends[0].send, message(), SOON)
    ends[1].limits = Limits(frame_bytes=size)
    assert ends[1].receive(SOON).frame_bytes == size
    sending.result()
    ends[1].limits = Limits(frame_bytes=size - 1)
    refused(ends, aside, f"the peer's frame has {size} bytes; allowed on this link: {size - 1}")


# Transports between processes.


def test_the_default_is_loopback_and_a_free_port(networked: Any, device: torch.device) -> None:
    first = networked.listen(networked.default_address, device=device)
    second = networked.listen(networked.default_address, device=device)
    ports = [listener.address.rpartition(":")[2] for listener in (first, second)]
    assert networked.default_address.endswith("://127.0.0.1:0")
    assert len({*ports, "0"}) == 3
    first.close()
    second.close()


def test_an_address_in_use_is_named_and_is_free_after_close(
    networked: Any, device: torch.device
) -> None:
    listener = networked.listen(networked.default_address, device=device)
    with pytest.raises(NetworkError, match=f"cannot listen on {listener.address}: .*port 0"):
        networked.listen(listener.address, device=device)
    listener.close()
    listener.close()
    networked.listen(listener.address, device=device).close()


def test_waiting_for_a_client_ends_by_the_deadline(networked: Any, device: torch.device) -> None:
    listener = networked.listen(networked.default_address, device=device)
    start = time.monotonic()
    with pytest.raises(NetworkError, match=f"no client came .*splitlab join {listener.address}"):
        listener.accept(0.2)
    assert time.monotonic() - start < 1.5
    listener.close()
    with pytest.raises(NetworkError, match="closed"):
        listener.accept(0.2)


def test_without_a_server_the_error_says_how_to_start_one(
    networked: Any, device: torch.device
) -> None:
    listener = networked.listen(networked.default_address, device=device)
    listener.close()
    start = time.monotonic()
    with pytest.raises(NetworkError, match=f"no server at {listener.address}.*splitlab serve"):
        networked.connect(listener.address, device=device, timeout=0.3)
    assert 0.2 < time.monotonic() - start < 1.5


def test_a_client_may_come_before_the_server(
    networked: Any, device: torch.device, aside: ThreadPoolExecutor
) -> None:
    listener = networked.listen(networked.default_address, device=device)
    address = listener.address
    listener.close()
    connecting = aside.submit(networked.connect, address, device=device, timeout=SOON)
    time.sleep(0.2)
    listener = networked.listen(address, device=device)
    server = listener.accept(SOON)
    listener.close()
    client = connecting.result()
    assert client.peer == address
    client.close()
    server.close()


def test_one_listener_takes_one_client_after_another(
    networked: Any, device: torch.device, aside: ThreadPoolExecutor
) -> None:
    listener = networked.listen(networked.default_address, device=device)
    for step in range(2):
        connecting = aside.submit(networked.connect, listener.address, device=device, timeout=SOON)
        server = listener.accept(SOON)
        client = connecting.result()
        sending = aside.submit(client.send, message(step=step), SOON)
        assert server.receive(SOON).step == step
        sending.result()
        client.close()
        server.close()
    listener.close()


@pytest.mark.parametrize(
    "address", ["127.0.0.1:80", "{}://127.0.0.1", "{}://:80", "{}://host:99999", "{}://[::1", "x"]
)
def test_a_malformed_address_is_the_users_fault(
    networked: Any, device: torch.device, address: str
) -> None:
    scheme = networked.default_address.partition(":")[0]
    with pytest.raises(ConfigError, match=f"write {scheme}://HOST:PORT"):
        networked.listen(address.format(scheme), device=device)
    with pytest.raises(ConfigError, match=f"write {scheme}://HOST:PORT"):
        networked.connect(address.format(scheme), device=device, timeout=1)


def test_an_unknown_host_is_named(networked: Any, device: torch.device) -> None:
    scheme = networked.default_address.partition(":")[0]
    with pytest.raises(NetworkError, match=r"no\.such\.host\.invalid"):
        networked.connect(f"{scheme}://no.such.host.invalid:1", device=device, timeout=1)
    with pytest.raises(NetworkError, match=r"no\.such\.host\.invalid"):
        networked.listen(f"{scheme}://no.such.host.invalid:1", device=device)


# Transports inside of one process.


def test_in_one_process_the_server_takes_its_turns_while_the_client_waits() -> None:
    def turn() -> None:
        server.send(message(Kind.GRADIENT, server.receive(SOON).step), SOON)

    client, server = working("inprocess").pair(turn)
    for step in range(3):
        client.send(message(step=step), SOON)
    assert [client.receive(SOON).step for _ in range(3)] == [0, 1, 2]
    with pytest.raises(NetworkError, match="the peer sent nothing"):
        client.receive(SOON)  # at once: nobody is left who could send
    client.close()
    server.close()


def test_in_one_process_a_server_that_takes_no_turn_ends_by_the_deadline() -> None:
    client, _ = working("inprocess").pair(lambda: None)
    client.send(message(), SOON)
    with pytest.raises(NetworkError, match="the peer sent nothing"):
        client.receive(0.2)


def test_in_one_process_the_servers_error_reaches_the_client() -> None:
    def turn() -> None:
        raise ConfigError("the server's own")

    client, _ = working("inprocess").pair(turn)
    client.send(message(), SOON)
    with pytest.raises(ConfigError, match="the server's own"):
        client.receive(SOON)
