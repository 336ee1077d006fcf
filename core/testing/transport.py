"""The checks of a transport: the contract of `splitlab.core.contract.link`, held by both of its ends.

Both ends are in this process, each in a thread of its own where one may wait for the other.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from functools import partial
from typing import Any

import torch

from splitlab.core.catalogue.registry import load
from splitlab.core.contract.errors import ConfigError, NetworkError, ProtocolError, SplitlabError
from splitlab.core.contract.link import Limits, Link, Listener, PairTransport, Transport
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.core.testing.report import Check, Failed, Report, Skipped, run_checks
from splitlab.core.testing.tiny import SOON, Seen, both_ends, difference
from splitlab.core.wire.encode import Frame, encode

__all__ = ["TRANSPORT_CHECKS", "check_transport"]

_LATE = 5.0
"""Seconds within which something that happens at once has happened, on a busy machine."""


def check_transport(transport: str | type, *, only: Collection[str] | None = None) -> Report:
    """Check that a transport holds the contract of `splitlab.core.contract.link`.

    Args:
        transport: its name, or its class.
        only: ids of checks; all by default.

    Raises:
        ConfigError: an unknown name or check id.
        PluginError: the transport cannot be imported.
    """
    factory = load("transports", transport) if isinstance(transport, str) else transport
    name = transport if isinstance(transport, str) else transport.__name__
    return run_checks(name, _Subject(factory), TRANSPORT_CHECKS, only)


class _Subject:
    """A transport under test."""

    def __init__(self, factory: Callable[[], Transport | PairTransport]) -> None:
        self._factory = factory

    def new(self) -> Transport | PairTransport:
        """Return a new transport; skip the check where it cannot work."""
        made = self._factory()
        if missing := made.unavailable():
            raise Skipped(missing)
        return made

    def networked(self) -> _Networked:
        """Return a transport that listens and connects, with the device that it reaches."""
        made = self.new()
        if isinstance(made, PairTransport):
            raise Skipped("both ends are made in one process")
        return _Networked(made, _device(made))

    def paired(self) -> PairTransport:
        """Return a transport that makes both ends."""
        made = self.new()
        if not isinstance(made, PairTransport):
            raise Skipped("its ends are made by listening and connecting")
        return made

    @contextmanager
    def ends(self) -> Iterator[tuple[Link, Link, ThreadPoolExecutor]]:
        """Yield the client's end, the server's end, and a thread for one of them."""
        made = self.new()
        with both_ends(made, _device(made)) as ends:
            yield ends


def _device(transport: Transport | PairTransport) -> torch.device:
    """Return where a peer of this transport computes: on the CPU, if its link reaches that."""
    cpu = torch.device("cpu")
    if not isinstance(transport, PairTransport):
        try:
            transport.listen(transport.default_address, device=cpu).close()
        except ConfigError:
            return torch.device("cuda")
    return cpu


class _Networked:
    """A transport that listens and connects, on its device."""

    def __init__(self, transport: Transport, device: torch.device) -> None:
        self.transport = transport
        self.device = device

    def listen(self, address: str | None = None) -> Listener:
        """Listen there, by default at a free port."""
        return self.transport.listen(address or self.transport.default_address, device=self.device)

    def connect(self, address: str, timeout: float | None = None) -> Link:
        """Connect to a listener."""
        return self.transport.connect(address, device=self.device, timeout=timeout or SOON)

    def free_address(self) -> str:
        """Return an address where nobody listens."""
        with closing(self.listen()) as listener:
            return listener.address


def _message(kind: Kind = Kind.ACTIVATION, step: int = 7, **meta: Any) -> Message:
    """Make a message with something of everything: no dimension, no bytes, a transposed tensor."""
    made = Message(kind, step, training=step % 2 == 0, stacked=step % 3 == 0, meta=meta)
    made.elapsed_ns = 123_456_789
    made.put("side", torch.tensor(5, dtype=torch.uint8), Role.SIDE)
    made.put("activations", torch.arange(12.0).view(3, 4).t(), Role.PAYLOAD)
    made.put("targets", torch.arange(3), Role.TARGETS)
    made.put("nothing", torch.zeros(0, 4, dtype=torch.bfloat16), Role.SIDE)
    return made


def _expect(kind: type[SplitlabError], what: str, action: Callable[[], object]) -> str:
    """Return the text of the error that the action raises; fail if it is none of this kind."""
    try:
        action()
    except kind as error:
        if "\n" in str(error) or not str(error):
            raise Failed(f"{what} raises {kind.__name__} without a text of one line") from None
        return str(error)
    except Exception as error:
        raise Failed(
            f"{what} raises {type(error).__name__}: {error}; it must raise {kind.__name__}"
        ) from error
    raise Failed(f"{what} raises nothing; it must raise {kind.__name__}")


@contextmanager
def _within(seconds: float, what: str, *, at_least: float = 0.0) -> Iterator[None]:
    start = time.monotonic()
    yield
    spent = time.monotonic() - start
    if spent > seconds:
        raise Failed(f"{what} takes {spent:.1f} s; at most {seconds:g} s")
    if spent < at_least:
        raise Failed(f"{what} takes {spent:.2f} s, less than its deadline of {at_least:g} s")


# A link.


def _arrives(s: _Subject) -> str | None:
    with s.ends() as (client, server, aside):
        for sender, receiver in ((client, server), (server, client)):
            for step, kind in enumerate(Kind):
                sent = _message(kind, step, loss=0.1, words=["a", None])
                size = encode(_message(kind, step, loss=0.1, words=["a", None])).nbytes
                sending = aside.submit(sender.send, sent, SOON)
                arrived = receiver.receive(SOON)
                if not sending.result() == sent.frame_bytes == arrived.frame_bytes == size:
                    raise Failed(
                        f"a {kind.name} frame has {size} bytes; send returns {sending.result()} "
                        f"and sets frame_bytes={sent.frame_bytes}, receive {arrived.frame_bytes}"
                    )
                found = difference([Seen.of(sent)], [Seen.of(arrived.to(torch.device("cpu")))])
                if found or arrived.elapsed_ns != sent.elapsed_ns:
                    raise Failed(f"what arrives is not what was sent: {found or 'elapsed_ns'}")
        sending = aside.submit(client.send, Message(Kind.CONTROL, meta={"say": "goodbye"}), SOON)
        if server.receive(SOON).meta != {"say": "goodbye"}:
            raise Failed("a message without tensors loses its metadata")
        sending.result()
    return None


def _in_order(s: _Subject) -> str | None:
    with s.ends() as (client, server, aside):

        def send_all() -> None:
            for step in range(20):
                client.send(_message(step=step), SOON)

        sending = aside.submit(send_all)
        steps = [server.receive(SOON).step for _ in range(20)]
        sending.result()
    if steps != [*range(20)]:
        raise Failed(f"20 messages arrive in the order {steps}")
    return None


def _in_own_memory(s: _Subject) -> str | None:
    tensor = torch.arange(2**23, dtype=torch.int32)
    with s.ends() as (client, server, aside):
        sent = Message(Kind.ACTIVATION)
        sent.put("activations", tensor, Role.PAYLOAD)
        sending = aside.submit(client.send, sent, SOON)
        arrived = server.receive(SOON)["activations"]
        sending.result()
        if not torch.equal(arrived.cpu(), tensor):
            raise Failed("a tensor of 32 MiB arrives with other numbers")
        if arrived.data_ptr() == tensor.data_ptr():
            raise Failed("the receiver gets the sender's own memory; copy it")
    return None


def _silence(s: _Subject) -> str | None:
    with s.ends() as (_, server, _), _within(_LATE, "a receive of 0.3 s", at_least=0.2):
        _expect(NetworkError, "receiving from a silent peer", lambda: server.receive(0.3))
    return None


def _nobody_reads(s: _Subject) -> str | None:
    large = Message(Kind.ACTIVATION)
    large.put("activations", torch.zeros(2**25, dtype=torch.uint8), Role.PAYLOAD)
    with (
        s.ends() as (client, _, _),
        _within(_LATE, "a send of 0.5 s to a peer that does not read"),
        contextlib.suppress(NetworkError),  # in one process, memory takes everything
    ):
        client.send(large, 0.5)
    return None


def _peer_closes(s: _Subject) -> str | None:
    with s.ends() as (client, server, _):
        client.close()
        with _within(_LATE, "noticing that the peer closed"):
            _expect(NetworkError, "receiving from a closed peer", lambda: server.receive(SOON))

    def send_many() -> None:
        for _ in range(100):  # the kernel takes some before it hears of it
            server.send(_message(), SOON)

    with s.ends() as (client, server, _):
        client.close()
        with _within(_LATE, "noticing that the peer closed"):
            _expect(NetworkError, "sending to a closed peer", send_many)
    return None


def _closed(s: _Subject) -> str | None:
    with s.ends() as (client, _, _):
        client.close()
        client.close()
        _expect(NetworkError, "receiving on a closed link", lambda: client.receive(SOON))
        _expect(NetworkError, "sending on a closed link", lambda: client.send(_message(), SOON))
    return None


def _limits(s: _Subject) -> str | None:
    size = encode(_message()).nbytes
    with s.ends() as (client, server, aside):
        sending = aside.submit(client.send, _message(), SOON)
        server.limits = Limits(frame_bytes=size)
        if server.receive(SOON).frame_bytes != size:
            raise Failed(f"frame_bytes is not the {size} bytes of the frame")
        sending.result()
        server.limits = Limits(frame_bytes=size - 1)
        _refused(client, server, aside, f"receiving {size} bytes where {size - 1} are allowed")
    return None


def _garbage(s: _Subject) -> str | None:
    module = sys.modules[type(s.new()).__module__]
    if getattr(module, "encode", None) is not encode:
        raise Skipped("its module takes frames from elsewhere than splitlab.core.wire's encode")

    def corrupt(message: Message) -> Frame:
        frame = encode(message)
        return frame._replace(head=b"HTTP" + frame.head[4:])

    with s.ends() as (client, server, aside):
        vars(module)["encode"] = corrupt
        try:
            _refused(client, server, aside, "receiving what is no frame")
        finally:
            vars(module)["encode"] = encode
    return None


def _refused(client: Link, server: Link, aside: ThreadPoolExecutor, what: str) -> None:
    """Send a message that the server's end must refuse."""
    sending: Future[int] = aside.submit(client.send, _message(), SOON)
    try:
        _expect(ProtocolError, what, lambda: server.receive(SOON))
    finally:
        server.close()
        with contextlib.suppress(NetworkError):
            sending.result()


# Listening and connecting.


def _free_port(s: _Subject) -> str | None:
    road = s.networked()
    default = road.transport.default_address
    with closing(road.listen()) as one, closing(road.listen()) as other:
        found = [one.address, other.address]
    if len({default, *found}) != 3:
        raise Failed(
            f"two listeners at {default} listen at {' and '.join(found)}; the default is a free "
            "port, and a listener's address says which it became"
        )
    if not any(name in default for name in ("127.", "localhost", "::1")):
        raise Failed(f"by default it listens at {default}, which is not loopback")
    return None


def _in_use(s: _Subject) -> str | None:
    road = s.networked()
    with closing(road.listen()) as listener:
        address = listener.address
        _names(
            _expect(NetworkError, "listening where one listens", lambda: road.listen(address)),
            address,
        )
        listener.close()  # and once more behind the block
    road.listen(address).close()
    return None


def _no_client(s: _Subject) -> str | None:
    with closing(s.networked().listen()) as listener:
        with _within(_LATE, "an accept of 0.2 s", at_least=0.1):
            text = _expect(NetworkError, "accepting nobody", lambda: listener.accept(0.2))
        _names(text, listener.address)
    _expect(NetworkError, "accepting on a closed listener", lambda: listener.accept(0.2))
    return None


def _no_server(s: _Subject) -> str | None:
    road = s.networked()
    address = road.free_address()
    with _within(_LATE, "a connect of 0.3 s", at_least=0.2):
        text = _expect(NetworkError, "connecting to nobody", lambda: road.connect(address, 0.3))
    _names(text, address)
    return None


def _client_first(s: _Subject) -> str | None:
    road = s.networked()
    address = road.free_address()
    with ThreadPoolExecutor(1) as aside:
        connecting = aside.submit(road.connect, address)
        time.sleep(0.2)
        if connecting.done():
            raise Failed(f"a client that may wait {SOON:g} s gives up: {connecting.exception()}")
        with (
            closing(road.listen(address)) as listener,
            closing(listener.accept(SOON)),
            closing(connecting.result()) as client,
        ):
            _names(client.peer, address)
    return None


def _one_after_another(s: _Subject) -> str | None:
    road = s.networked()
    with ThreadPoolExecutor(1) as aside, closing(road.listen()) as listener:
        for step in range(2):
            connecting = aside.submit(road.connect, listener.address)
            with closing(listener.accept(SOON)) as server, closing(connecting.result()) as client:
                sending = aside.submit(client.send, _message(step=step), SOON)
                arrived = server.receive(SOON).step
                sending.result()
            if arrived != step:
                raise Failed(f"client {step} sends, and server {step} receives of client {arrived}")
    return None


def _malformed(s: _Subject) -> str | None:
    road = s.networked()
    scheme = road.transport.default_address.partition(":")[0]
    for rest in ("127.0.0.1:80", "{}://127.0.0.1", "{}://:80", "{}://host:99999", "{}://[::1", "x"):
        address = rest.format(scheme)
        for verb, action in (
            ("listening at", partial(road.listen, address)),
            ("connecting to", partial(road.connect, address, 1)),
        ):
            _names(_expect(ConfigError, f"{verb} {address!r}", action), f"{scheme}://")
    return None


def _unknown_host(s: _Subject) -> str | None:
    road = s.networked()
    scheme = road.transport.default_address.partition(":")[0]
    address = f"{scheme}://no.such.host.invalid:1"
    for text in (
        _expect(NetworkError, "connecting to an unknown host", lambda: road.connect(address, 1)),
        _expect(NetworkError, "listening at an unknown host", lambda: road.listen(address)),
    ):
        _names(text, "no.such.host.invalid")
    return None


def _names(text: str, address: str) -> None:
    if address not in text:
        raise Failed(f"the text {text!r} does not name {address}")


# Both ends made at once.


def _takes_turns(s: _Subject) -> str | None:
    def turn() -> None:
        server.send(_message(Kind.GRADIENT, server.receive(SOON).step), SOON)

    client, server = s.paired().pair(turn)
    for step in range(3):
        client.send(_message(step=step), SOON)
    steps = [client.receive(SOON).step for _ in range(3)]
    if steps != [0, 1, 2]:
        raise Failed(f"three answers arrive in the order {steps}")
    with _within(_LATE, "receiving where nobody is left who could send"):
        _expect(NetworkError, "receiving a fourth answer", lambda: client.receive(SOON))
    client.close()
    server.close()
    return None


def _idle_server(s: _Subject) -> str | None:
    client, _ = s.paired().pair(lambda: None)
    client.send(_message(), SOON)
    with _within(_LATE, "a receive of 0.2 s"):
        _expect(NetworkError, "a server that takes no turn", lambda: client.receive(0.2))
    return None


def _servers_error(s: _Subject) -> str | None:
    def turn() -> None:
        raise ConfigError("the server's own")

    client, _ = s.paired().pair(turn)
    client.send(_message(), SOON)
    text = _expect(ConfigError, "a server's own error", lambda: client.receive(SOON))
    _names(text, "the server's own")
    return None


TRANSPORT_CHECKS: list[Check[_Subject]] = [
    Check("T1", "every kind arrives both ways, as many bytes as the wire", _arrives),
    Check("T2", "messages arrive in order", _in_order),
    Check("T3", "a large message arrives in memory of its own", _in_own_memory),
    Check("T4", "silence ends by the deadline", _silence),
    Check("T5", "a peer that does not read ends by the deadline", _nobody_reads),
    Check("T6", "a peer that closes is noticed at once", _peer_closes),
    Check("T7", "closing twice is allowed, a closed link says so", _closed),
    Check("T8", "limits hold for the next message", _limits),
    Check("T9", "garbage is the peer's fault", _garbage),
    Check("T10", "the default is loopback and a free port", _free_port),
    Check("T11", "an address in use is named, and free after close", _in_use),
    Check("T12", "waiting for a client ends by the deadline", _no_client),
    Check("T13", "connecting to nobody ends by the deadline", _no_server),
    Check("T14", "a client may come before the server", _client_first),
    Check("T15", "one listener takes one client after another", _one_after_another),
    Check("T16", "a malformed address is the user's fault", _malformed),
    Check("T17", "an unknown host is named", _unknown_host),
    Check("T18", "the server takes its turns while the client waits", _takes_turns),
    Check("T19", "a server that takes no turn ends by the deadline", _idle_server),
    Check("T20", "the server's error reaches the client", _servers_error),
]
